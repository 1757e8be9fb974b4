"""A testbed, as the runners see it, and the addresses in it."""

from __future__ import annotations

import socket
from typing import Protocol

from wgcell.prove.testbed.capture import Packet
from wgcell.prove.testbed.endpoint import Endpoint

__all__ = [
    "ENDPOINT",
    "HOST",
    "LIVE_HOSTS",
    "LIVE_TCP",
    "LIVE_UDP",
    "PORT",
    "SILENT_ENDPOINT",
    "Testbed",
]

ENDPOINT = "198.51.100.10"
SILENT_ENDPOINT = "198.51.100.11"
PORT = 51820
HOST = "192.0.2.1"
LIVE_HOSTS = (
    *("192.0.2.10", "192.0.2.254", "192.168.1.1", "10.0.0.1", "172.16.0.1"),
    *("169.254.169.254", "203.0.113.7", "198.51.100.53"),
)
LIVE_TCP = (22, 53, 80, 443)
LIVE_UDP = (53, 67, 123, 443, 1900, 5353, 51820)


class Testbed(Protocol):
    """The network around the relay, with its captures."""

    sees: str
    """The oracle's view, for the report."""
    complete: bool
    """Whether every way out is captured, and not only the relay's socket."""
    endpoint: Endpoint
    wire: socket.socket | None
    """A raw socket on the host's card, to which a plain tap would be joined."""

    async def start(self) -> None:
        """Start the endpoint."""

    def tunnel_socket(self, *, silent: bool = False) -> socket.socket:
        """A UDP socket as the supervisor makes it, connected to the endpoint.

        ``silent``: connected to the endpoint that never answers.
        """

    def unconnected_socket(self) -> socket.socket:
        """A UDP socket that takes datagrams of anyone, for the controls of inbound cases."""

    def send_as_endpoint(self, port: int, payload: bytes) -> None:
        """Send a datagram from the endpoint's address and port to ``port`` of the host."""

    def send_as_stranger(self, port: int, payload: bytes) -> None:
        """Send a datagram from another address to ``port`` of the host."""

    def send_on_lan(self, frame: bytes) -> bool:
        """Send ``frame``, unchanged, from the LAN to the host; False if there is no LAN."""

    def collect(self) -> list[Packet]:
        """All packets captured since the last call."""

    def lost(self) -> int:
        """How many packets were missed since the last call."""
