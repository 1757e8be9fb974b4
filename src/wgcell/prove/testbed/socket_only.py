"""The testbed without namespaces: a socket of this process between the relay and the endpoint.

It captures all datagrams of the relay's socket, and no packet that takes another way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from wgcell.prove.testbed.capture import Packet
from wgcell.prove.testbed.endpoint import Endpoint

__all__ = ["SocketTestbed"]

_RECEIVE_BUFFER = 8 << 20
_LOOPBACK = "127.0.0.1"


class SocketTestbed:
    """For a machine that allows no namespaces."""

    complete = False
    wire: socket.socket | None = None

    def __init__(self, why: str, relays: int) -> None:
        self.endpoint = Endpoint(relays)
        self.sees = f"the relay's only socket, in this process ({why})"
        self._captured: list[Packet] = []
        self._fronts: dict[int, tuple[socket.socket, socket.socket | None]] = {}

    async def start(self) -> None:
        """Start boringtun on loopback."""
        await self.endpoint.listen(_LOOPBACK, 0)

    def tunnel_socket(self, *, silent: bool = False) -> socket.socket:
        """A socket that is connected to one of this testbed, which captures and forwards."""
        made, front = _loopback_socket(), _loopback_socket()
        made.connect(front.getsockname())
        front.connect(made.getsockname())
        back = None if silent else _loopback_socket()
        if back is not None:
            back.connect(self.endpoint.address)
        self._fronts[made.getsockname()[1]] = (front, back)
        loop = asyncio.get_running_loop()
        loop.add_reader(front, self._forward_out, front, back)
        if back is not None:
            loop.add_reader(back, _forward_in, back, front)
        return made

    def _forward_out(self, front: socket.socket, back: socket.socket | None) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = front.recv(1 << 16)
                self._captured.append(Packet("relay's socket", True, data, data))
                if back is not None:
                    back.send(data)

    def unconnected_socket(self) -> socket.socket:
        """A bound socket."""
        return _loopback_socket()

    def send_as_endpoint(self, port: int, payload: bytes) -> None:
        """Send from the socket to which the relay's socket is connected."""
        front = self._fronts.get(port)
        with contextlib.suppress(OSError):
            if front is not None:
                front[0].send(payload)
            else:
                self.send_as_stranger(port, payload)

    def send_as_stranger(self, port: int, payload: bytes) -> None:
        """Send from a socket that is no endpoint."""
        with _loopback_socket() as stranger, contextlib.suppress(OSError):
            stranger.sendto(payload, (_LOOPBACK, port))

    def send_on_lan(self, frame: bytes) -> bool:
        """There is no LAN here."""
        return False

    def collect(self) -> list[Packet]:
        """All datagrams that the relay's socket has sent."""
        for front, back in self._fronts.values():
            self._forward_out(front, back)
        captured, self._captured = self._captured, []
        return captured

    def lost(self) -> int:
        """None: each socket is read as soon as a datagram arrives."""
        return 0


def _forward_in(back: socket.socket, front: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            front.send(back.recv(1 << 16))


def _loopback_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    made.bind((_LOOPBACK, 0))
    return made
