"""Where peers come to when WireGuard is in a namespace apart: one UDP socket, and a way in.

Each place that datagrams come from has a socket of its own inside, so that WireGuard tells the
places apart, answers where it was asked from, and follows a peer that moves. Nothing is understood
here: WireGuard drops what is none of its own. Who was never answered makes room first, so a
stranger's flood displaces no peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from wgcell.gateway.limits import Bucket

__all__ = ["INSIDE", "Entrance"]

INSIDE = ("127.0.0.1", 51820)
"""Where WireGuard listens within its namespace, which holds nothing else."""
_SOURCES = ipaddress.ip_address("127.1.0.0")
_MOST_PLACES = 1024
_NEW_PER_SECOND = 64
"""Places that may appear; bursts of as many as there may be at once, shared by all."""
_LEAST, _MOST = 32, 65535
"""Bytes of a datagram: a keepalive is the shortest message (WireGuard paper, 5.4.6)."""
_AT_ONCE = 64
"""Datagrams of one reading, and of one send: the kernel cuts no more (linux/udp.h)."""
_ONE_SEND = 60_000
"""Bytes of it after which no other datagram is added."""
_BUFFER = 4 << 20
"""Asked of the kernel in bytes; it gives what net.core.rmem_max allows."""
# linux/udp.h; Python's socket names neither.
_UDP_SEGMENT, _UDP_GRO = 103, 104
_CONTROL = socket.CMSG_SPACE(4)


@dataclass(slots=True)
class _Way:
    """One place's socket inside, and when WireGuard last answered through it."""

    sock: socket.socket
    answered: float = 0.0


class Entrance:
    """``make`` gives a UDP socket of the namespace's."""

    def __init__(self, make: Callable[[], socket.socket]) -> None:
        self._make = make
        self._ways: dict[tuple[str, int], _Way] = {}
        self._new = Bucket(_NEW_PER_SECOND, 4 * _NEW_PER_SECOND)
        self._numbers = itertools.count()
        self._outer: socket.socket | None = None
        self.place = ("", 0)

    def open(self, place: tuple[str, int]) -> None:
        """Listen at ``place`` and nowhere else. Raises OSError that says what is taken."""
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        outer = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            outer.bind(place)
        except OSError as error:
            outer.close()
            where = f"{place[0]}, UDP port {place[1]}"
            raise OSError(error.errno, f"can't listen on {where}: {error.strerror}") from None
        self.close()
        _prepare(outer)
        with contextlib.suppress(OSError):
            outer.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        self._outer = outer
        host, port = outer.getsockname()[:2]
        self.place = (str(host), int(port))
        asyncio.get_running_loop().add_reader(outer, self._come, outer)

    def close(self) -> None:
        """Nobody comes in any more."""
        loop = asyncio.get_running_loop()
        for sock in [self._outer, *(way.sock for way in self._ways.values())]:
            if sock is not None:
                loop.remove_reader(sock)
                sock.close()
        self._ways.clear()
        self._outer = None

    def _come(self, outer: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, control, _, place = outer.recvmsg(_MOST, _CONTROL)
            except BlockingIOError:
                return
            except OSError:
                continue  # what ICMP says of an earlier answer
            way = self._ways.get(place) or self._way(place, data)
            if way is not None:
                # What the kernel has coalesced goes on as it came, in one piece and cut again.
                size = struct.unpack("i", control[0][2][:4])[0] if control else len(data)
                _send(way.sock, data, size)

    def _way(self, place: tuple[str, int], data: bytes) -> _Way | None:
        now = time.monotonic()
        if len(data) < _LEAST or not 1 <= data[0] <= 4 or not self._new.take(now):
            return None
        if len(self._ways) >= _MOST_PLACES:
            least = min(self._ways, key=lambda place: self._ways[place].answered)
            self._close(least)
        try:
            sock = self._make()
        except OSError:
            return None  # no descriptor is free; who is let in already stays in
        sock.setblocking(False)
        _prepare(sock)
        # WireGuard bounds handshakes by their source's address: each place has one of its own.
        sock.bind((str(_SOURCES + next(self._numbers) % 65536), 0))
        sock.connect(INSIDE)
        way = self._ways[place] = _Way(sock)
        asyncio.get_running_loop().add_reader(sock, self._answer, way, place)
        return way

    def _close(self, place: tuple[str, int]) -> None:
        way = self._ways.pop(place)
        asyncio.get_running_loop().remove_reader(way.sock)
        way.sock.close()

    def _answer(self, way: _Way, place: tuple[str, int]) -> None:
        """What WireGuard has for ``place``: datagrams of one size leave in one system call."""
        way.answered = time.monotonic()
        waiting: list[bytes] = []
        for _ in range(_AT_ONCE):
            try:
                data = way.sock.recv(_MOST)
            except OSError:
                break
            if waiting and (len(data) != len(waiting[0]) or len(data) * len(waiting) > _ONE_SEND):
                self._leave(waiting, place)
                waiting = []
            waiting.append(data)
        if waiting:
            self._leave(waiting, place)

    def _leave(self, datagrams: list[bytes], place: tuple[str, int]) -> None:
        if self._outer is not None:
            _send(self._outer, b"".join(datagrams), len(datagrams[0]), place)


def _prepare(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


def _send(
    sock: socket.socket, data: bytes, size: int, place: tuple[str, int] | None = None
) -> None:
    """Datagrams of ``size`` bytes, the last may be shorter. What the kernel does not take is lost,
    as UDP loses datagrams."""
    to = () if place is None else (place,)
    if len(data) > size:
        with contextlib.suppress(OSError):
            segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", size))
            sock.sendmsg([data], [segment], 0, *to)
            return
    for begin in range(0, len(data), size):
        with contextlib.suppress(OSError):
            sock.sendmsg([data[begin : begin + size]], [], 0, *to)
