"""The ingress: it demultiplexes one UDP port to a WireGuard that listens in a private namespace.

Each address that datagrams come from has a path of its own:

- a socket outside, connected to that address. The kernel keeps its datagrams apart from all others,
  so nobody can crowd them out;
- a socket inside, so that WireGuard tells the addresses apart, answers to where a datagram came
  from, and follows a peer whose address changes.

A path is made only for a sender that knows the gateway's public key (mac1, section 5.4.4 of the
WireGuard paper) or an index that WireGuard has given out. WireGuard judges the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from wgcell.gateway.ingress.sockets import (
    CONTROL_SIZE,
    SockAddr,
    ancillary,
    bound_socket,
    enlarge_buffers,
    forget,
    report_destination,
    send,
)
from wgcell.net import addresses
from wgcell.net.bucket import TokenBucket
from wgcell.wire import wireguard

__all__ = ["INSIDE", "Bounds", "Demultiplexer", "Path"]

INSIDE = ("127.0.0.1", 1)
"""Where WireGuard listens in its namespace. No flow to UDP port 1 of a target can be proxied,
for its socket in the namespace needs the number; nobody serves anything there."""
_SOURCES = addresses.address("127.1.0.0")
_MOST_KNOWN = 4096
"""Hosts and indices that are remembered; the longest unused are forgotten."""
_PER_HOST = (8, 64)
"""Paths that a host may begin by a handshake's first message: a second, and at once. For IPv6 a
host is a /64, as for WireGuard in Linux."""
_OF_ALL = (256, 1024)
"""The same for all hosts together: a path costs 0.14 ms to make."""
_PER_INDEX = (1, 8)
"""The same for one session, whose peer may have moved."""
_INDICES_EACH = 8
"""Indices of one path that are remembered: a peer may shake hands without end."""
_HANDSHAKES = (bytes([wireguard.MessageType.INITIATION]), bytes([wireguard.MessageType.RESPONSE]))
_MOST = 65535
_AT_ONCE = 16
"""Reads of one socket before the others' turn; a read may hold 64 datagrams."""
_PAUSE = 0.0005
"""Seconds between two looks for room."""
_SEGMENTS = 64
"""Datagrams of one send: the kernel cuts no more (linux/udp.h)."""
_ONE_SEND = 60_000
"""Bytes of one send after which no other datagram is added."""
_PRIVILEGED = 1024
"""The first port that a process without rights may bind."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one ingress."""

    paths: int = 384
    """Two descriptors each, beside those of `peer.admission.MOST_FLOWS` flows."""
    first_answer: float = 5.0
    """Seconds that WireGuard may take for its first answer (REKEY_TIMEOUT, paper, section 6.1)."""
    session: float = 180.0
    """Seconds without an answer after which the session of a path is dead (REJECT_AFTER_TIME)."""


class _Known(OrderedDict[object, TokenBucket]):
    """A token bucket for each key; the longest unused are forgotten."""

    def take(self, key: object, bounds: tuple[int, int]) -> bool:
        if key not in self:
            self[key] = TokenBucket(*bounds)
            if len(self) > _MOST_KNOWN:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key].take(time.monotonic())


@dataclass(slots=True, eq=False)
class Path:
    """The two sockets of one sender's address, and when WireGuard last answered through them."""

    place: SockAddr
    outer: socket.socket
    """Connected to the place; or the listening socket, where there can be none."""
    inner: socket.socket
    destination: str = ""
    """The address of this machine that ``outer`` is bound to; empty for the listening socket."""
    made: float = field(default_factory=time.monotonic)
    answered: float = 0.0
    segments: bool = True
    """Whether the path out takes many datagrams in one system call."""
    indices: deque[int] = field(default_factory=deque)

    def worth(self, now: float, bounds: Bounds) -> tuple[int, float]:
        """The path with the least worth makes room.

        That is a path that WireGuard has never answered, then one whose session is dead, then one
        that is new and may yet be answered.
        """
        if self.answered:
            return (3 if now - self.answered < bounds.session else 1), self.answered
        return (2 if now - self.made < bounds.first_answer else 0), self.made


class Demultiplexer:
    """One listening port. ``make`` makes a UDP socket in the namespace.

    ``has_room`` says whether WireGuard has room for a number of datagrams of a number of bytes.
    While it has none, datagrams wait outside, those of each path in its own socket, and the paths
    take turns. ``inside`` is where WireGuard listens.
    """

    def __init__(
        self,
        make: Callable[[], socket.socket],
        has_room: Callable[[int, int], bool] = lambda count, size: True,
        *,
        inside: tuple[str, int] = INSIDE,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._inside = inside
        self._bounds = bounds
        self._make = make
        self._has_room = has_room
        self._held: dict[socket.socket, tuple[Path, bytes, int]] = {}
        """What was read of a socket when there was no room; the longest waiting is first."""
        self._timer: asyncio.TimerHandle | None = None
        self._key = bytes(32)
        self.paths: dict[SockAddr, Path] = {}
        """The path of each sender's address."""
        self._hosts, self._indices, self._all = _Known(), _Known(), TokenBucket(*_OF_ALL)
        self._numbers = itertools.count()
        self._outer: socket.socket | None = None
        self.place = ("", 0)

    def admit(self, public_key: bytes) -> None:
        """Admit senders that know ``public_key``, which is WireGuard's own: 32 bytes."""
        self._key = wireguard.mac1_key(public_key)

    def open(self, place: tuple[str, int]) -> None:
        """Listen at ``place`` and nowhere else. Raises OSError that says what is taken.

        Then the former place is listened at, but every path must be made anew.
        """
        before = self.place
        if self._outer is not None and place[1] == before[1]:
            if place[1] < _PRIVILEGED:
                # The process was root when it bound the port, and could not bind it again.
                raise OSError(errno.EACCES, f"another address of port {place[1]} takes a restart")
            self.close()  # there is one listening socket of a port, whatever its address
        try:
            outer = bound_socket(place)
        except OSError:
            if self._outer is None and before[1]:
                self._listen(bound_socket(before))
            raise
        self.close()
        self._listen(outer)

    def _listen(self, outer: socket.socket) -> None:
        report_destination(outer)
        self._outer = outer
        host, port = outer.getsockname()[:2]
        self.place = (str(host), int(port))
        asyncio.get_running_loop().add_reader(outer, self._receive, outer)

    def close(self) -> None:
        """Receive nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held.clear()
        for place in list(self.paths):
            self._close(place)
        if self._outer is not None:
            forget(self._outer)
            self._outer = None

    # In.

    def _receive(self, outer: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if not self._read(outer):
                return

    def _read(self, outer: socket.socket) -> bool:
        """Read once and pass it on. True if there may be more that can be passed on."""
        try:
            data, control, _, place = outer.recvmsg(_MOST, CONTROL_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            return True  # an ICMP error of an earlier answer
        size, destination = ancillary(control)
        # Datagrams that the kernel has coalesced are sent on as one piece, and cut again.
        size = size or len(data)
        if size < wireguard.SHORTEST_TRANSPORT:
            return True
        path = self.paths.get(place) or self._new_path(place, data[:size], destination)
        if path is None:
            return True
        moved = destination and destination != path.destination and path.outer is not self._outer
        if moved and self._hosts.take(_host(place), _PER_HOST):
            # The path has a socket, but this came to another address of this machine.
            self._open_outer(path, destination)
        # Paths that wait already are first.
        if self._held or not self._has_room(-(-len(data) // size), size):
            loop = asyncio.get_running_loop()
            loop.remove_reader(outer)
            self._held[outer] = path, data, size
            if self._timer is None:
                self._timer = loop.call_later(_PAUSE, self._resume)
            return False
        send(path.inner, data, size)
        return True

    def _resume(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for outer, (path, data, size) in list(self._held.items()):
            if not self._has_room(-(-len(data) // size), size):
                self._timer = loop.call_later(_PAUSE, self._resume)
                return
            del self._held[outer]
            send(path.inner, data, size)
            loop.add_reader(outer, self._receive, outer)

    def admits(self, place: SockAddr, data: bytes) -> bool:
        """Whether the sender at ``place`` of the message ``data`` may have a new path."""
        try:
            message = wireguard.parse(data)
        except wireguard.MalformedMessageError:
            return False
        if isinstance(message, wireguard.Initiation):
            right = message.mac1 == wireguard.keyed_mac1(self._key, message.covered)
            return (
                right
                and self._hosts.take(_host(place), _PER_HOST)
                and self._all.take(time.monotonic())
            )
        return message.receiver in self._indices and self._indices.take(
            message.receiver, _PER_INDEX
        )

    def _new_path(self, place: SockAddr, data: bytes, destination: str) -> Path | None:
        if not self.admits(place, data) or self._outer is None:
            return None
        if len(self.paths) >= self._bounds.paths:
            now = time.monotonic()
            worth = {place: path.worth(now, self._bounds) for place, path in self.paths.items()}
            self._close(min(worth, key=lambda place: worth[place]))
        try:
            inner = self._make()
        except OSError:
            return None  # no descriptor is free; the present paths stay
        inner.setblocking(False)
        enlarge_buffers(inner)
        # WireGuard limits handshakes by their source address: each path has one of its own.
        inner.bind((str(_SOURCES + next(self._numbers) % 65536), 0))
        inner.connect(self._inside)
        path = self.paths[place] = Path(place, self._outer, inner)
        asyncio.get_running_loop().add_reader(inner, self._send_answers, path)
        self._open_outer(path, destination)
        return path

    def _open_outer(self, path: Path, destination: str) -> None:
        """Give ``path`` a socket at the address that the peer sent to, and expects answers from."""
        self._close_outer(path)
        # A port below 1024 takes root, which this process was: then the paths share one socket.
        with contextlib.suppress(OSError):
            host = destination or self.place[0]
            path.outer = bound_socket(
                (host, self.place[1], *path.place[2:]), beside=True, to=path.place
            )
            path.destination = destination
            asyncio.get_running_loop().add_reader(path.outer, self._receive, path.outer)

    def _close_outer(self, path: Path) -> None:
        if self._outer is not None and path.outer is not self._outer:
            self._held.pop(path.outer, None)
            forget(path.outer)
            path.outer, path.destination = self._outer, ""

    def _close(self, place: SockAddr) -> None:
        path = self.paths.pop(place)
        forget(path.inner)
        self._close_outer(path)

    # Out.

    def _send_answers(self, path: Path) -> None:
        """Pass on what WireGuard sends: datagrams of one size leave in one system call."""
        waiting: list[bytes] = []
        for _ in range(_SEGMENTS):
            try:
                data = path.inner.recv(_MOST)
            except OSError:
                break
            if data[:1] in _HANDSHAKES:
                # The index that WireGuard will know this session by.
                self._know(path, int.from_bytes(data[4:8], "little"))
            if waiting and (len(data) != len(waiting[0]) or len(data) * len(waiting) > _ONE_SEND):
                self._send_out(path, waiting)
                waiting = []
            waiting.append(data)
        if waiting:
            path.answered = time.monotonic()
            self._send_out(path, waiting)

    def _know(self, path: Path, index: int) -> None:
        self._indices.take(index, _PER_INDEX)
        path.indices.append(index)
        if len(path.indices) > _INDICES_EACH:
            self._indices.pop(path.indices.popleft(), None)

    def _send_out(self, path: Path, datagrams: list[bytes]) -> None:
        to = path.place if path.outer is self._outer else None
        if not (path.segments and len(datagrams) > 1):
            for datagram in datagrams:
                send(path.outer, datagram, len(datagram), to)
        elif not send(path.outer, b"".join(datagrams), len(datagrams[0]), to):
            # The MTU is smaller, or the card can't fill in checksums; fragments may pass.
            path.segments = False


def _host(place: SockAddr) -> object:
    """The sender, as far as its address tells."""
    address = addresses.of_socket(place[0])
    if address.version == 4:
        return address
    return address.ipv4_mapped or int(address) >> 64
