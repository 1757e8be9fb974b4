"""Many transport messages at once: what the plain path judges of each, of all side by side.

A guest that sends much sends transport messages alike but for what differs from frame to frame by
nature: the lengths, IPv4's identification and checksum, UDP's checksum, WireGuard's counter. So a
frame that has passed the plain path becomes the *pattern*. The heads of the records that follow
(62 bytes each, from the length before the frame to WireGuard's counter) are gathered side by side;
what differs by nature is lifted out of them, column by column, and the rest must be the pattern,
byte for byte: every field of the link, the type, the receiver's index. Then the columns: each
length must follow from the record's own; UDP's checksum is free; the counters must rise by one;
identification, checksum and length must have the pattern's sum modulo 65535, for then the header's
checksum is right (RFC 1071). The session has the last word, once for all of them.

In a run of one size the records lie at equal distances: heads and payloads are cut out by what was
laid out once, and the lengths are part of the pattern.

Nothing is decided here that the plain path would decide otherwise, and nothing is refused here at
all: what does not fit ends the run, and the plain path looks at it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache

from wgcell.relay import link
from wgcell.relay.framing import PREFIX, Stream
from wgcell.relay.session import SessionTable
from wgcell.wire import ethernet, ipv4, udp, wireguard

__all__ = ["Runs"]

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
_BETWEEN_FRAMES = bytearray(STEP - HEAD + PREFIX)
"""Heads of records of many sizes are gathered without the length before the frame."""
SHORTEST = link.HEADERS + wireguard.SHORTEST_TRANSPORT
LONGEST = ethernet.HEADER_LENGTH + ethernet.MAXIMUM_PAYLOAD

_COUNTER = PREFIX + link.HEADERS + wireguard.COUNTER.start
_IP_LENGTH = PREFIX + link.IP + ipv4.TOTAL_LENGTH.start
_IDENTIFICATION = PREFIX + link.IP + ipv4.IDENTIFICATION.start
_IP_CHECKSUM = PREFIX + link.IP + ipv4.CHECKSUM.start
_UDP_LENGTH = PREFIX + link.UDP + udp.LENGTH.start
_UDP_CHECKSUM = PREFIX + link.UDP + udp.CHECKSUM.start
_RECEIVER = PREFIX + link.HEADERS + wireguard.RECEIVER.start


def _words(offset: int) -> slice:
    """The column of 16-bit words at ``offset`` of each head."""
    return slice((offset - SKIPPED) // 2, None, STEP // 2)


_IP_LENGTHS, _UDP_LENGTHS = _words(_IP_LENGTH), _words(_UDP_LENGTH)
_SUMMED = (_IP_LENGTHS, _words(_IDENTIFICATION), _words(_IP_CHECKSUM))
_FREE = (_words(_IDENTIFICATION), _words(_IP_CHECKSUM), _words(_UDP_CHECKSUM))
_COUNTERS = slice((_COUNTER - SKIPPED) // 8, None, STEP // 8)
_NO_WORDS = memoryview(bytes(2 * MOST)).cast("H")
_NO_COUNTERS = memoryview(bytes(8 * MOST)).cast("Q")


@lru_cache(maxsize=64)
def _gathering(stride: int, count: int) -> struct.Struct:
    return struct.Struct(f"{HEAD}s{stride - HEAD}x" * count)


@lru_cache(maxsize=MOST)
def _words_of(count: int) -> struct.Struct:
    return struct.Struct(f">{count}H")


def _repeated(value: int, bits: int, count: int) -> int:
    return sum(value << bits * n for n in range(count))


# By the number of records: lanes of 32 bits with the low 16 set, and one in each lane of 32 and 64.
_LOW_WORDS = [_repeated(0xFFFF, 32, count) for count in range(MOST + 1)]
_ONE_EACH_32 = [_repeated(1, 32, count) for count in range(MOST + 1)]
_ONE_EACH_64 = [_repeated(1, 64, count) for count in range(MOST + 1)]
_RISING = [sum(n << 64 * n for n in range(count)) for count in range(MOST + 1)]


@dataclass(slots=True)
class _Pattern:
    """A head that has passed, what differs by nature blanked."""

    head: bytes
    receiver: int
    checksum: int
    of_length: dict[int, bytes] = field(default_factory=dict)

    def with_length(self, length: int) -> bytes:
        """The head, lengths filled in, of a frame of that length."""
        made = self.of_length.get(length)
        if made is None:
            raw = bytearray(self.head)
            struct.pack_into(">I", raw, 0, length)
            struct.pack_into(">H", raw, _IP_LENGTH, length - link.IP)
            struct.pack_into(">H", raw, _UDP_LENGTH, length - link.UDP)
            made = self.of_length[length] = bytes(raw)
        return made


class Runs:
    """The pattern of one link, and how far it carried lately."""

    def __init__(self, sessions: SessionTable) -> None:
        self._sessions = sessions
        self._pattern: _Pattern | None = None
        self._hoped = self._hoped_mixed = MOST

    def learn(self, stream: Stream) -> None:
        """The record that stands next has passed the plain path as a transport message."""
        raw = bytearray(stream.view[stream.at : stream.at + HEAD])
        (receiver,) = struct.unpack_from("<I", raw, _RECEIVER)
        words = (_IP_LENGTH, _IDENTIFICATION, _IP_CHECKSUM)
        checksum = sum(int.from_bytes(raw[at : at + 2], "little") for at in words) % 0xFFFF
        blanks = {0: PREFIX, _UDP_LENGTH: 2, _UDP_CHECKSUM: 2, _COUNTER: 8}
        for at, size in (blanks | dict.fromkeys(words, 2)).items():
            raw[at : at + size] = bytes(size)
        self._pattern = _Pattern(bytes(raw + _BETWEEN), receiver, checksum)

    def take(self, stream: Stream, length: int, now: float) -> tuple[list[memoryview], bool]:
        """The payloads of the records from here on that pass together, maybe none; whether all
        are of one size.

        The session has noted them, and the stream stands behind them. ``length`` is the next
        frame's.
        """
        pattern = self._pattern
        if pattern is None or stream.alone(length) or not SHORTEST <= length <= LONGEST:
            return [], False
        if stream.alike(length, LEAST):
            return self._of_one_size(pattern, stream, length, now), True
        return self._of_many_sizes(pattern, stream, now), False

    def _of_one_size(
        self, pattern: _Pattern, stream: Stream, length: int, now: float
    ) -> list[memoryview]:
        stride = PREFIX + length
        count = min((stream.end - stream.at) // stride, self._hoped)
        heads = _BETWEEN.join(_gathering(stride, count).unpack_from(stream.view, stream.at))
        columns = _Columns(heads, SKIPPED, count)
        found = _alike(heads, pattern.with_length(length), len(_BETWEEN), count)
        self._hoped = min(MOST, 2 * count) if found == count else max(LEAST, found)
        if found < LEAST or not self._passes(pattern, columns, found, length, now):
            return []
        payloads = stream.cut(stride, PREFIX + link.HEADERS, found)
        stream.at += found * stride
        return payloads

    def _of_many_sizes(self, pattern: _Pattern, stream: Stream, now: float) -> list[memoryview]:
        view, raw = stream.view, stream.raw
        records = stream.records(self._hoped_mixed, SHORTEST, LONGEST)
        count = len(records)
        if count < LEAST:
            return []
        heads = _BETWEEN_FRAMES.join([raw[at + PREFIX : at + HEAD] for at, _ in records])
        columns = _Columns(heads, SKIPPED - PREFIX, count)
        ip_lengths, udp_lengths = columns.lift(_IP_LENGTHS), columns.lift(_UDP_LENGTHS)
        head = pattern.head[PREFIX:HEAD] + _BETWEEN_FRAMES
        found = _alike(heads, head, len(_BETWEEN_FRAMES), count)
        self._hoped_mixed = min(MOST, 2 * count) if found == count else max(LEAST, found)
        if found < LEAST:
            return []
        del records[found:]
        expected = _words_of(found).pack
        lengths = [length for _, length in records]
        if (
            expected(*[length - link.IP for length in lengths]) != ip_lengths[: 2 * found]
            or expected(*[length - link.UDP for length in lengths]) != udp_lengths[: 2 * found]
            or not self._passes(pattern, columns, found, max(lengths), now)
        ):
            self._hoped_mixed = LEAST
            return []
        before = PREFIX + link.HEADERS
        stream.at = records[-1][0] + PREFIX + lengths[-1]
        return [view[at + before : at + PREFIX + length] for at, length in records]

    def _passes(
        self, pattern: _Pattern, columns: _Columns, count: int, longest: int, now: float
    ) -> bool:
        first = int.from_bytes(columns.counters[:8], "little")
        return (
            _rise(columns.counters[: 8 * count], first, count)
            and _sum_to(pattern.checksum, columns.summed, count)
            and self._sessions.sends(pattern.receiver, first, count, longest - link.HEADERS, now)
        )


class _Columns:
    """What differs by nature, lifted out of ``heads`` and blanked there."""

    __slots__ = ("count", "counters", "summed", "words")

    def __init__(self, heads: bytearray, skipped: int, count: int) -> None:
        rest = memoryview(heads)[skipped : count * STEP - 8 + skipped]
        self.count = count
        self.words, counters = rest.cast("H"), rest.cast("Q")
        self.summed = [self.words[column].tobytes() for column in _SUMMED]
        self.counters = counters[_COUNTERS].tobytes()
        counters[_COUNTERS] = _NO_COUNTERS[:count]
        for column in _FREE:
            self.words[column] = _NO_WORDS[:count]

    def lift(self, column: slice) -> bytes:
        """One more."""
        lifted = self.words[column].tobytes()
        self.words[column] = _NO_WORDS[: self.count]
        return lifted


def _alike(heads: bytearray, head: bytes, between: int, count: int) -> int:
    """How many of the first heads are this one, which ends with what stands ``between`` them."""
    if heads == (head * count)[:-between]:
        return count
    least, most = 0, count - 1
    with memoryview(heads) as view:
        while least < most:
            tried = (least + most + 1) // 2
            if view[: tried * STEP - between] == (head * tried)[:-between]:
                least = tried
            else:
                most = tried - 1
    return least


def _rise(counters: bytes, first: int, count: int) -> bool:
    """Whether each counter is the one before it and one."""
    return int.from_bytes(counters, "little") == _RISING[count] + first * _ONE_EACH_64[count]


def _sum_to(wanted: int, columns: list[bytes], count: int) -> bool:
    """Whether each row of words adds up to ``wanted`` modulo 65535.

    Even and odd rows apart, in lanes of 32 bits: a sum has room there. What is then added makes a
    right sum a positive multiple of 65535, and folding its carry in makes that 65535 itself.
    """
    numbers = [int.from_bytes(column[: 2 * count], "little") for column in columns]
    for odd in (0, 1):
        lanes = (count + 1 - odd) // 2
        low = _LOW_WORDS[lanes]
        total = (0xFFFF - wanted) * _ONE_EACH_32[lanes]
        for number in numbers:
            total += number >> 16 * odd & low
        if (total & low) + (total >> 16 & low) != low:
            return False
    return True
