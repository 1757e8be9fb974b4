"""Where peers come to when WireGuard is in a namespace apart: one UDP port, and ways in.

Each place that datagrams come from has a way of its own: a socket outside, connected to it, so that
the kernel keeps its datagrams apart from all others' and none can crowd them out; and a socket
inside, so that WireGuard tells the places apart, answers where it was asked from, and follows a
peer that moves. A way is made only for who knows the gateway's public key (mac1, section 5.4.4 of
the WireGuard paper) or an index that WireGuard has given out; the rest is WireGuard's to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wgcell.gateway.model.ratelimit import Bucket
from wgcell.net import addresses
from wgcell.wire import wireguard

__all__ = ["INSIDE", "Entrance"]

INSIDE = ("127.0.0.1", 1)
"""Where WireGuard listens within its namespace. A flow to this port of any target would not be
joined, for its socket there needs the number; nobody serves anything on UDP port 1."""
_SOURCES = addresses.address("127.1.0.0")
_MOST_PLACES = 384
"""Two descriptors each, beside those of `wgcell.gateway.peer.admission.MOST_JOINED` flows."""
_MOST_KNOWN = 4096
"""Hosts and indices that are remembered; the oldest are forgotten."""
_PER_HOST = (8, 64)
"""Places a second, and at once, that may appear of one host by a handshake's first message; of
IPv6 a host is a /64, as to Linux's WireGuard."""
_OF_ALL = (256, 1024)
"""The same of all hosts together: a place costs 0.14 ms to make."""
_PER_INDEX = (1, 8)
"""The same of one session, whose peer may have moved."""
_INDICES_EACH = 8
"""Of one way's that are remembered: a peer may shake hands without end."""
_SOON = 5.0
"""Seconds that WireGuard may take for its answer (REKEY_TIMEOUT, WireGuard paper, section 6.1)."""
_LONG = 180.0
"""Seconds without an answer after which a way's session is dead (REJECT_AFTER_TIME)."""
_HANDSHAKES = (bytes([wireguard.MessageType.INITIATION]), bytes([wireguard.MessageType.RESPONSE]))
_MOST = 65535
_AT_ONCE = 16
"""Readings of one socket before the others' turn; a reading may hold 64 datagrams."""
_PAUSE = 0.0005
"""Seconds between two looks for room."""
_SEGMENTS = 64
"""Datagrams of one send: the kernel cuts no more (linux/udp.h)."""
_ONE_SEND = 60_000
"""Bytes of it after which no other datagram is added."""
_BUFFER = 4 << 20
"""Asked of the kernel in bytes; it gives what net.core.rmem_max allows."""
# linux/udp.h; Python's socket names neither.
_UDP_SEGMENT, _UDP_GRO = 103, 104
_NO_SEGMENTS = frozenset({errno.EMSGSIZE, errno.EINVAL, errno.EIO})
_IP_PKTINFO = 8  # linux/in.h
_ASKED_AT = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}
_CONTROL = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
_PRIVILEGED = 1024

Place = tuple[Any, ...]
"""As the kernel tells it: address and port, and of IPv6 two numbers more."""


class _Known(OrderedDict[Any, Bucket]):
    """A bucket each for what comes by; the longest unused go."""

    def take(self, key: object, bounds: tuple[int, int]) -> bool:
        if key not in self:
            self[key] = Bucket(*bounds)
            if len(self) > _MOST_KNOWN:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key].take(time.monotonic())


@dataclass(slots=True, eq=False)
class _Way:
    """One place's two sockets, and when WireGuard last answered through them."""

    place: Place
    outer: socket.socket
    """Connected to the place; or the entrance's own, where there can be none."""
    inner: socket.socket
    asked: str = ""
    """The address of ours that ``outer`` is bound to; empty if it is the entrance's own."""
    made: float = field(default_factory=time.monotonic)
    answered: float = 0.0
    segments: bool = True
    """Whether the way out takes many datagrams in one call."""
    indices: deque[int] = field(default_factory=deque)

    def worth(self, now: float) -> tuple[int, float]:
        """Who has the least makes room: who was never answered and is not about to be, then who
        was not for long, then who is new."""
        if self.answered:
            return (3 if now - self.answered < _LONG else 1), self.answered
        return (2 if now - self.made < _SOON else 0), self.made


class Entrance:
    """``make`` gives a UDP socket of the namespace's.

    ``has_room`` says whether WireGuard has room for so many datagrams of so many bytes. While it
    has none, what comes waits outside, each place's in its own socket, and the places take turns.
    """

    def __init__(
        self,
        make: Callable[[], socket.socket],
        has_room: Callable[[int, int], bool] = lambda count, size: True,
    ) -> None:
        self._make = make
        self._has_room = has_room
        self._held: dict[socket.socket, tuple[_Way, bytes, int]] = {}
        """What was read of a socket when there was no room; who has waited longest is first."""
        self._timer: asyncio.TimerHandle | None = None
        self._key = bytes(32)
        self._ways: dict[Place, _Way] = {}
        self._hosts, self._indices, self._all = _Known(), _Known(), Bucket(*_OF_ALL)
        self._numbers = itertools.count()
        self._outer: socket.socket | None = None
        self.place = ("", 0)

    def admit(self, public_key: bytes) -> None:
        """Who knows this key, WireGuard's own, may come in."""
        self._key = wireguard.mac1_key(public_key)

    def open(self, place: tuple[str, int]) -> None:
        """Listen at ``place`` and nowhere else. Raises OSError that says what is taken; then
        nothing has changed, but who had come in comes in anew."""
        before = self.place
        if self._outer is not None and place[1] == before[1]:
            if place[1] < _PRIVILEGED:
                # This process was root when it began, and could not have the port again.
                raise OSError(errno.EACCES, f"another address of port {place[1]} takes a restart")
            self.close()  # of one port there is one, whatever the address
        try:
            outer = _bound(place)
        except OSError:
            if self._outer is None and before[1]:
                self._listen(_bound(before))
            raise
        self.close()
        self._listen(outer)

    def _listen(self, outer: socket.socket) -> None:
        level, option = _ASKED_AT[outer.family]
        outer.setsockopt(level, option, 1)
        self._outer = outer
        host, port = outer.getsockname()[:2]
        self.place = (str(host), int(port))
        asyncio.get_running_loop().add_reader(outer, self._come, outer)

    def close(self) -> None:
        """Nobody comes in any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held.clear()
        for place in list(self._ways):
            self._close(place)
        if self._outer is not None:
            _forget(self._outer)
            self._outer = None

    # In.

    def _come(self, outer: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if not self._read(outer):
                return

    def _read(self, outer: socket.socket) -> bool:
        """Read once and pass it on; whether there may be more that can be passed on."""
        try:
            data, control, _, place = outer.recvmsg(_MOST, _CONTROL)
        except BlockingIOError:
            return False
        except OSError:
            return True  # what ICMP says of an earlier answer
        size, asked = _told(control)
        # What the kernel has coalesced goes on as it came, in one piece and cut again.
        size = size or len(data)
        if size < wireguard.SHORTEST_TRANSPORT:
            return True
        way = self._ways.get(place) or self._way(place, data[:size], asked)
        if way is None:
            return True
        moved = asked and asked != way.asked and way.outer is not self._outer
        if moved and self._hosts.take(_host(place), _PER_HOST):
            # It has a socket of its own, and this came by another address of this machine's.
            self._lead_out(way, asked)
        # Who waits already is first.
        if self._held or not self._has_room(-(-len(data) // size), size):
            loop = asyncio.get_running_loop()
            loop.remove_reader(outer)
            self._held[outer] = way, data, size
            if self._timer is None:
                self._timer = loop.call_later(_PAUSE, self._resume)
            return False
        _send(way.inner, data, size)
        return True

    def _resume(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for outer, (way, data, size) in list(self._held.items()):
            if not self._has_room(-(-len(data) // size), size):
                self._timer = loop.call_later(_PAUSE, self._resume)
                return
            del self._held[outer]
            _send(way.inner, data, size)
            loop.add_reader(outer, self._come, outer)

    def _admitted(self, place: Place, data: bytes) -> bool:
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

    def _way(self, place: Place, data: bytes, asked: str) -> _Way | None:
        if not self._admitted(place, data) or self._outer is None:
            return None
        if len(self._ways) >= _MOST_PLACES:
            now = time.monotonic()
            self._close(min(self._ways, key=lambda place: self._ways[place].worth(now)))
        try:
            inner = self._make()
        except OSError:
            return None  # no descriptor is free; who is in stays in
        inner.setblocking(False)
        _make_room(inner)
        # WireGuard bounds handshakes by their source's address: each place has one of its own.
        inner.bind((str(_SOURCES + next(self._numbers) % 65536), 0))
        inner.connect(INSIDE)
        way = self._ways[place] = _Way(place, self._outer, inner)
        asyncio.get_running_loop().add_reader(inner, self._answer, way)
        self._lead_out(way, asked)
        return way

    def _lead_out(self, way: _Way, asked: str) -> None:
        """A socket of its own, at the address that was asked, for answers come from there."""
        self._shut(way)
        # Below port 1024 it takes root, whom this process has been: then they share one.
        with contextlib.suppress(OSError):
            host = asked or self.place[0]
            way.outer = _bound((host, self.place[1], *way.place[2:]), beside=True, to=way.place)
            way.asked = asked
            asyncio.get_running_loop().add_reader(way.outer, self._come, way.outer)

    def _shut(self, way: _Way) -> None:
        if self._outer is not None and way.outer is not self._outer:
            self._held.pop(way.outer, None)
            _forget(way.outer)
            way.outer, way.asked = self._outer, ""

    def _close(self, place: Place) -> None:
        way = self._ways.pop(place)
        _forget(way.inner)
        self._shut(way)

    # Out.

    def _answer(self, way: _Way) -> None:
        """What WireGuard has for a place: datagrams of one size leave in one system call."""
        waiting: list[bytes] = []
        for _ in range(_SEGMENTS):
            try:
                data = way.inner.recv(_MOST)
            except OSError:
                break
            if data[:1] in _HANDSHAKES:
                # The index by which WireGuard will know what belongs to this handshake.
                self._know(way, int.from_bytes(data[4:8], "little"))
            if waiting and (len(data) != len(waiting[0]) or len(data) * len(waiting) > _ONE_SEND):
                self._leave(way, waiting)
                waiting = []
            waiting.append(data)
        if waiting:
            way.answered = time.monotonic()
            self._leave(way, waiting)

    def _know(self, way: _Way, index: int) -> None:
        self._indices.take(index, _PER_INDEX)
        way.indices.append(index)
        if len(way.indices) > _INDICES_EACH:
            self._indices.pop(way.indices.popleft(), None)

    def _leave(self, way: _Way, datagrams: list[bytes]) -> None:
        to = way.place if way.outer is self._outer else None
        if not (way.segments and len(datagrams) > 1):
            for datagram in datagrams:
                _send(way.outer, datagram, len(datagram), to)
        elif not _send(way.outer, b"".join(datagrams), len(datagrams[0]), to):
            # The path's MTU is less, or the card can't fill in checksums; fragments may pass.
            way.segments = False


def _host(place: Place) -> object:
    """Who a place is, as far as addresses tell."""
    address = addresses.of_socket(place[0])
    if address.version == 4:
        return address
    return address.ipv4_mapped or int(address) >> 64


def _told(control: list[tuple[int, int, bytes]]) -> tuple[int, str]:
    """The size of what was coalesced, 0 if nothing was; and the address of ours that was asked."""
    size, asked = 0, ""
    for level, kind, raw in control:
        if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO):
            size = struct.unpack("i", raw[:4])[0]
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            asked = str(addresses.unpacked(raw[8:12]))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            asked = str(addresses.unpacked(raw[:16]))
    return size, asked


def _bound(place: Place, *, beside: bool = False, to: Place | None = None) -> socket.socket:
    """A socket at ``place``, which nobody else's shares; ``beside`` another one of this process's.

    Connected ``to``, it gets what comes from there. What comes from elsewhere between the two steps
    has its source with it. Raises OSError that says what is taken.
    """
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(place)
        # Now, and not before: the first must find out whether another gateway is there.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if to is not None:
            sock.connect(to)
    except OSError as error:
        sock.close()
        where = f"{place[0]}, UDP port {place[1]}"
        raise OSError(error.errno, f"can't listen on {where}: {error.strerror}") from None
    _make_room(sock)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
    return sock


def _make_room(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


def _forget(sock: socket.socket) -> None:
    asyncio.get_running_loop().remove_reader(sock)
    sock.close()


def _send(sock: socket.socket, data: bytes, size: int, place: Place | None = None) -> bool:
    """Datagrams of ``size`` bytes, the last may be shorter; whether they left as asked.

    If not in one piece, then one by one; what the kernel does not take is lost, as UDP loses
    datagrams.
    """
    to = () if place is None else (place,)
    if len(data) > size:
        segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", size))
        try:
            sock.sendmsg([data], [segment], 0, *to)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_SEGMENTS:
                # What ICMP says of an earlier one, in the place of sending this.
                with contextlib.suppress(OSError):
                    sock.sendmsg([data], [segment], 0, *to)
                return True
        else:
            return True
    for begin in range(0, len(data), size):
        with contextlib.suppress(OSError):
            sock.sendmsg([data[begin : begin + size]], [], 0, *to)
    return len(data) <= size
