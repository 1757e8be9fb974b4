"""The host context: the network that an nftables engine works in, and what depends on it.

There are two: `machine.MachineHost`, the machine's own network, which needs root, and
`private.PrivateHost`, a network namespace of this process, which does not. The engine is the same.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar

from wgcell.gateway.engines.nftables.device import Device
from wgcell.gateway.model.config import GatewayConfig
from wgcell.net.addresses import Address

__all__ = ["HostContext", "Place"]

P = ParamSpec("P")
T = TypeVar("T")
Place = tuple[str, int]
"""An address and a port."""


class HostContext(Protocol):
    """One network for one gateway."""

    name: str
    """The engine's name, as configuration files and the ``ready`` event have it."""
    interface: str
    """The name of the WireGuard interface."""
    any_address: bool
    """Whether redirected TCP is accepted at any address. Then services share the port's number."""
    proxies_udp: bool
    """Whether this process proxies UDP, too; else the kernel forwards it."""
    router: bool
    """Whether the host forwards packets for others, which the rules must leave alone."""

    def run(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``work``, called in the network of the tunnel's end; it blocks the loop."""

    async def run_aside(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The same in a thread: it blocks nothing, not even `run`."""

    def claim(self, config: GatewayConfig) -> None:
        """Make this the only gateway here. Raises HostError if it may not be."""

    def prepare(self, config: GatewayConfig, device: Device) -> None:
        """Set sysctls and routes, before anything else is made. Called by `run`."""

    def place(self, config: GatewayConfig) -> Place:
        """The address and the UDP port to which peers send."""

    def ruleset(self, config: GatewayConfig) -> str:
        """The text of the whole table."""

    def settings(self, config: GatewayConfig) -> str:
        """The text for wg(8)."""

    def redirect_sockets(self, config: GatewayConfig) -> list[socket.socket]:
        """Listening sockets for redirected TCP. Called by `run`."""

    def destination(self, accepted: socket.socket, place: Place) -> tuple[Address, int]:
        """The address and the port to which the peer of an ``accepted`` connection sent its SYN.

        ``place`` is the socket's own address and port.
        """

    def changing(self, before: GatewayConfig, after: GatewayConfig) -> AbstractContextManager[None]:
        """Surrounds a change of the configuration. An exception takes the host's part back."""

    def configuring(self, config: GatewayConfig, device: Device) -> AbstractContextManager[None]:
        """Surrounds `Device.configure`. Called by `run`."""

    def close(self, device: Device) -> None:
        """Take away everything that was made, and put back what was changed."""
