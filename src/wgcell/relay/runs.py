"""Many transport messages of one size, judged at once.

A guest that sends much sends runs: frames of one size, alike but for what differs from frame to
frame by nature: IPv4's identification and checksum, UDP's checksum, WireGuard's counter. So a frame
that has passed the plain path becomes the *pattern* of its size. The heads of the records that
follow (62 bytes each, from the length before the frame to WireGuard's counter) are gathered side by
side; what differs by nature is lifted out of them, column by column, and the rest must be the
pattern, byte for byte: every field of the link, the lengths, the type, the receiver's index. Then
the columns: UDP's checksum is free; the counters must rise by one; identification and checksum must
have the pattern's sum modulo 65535, for then the header's checksum is right (RFC 1071). The session
has the last word, once for the run.

Nothing is decided here that the plain path would decide otherwise, and nothing is refused here at
all: a run ends where it is no run, and the plain path looks at what stands there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from wgcell.relay import link
from wgcell.relay.framing import PREFIX, Stream
from wgcell.relay.session import SessionTable
from wgcell.wire import ipv4, udp, wireguard

__all__ = ["LEAST", "Runs"]

MOST = 64
"""Records of one run: as many segments as one UDP send may have (Linux: UDP_MAX_SEGMENTS)."""
LEAST = 4
"""Fewer are cheaper one by one."""

HEAD = PREFIX + link.HEADERS + wireguard.TRANSPORT_HEADER
"""Bytes of a record before the encrypted packet."""
STEP = HEAD + 2
"""From head to head where they are gathered. Two bytes stand between, and the columns are read from
6 bytes into the first head on: so the counters are aligned as 64-bit words, all else as 16-bit."""
SKIPPED = 6
_BETWEEN = bytearray(STEP - HEAD)

_COUNTER = PREFIX + link.HEADERS + wireguard.COUNTER.start
_IDENTIFICATION = PREFIX + link.IP + ipv4.IDENTIFICATION.start
_IP_CHECKSUM = PREFIX + link.IP + ipv4.CHECKSUM.start
_UDP_CHECKSUM = PREFIX + link.UDP + udp.CHECKSUM.start
_RECEIVER = PREFIX + link.HEADERS + wireguard.RECEIVER.start


def _words(offset: int) -> slice:
    """The column of 16-bit words at ``offset`` of each head."""
    return slice((offset - SKIPPED) // 2, None, STEP // 2)


_IDENTIFICATIONS, _IP_CHECKSUMS, _UDP_CHECKSUMS = (
    _words(offset) for offset in (_IDENTIFICATION, _IP_CHECKSUM, _UDP_CHECKSUM)
)
_COUNTERS = slice((_COUNTER - SKIPPED) // 8, None, STEP // 8)
_NO_WORDS = memoryview(bytes(2 * MOST)).cast("H")
_NO_COUNTERS = memoryview(bytes(8 * MOST)).cast("Q")


@lru_cache(maxsize=64)
def _gathering(stride: int, count: int) -> struct.Struct:
    return struct.Struct(f"{HEAD}s{stride - HEAD}x" * count)


def _repeated(value: int, bits: int, count: int) -> int:
    return sum(value << bits * n for n in range(count))


# By the number of records: lanes of 32 bits with the low 16 set, and one in each lane of 32 and 64.
_LOW_WORDS = [_repeated(0xFFFF, 32, count) for count in range(MOST + 1)]
_ONE_EACH_32 = [_repeated(1, 32, count) for count in range(MOST + 1)]
_ONE_EACH_64 = [_repeated(1, 64, count) for count in range(MOST + 1)]
_RISING = [sum(n << 64 * n for n in range(count)) for count in range(MOST + 1)]


@dataclass(slots=True)
class _Pattern:
    """A head that has passed, what differs by nature blanked; and how long its runs have been."""

    head: bytes
    receiver: int
    checksum: int
    hoped: int = MOST


class Runs:
    """The patterns of one link, by the frame's length: at most one for each there is."""

    def __init__(self, sessions: SessionTable) -> None:
        self._sessions = sessions
        self._patterns: dict[int, _Pattern] = {}

    def learn(self, stream: Stream, length: int) -> None:
        """The record that stands next has passed the plain path as a transport message."""
        raw = bytearray(stream.view[stream.at : stream.at + HEAD])
        (receiver,) = struct.unpack_from("<I", raw, _RECEIVER)
        identification, checksum = (
            int.from_bytes(raw[at : at + 2], "little") for at in (_IDENTIFICATION, _IP_CHECKSUM)
        )
        for at, size in (
            (_IDENTIFICATION, 2),
            (_IP_CHECKSUM, 2),
            (_UDP_CHECKSUM, 2),
            (_COUNTER, 8),
        ):
            raw[at : at + size] = bytes(size)
        head = bytes(raw + _BETWEEN)
        self._patterns[length] = _Pattern(head, receiver, (identification + checksum) % 0xFFFF)

    def take(self, stream: Stream, length: int, now: float) -> int:
        """How many records from here on pass as a run; the session has noted them. 0 if none."""
        pattern = self._patterns.get(length)
        if pattern is None:
            return 0
        stride = PREFIX + length
        count = min((stream.end - stream.at) // stride, pattern.hoped)
        heads = _BETWEEN.join(_gathering(stride, count).unpack_from(stream.view, stream.at))
        rest = memoryview(heads)[SKIPPED:]
        words, counts = rest.cast("H"), rest.cast("Q")
        identifications = words[_IDENTIFICATIONS].tobytes()
        checksums = words[_IP_CHECKSUMS].tobytes()
        counters = counts[_COUNTERS].tobytes()
        for column in (_IDENTIFICATIONS, _IP_CHECKSUMS, _UDP_CHECKSUMS):
            words[column] = _NO_WORDS[:count]
        counts[_COUNTERS] = _NO_COUNTERS[:count]
        alike = _alike(heads, pattern.head, count)
        pattern.hoped = min(MOST, 2 * count) if alike == count else max(LEAST, alike)
        if alike < LEAST:
            return 0
        first = int.from_bytes(counters[:8], "little")
        passes = (
            _rise(counters[: 8 * alike], first, alike)
            and _sum_to(pattern.checksum, identifications, checksums, alike)
            and self._sessions.sends(pattern.receiver, first, alike, length - link.HEADERS, now)
        )
        if not passes:
            pattern.hoped = LEAST
            return 0
        return alike


def _alike(heads: bytearray, head: bytes, count: int) -> int:
    """How many of the first heads are this one."""
    if heads == (head * count)[: len(heads)]:
        return count
    least, most = 0, count - 1
    with memoryview(heads) as view:
        while least < most:
            tried = (least + most + 1) // 2
            size = tried * STEP - len(_BETWEEN)
            if view[:size] == (head * tried)[:size]:
                least = tried
            else:
                most = tried - 1
    return least


def _rise(counters: bytes, first: int, count: int) -> bool:
    """Whether each counter is the one before it and one."""
    return int.from_bytes(counters, "little") == _RISING[count] + first * _ONE_EACH_64[count]


def _sum_to(wanted: int, left: bytes, right: bytes, count: int) -> bool:
    """Whether each pair of words adds up to ``wanted`` modulo 65535.

    Even and odd words apart, in lanes of 32 bits: a sum has room there. What is then added makes a
    right sum a positive multiple of 65535, and folding its carry in makes that 65535 itself.
    """
    one, other = (
        int.from_bytes(left[: 2 * count], "little"),
        int.from_bytes(right[: 2 * count], "little"),
    )
    for odd in (0, 1):
        lanes = (count + 1 - odd) // 2
        low = _LOW_WORDS[lanes]
        total = (one >> 16 * odd & low) + (other >> 16 * odd & low)
        total += (0xFFFF - wanted) * _ONE_EACH_32[lanes]
        if (total & low) + (total >> 16 & low) != low:
            return False
    return True
