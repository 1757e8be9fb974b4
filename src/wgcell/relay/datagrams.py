"""The connected UDP socket in bulk: many datagrams a system call, both ways.

In, Linux coalesces equal datagrams that follow each other (UDP_GRO), and recvmmsg(2) fetches
several such groups at once. Python has no recvmmsg, so ctypes calls it, on arrays laid out once.
Out, UDP_SEGMENT makes one writev(2) as many datagrams of one size (and a shorter last one); the
buffers are handed over where they lie. writev can carry no address and no control message: the size
is set on the socket before.

Not every path can segment. A size beyond the path's MTU makes the send fail with EMSGSIZE or
EINVAL: from then on datagrams of that size or more are sent on their own, and the kernel fragments
them. A card that can't fill in checksums makes it fail with EIO: then every datagram is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence

from wgcell.net.linux import UDP_GRO, UDP_SEGMENT
from wgcell.relay.relay import Arrived

__all__ = ["Datagrams"]

# linux/udp.h; Python's socket names neither.

GROUPS = 16
"""Messages of one recvmmsg."""
GROUP_BYTES = 1 << 16
KNOWN_MOST = 8
"""Groups of one place whose views are kept: a view costs 200 bytes, and 0.1 µs to make."""
RECEIVE_BUFFER = 4 << 20
"""Asked of the kernel in bytes; it gives what net.core.rmem_max allows."""
PATIENCE = struct.pack("ll", 1, 0)
"""A second (struct timeval) that a send waits for room; then its datagrams are lost."""

_TOO_LONG = frozenset({errno.EMSGSIZE, errno.EINVAL})
_OF_EARLIER = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})
_ANY_SIZE = 1 << 16

_CONTROL = 24  # CMSG_SPACE(sizeof(int))
_HEADER = 64  # struct mmsghdr
_IOVEC = 16


class Datagrams:
    """Receives and sends on ``udp``, which is connected and blocks: a send may wait for room.

    Receiving never waits. Whether it blocks is its supervisor's to say: what ``setblocking`` sets
    is shared by all who hold the socket, and before the relay works it is consent that reads it.
    """

    def __init__(self, udp: socket.socket) -> None:
        self._udp = udp
        self._fd = udp.fileno()
        self.lost = 0
        """Datagrams the kernel did not take."""
        self.renew()
        self._recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self._recvmmsg.argtypes = (integer, pointer, integer, integer, pointer)
        self._buffer = bytearray(GROUPS * GROUP_BYTES)
        self._iovecs = bytearray(GROUPS * _IOVEC)
        self._control = bytearray(GROUPS * _CONTROL)
        self._headers = bytearray(GROUPS * _HEADER)
        whole = memoryview(self._buffer)
        self._groups = [whole[n * GROUP_BYTES : (n + 1) * GROUP_BYTES] for n in range(GROUPS)]
        self._known: list[dict[tuple[int, int], Arrived]] = [{} for _ in range(GROUPS)]
        self._lay_out()
        self._fresh = bytes(self._headers)
        self._lengths = memoryview(self._headers).cast("I")[14 :: _HEADER // 4]
        self._control_lengths = memoryview(self._headers).cast("Q")[5 :: _HEADER // 8]
        self._sizes = memoryview(self._control).cast("I")[4 :: _CONTROL // 4]
        self._arguments = (self._fd, _address(self._headers), GROUPS, socket.MSG_DONTWAIT, None)

    def renew(self) -> None:
        """Another socket stands behind the descriptor: give it its options. It must block."""
        udp = self._udp
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, PATIENCE)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        with contextlib.suppress(OSError):
            udp.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        self._segment = 0
        self._segmented_below = _ANY_SIZE

    def _lay_out(self) -> None:
        """Headers that point at vectors that point at the buffer, a control buffer each."""
        buffer, iovecs, control = (
            _address(array) for array in (self._buffer, self._iovecs, self._control)
        )
        for n in range(GROUPS):
            struct.pack_into("QQ", self._iovecs, n * _IOVEC, buffer + n * GROUP_BYTES, GROUP_BYTES)
            header = (0, 0, iovecs + n * _IOVEC, 1, control + n * _CONTROL, _CONTROL, 0, 0)
            struct.pack_into("QI4xQQQQI4xI4x", self._headers, n * _HEADER, *header)

    def receive(self) -> list[Arrived]:
        """The datagrams that have arrived, at most so many groups; their views are good until the
        next call.

        An error of the path (ICMP) is delivered once, in place of datagrams: then there are none.
        """
        count = self._recvmmsg(*self._arguments)
        if count <= 0:
            return []
        arrived = []
        lengths = self._lengths[:count].tolist()
        sizes = self._sizes[:count].tolist()
        for n, coalesced in enumerate(self._control_lengths[:count].tolist()):
            length = lengths[n]
            if length:
                known = self._known[n].get((length, sizes[n] if coalesced else length))
                arrived.append(known or self._cut(n, length, sizes[n] if coalesced else length))
        self._headers[: count * _HEADER] = self._fresh[: count * _HEADER]
        return arrived

    def _cut(self, n: int, length: int, size: int) -> Arrived:
        """The n-th group, cut; the same lengths come again and again, in the same place."""
        group, known = self._groups[n], self._known[n]
        if len(known) >= KNOWN_MOST:
            known.clear()
        payloads = [group[at : min(at + size, length)] for at in range(0, length, size)]
        made = known[length, size] = Arrived(group[:length], payloads)
        return made

    def send(self, payloads: Sequence[bytes | memoryview]) -> None:
        """Datagrams in order, all as long as the first but the last, which may be shorter.

        What the path does not take is lost, as UDP loses datagrams.
        """
        size = len(payloads[0])
        if len(payloads) == 1:
            # A segment size cuts only longer payloads.
            if size > self._segment and self._segment:
                self._segments_of(0)
        elif not (size < self._segmented_below and self._segments_of(size)):
            self._send_each(payloads)
            return
        try:
            self._write(payloads)
        except OSError as error:
            too_long = error.errno in _TOO_LONG
            if self._segment and (too_long or error.errno == errno.EIO):
                self._segmented_below = size if too_long else 0
                self._send_each(payloads)
            else:
                self.lost += len(payloads)

    def _send_each(self, payloads: Sequence[bytes | memoryview]) -> None:
        """One by one. A segment size that an earlier send left on the socket would cut them."""
        if self._segment:
            self._segments_of(0)
        for payload in payloads:
            try:
                self._write([payload])
            except OSError:
                self.lost += 1

    def _write(self, payloads: Sequence[bytes | memoryview]) -> None:
        try:
            os.writev(self._fd, payloads)
        except OSError as error:
            if error.errno not in _OF_EARLIER:
                raise
            # What ICMP says of an earlier datagram, in the place of sending this one.
            os.writev(self._fd, payloads)

    def _segments_of(self, size: int) -> bool:
        if size != self._segment:
            try:
                self._udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            except OSError:
                self._segmented_below = 0
                return False
            self._segment = size
        return True


def _address(array: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(array))
