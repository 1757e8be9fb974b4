"""Many transport messages at once, checked side by side as the plain path checks each of them.

Under load a guest's transport messages differ in a few fields only: the lengths, IPv4's
identification and checksum, UDP's checksum, WireGuard's counter. The plain path walks through all
its checks in Python for each of them. This module checks up to 64 with few operations on long
strings and integers, which CPython executes in C. It takes these steps:

1. A frame that has passed the plain path becomes the *pattern*: its head, with the fields that may
   differ set to zero.
2. The heads of the records that follow (62 bytes each, from the length before the frame to
   WireGuard's counter) are gathered into one string.
3. The fields that may differ are copied out of it, column by column, and set to zero.
4. The rest must be the pattern, byte for byte: every field of the link, the type, the receiver's
   index.
5. Then the columns. Each length must follow from the record's own; UDP's checksum is free; the
   counters must rise by one; identification, checksum and length must have the pattern's sum modulo
   65535, because the header's checksum is then right (RFC 1071).
6. The session decides last, once for all of them.

In a run of one size the records lie at equal distances. So one precompiled format cuts out heads
and payloads, and the lengths are part of the pattern.

No decision here differs from the plain path's, and nothing is refused here. A record that does not
fit ends the run, and the plain path judges it.
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
"""Records; fewer are cheaper one by one."""

HEAD = PREFIX + link.HEADERS + wireguard.TRANSPORT_HEADER
"""Bytes of a record before the encrypted packet."""
STEP = HEAD + 2
"""Bytes from head to head in the gathered string; 64, so that a column has a constant stride."""
SKIPPED = 6
"""Bytes of the first head before the columns begin. Two bytes stand between heads. Together they
align the counters as 64-bit words and the other fields as 16-bit words, which memoryview needs."""
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
    # An extended slice of a memoryview walks one field through all heads without a loop in Python.
    return slice((offset - SKIPPED) // 2, None, STEP // 2)


_IP_LENGTHS, _UDP_LENGTHS = _words(_IP_LENGTH), _words(_UDP_LENGTH)
_SUMMED = (_IP_LENGTHS, _words(_IDENTIFICATION), _words(_IP_CHECKSUM))
_FREE = (_words(_IDENTIFICATION), _words(_IP_CHECKSUM), _words(_UDP_CHECKSUM))
_COUNTERS = slice((_COUNTER - SKIPPED) // 8, None, STEP // 8)
_NO_WORDS = memoryview(bytes(2 * MOST)).cast("H")
_NO_COUNTERS = memoryview(bytes(8 * MOST)).cast("Q")


# Parsing a format takes longer than applying it, and a flow has few sizes and counts.
@lru_cache(maxsize=64)
def _gathering(stride: int, count: int) -> struct.Struct:
    """Cuts the heads out of ``count`` records that are ``stride`` bytes apart."""
    return struct.Struct(f"{HEAD}s{stride - HEAD}x" * count)


@lru_cache(maxsize=MOST)
def _words_of(count: int) -> struct.Struct:
    """Packs ``count`` lengths as a column has them."""
    return struct.Struct(f">{count}H")


def _repeated(value: int, bits: int, count: int) -> int:
    """``value`` in each of ``count`` lanes of ``bits`` bits."""
    return sum(value << bits * n for n in range(count))


# A column is compared as one long integer with a lane for each record. These are its constants, by
# the number of records: the low 16 bits of each 32-bit lane, 1 in each lane of 32 and of 64 bits,
# and 0, 1, 2, … in lanes of 64 bits.
_LOW_WORDS = [_repeated(0xFFFF, 32, count) for count in range(MOST + 1)]
_ONE_EACH_32 = [_repeated(1, 32, count) for count in range(MOST + 1)]
_ONE_EACH_64 = [_repeated(1, 64, count) for count in range(MOST + 1)]
_RISING = [sum(n << 64 * n for n in range(count)) for count in range(MOST + 1)]


@dataclass(slots=True)
class _Pattern:
    """A head that has passed the plain path; the fields that may differ are zeros."""

    head: bytes
    receiver: int
    checksum: int
    """The sum of the header's words that may differ, modulo 65535: the others are the pattern's."""
    of_length: dict[int, bytes] = field(default_factory=dict)
    """`with_length`'s results; at most one for each length that a frame may have."""

    def with_length(self, length: int) -> bytes:
        """The head of a frame of that length, with its lengths filled in."""
        made = self.of_length.get(length)
        if made is None:
            raw = bytearray(self.head)
            struct.pack_into(">I", raw, 0, length)
            struct.pack_into(">H", raw, _IP_LENGTH, length - link.IP)
            struct.pack_into(">H", raw, _UDP_LENGTH, length - link.UDP)
            made = self.of_length[length] = bytes(raw)
        return made


class Runs:
    """The pattern of one link, and the length of the latest runs."""

    def __init__(self, sessions: SessionTable) -> None:
        self._sessions = sessions
        self._pattern: _Pattern | None = None
        # Gathering costs by the record, whether the run reaches it or not. So a run that broke off
        # shortens the next attempt, and one that did not doubles it.
        self._hoped = self._hoped_mixed = MOST

    def learn(self, stream: Stream) -> None:
        """Make the pattern of the next record, a transport message that passed the plain path."""
        raw = bytearray(stream.view[stream.at : stream.at + HEAD])
        (receiver,) = struct.unpack_from("<I", raw, _RECEIVER)
        words = (_IP_LENGTH, _IDENTIFICATION, _IP_CHECKSUM)
        # Little-endian, as the columns are read: the one's complement sum does not depend on the
        # order of bytes (RFC 1071, section 2 (B)).
        checksum = sum(int.from_bytes(raw[at : at + 2], "little") for at in words) % 0xFFFF
        blanks = {0: PREFIX, _UDP_LENGTH: 2, _UDP_CHECKSUM: 2, _COUNTER: 8}
        for at, size in (blanks | dict.fromkeys(words, 2)).items():
            raw[at : at + size] = bytes(size)
        self._pattern = _Pattern(bytes(raw + _BETWEEN), receiver, checksum)

    def take(self, stream: Stream, length: int, now: float) -> tuple[list[memoryview], bool]:
        """The payloads of the next records that pass together, maybe none; and whether all have one
        size.

        ``length`` is the next frame's. Afterwards the session has noted the records, and the stream
        is behind them.
        """
        pattern = self._pattern
        # A lone record can't make a run, and one of another length can't be transport: the plain
        # path has the reason.
        if pattern is None or stream.alone(length) or not SHORTEST <= length <= LONGEST:
            return [], False
        if stream.alike(length, LEAST):
            return self._of_one_size(pattern, stream, length, now), True
        return self._of_many_sizes(pattern, stream, now), False

    def _of_one_size(
        self, pattern: _Pattern, stream: Stream, length: int, now: float
    ) -> list[memoryview]:
        stride = PREFIX + length
        # Whole records only; a record that is still arriving waits for the next read.
        count = min((stream.end - stream.at) // stride, self._hoped)
        heads = _BETWEEN.join(_gathering(stride, count).unpack_from(stream.view, stream.at))
        # The columns blank the fields in ``heads``, so this precedes the comparison.
        columns = _Columns(heads, SKIPPED, count)
        found = _alike(heads, pattern.with_length(length), len(_BETWEEN), count)
        self._hoped = min(MOST, 2 * count) if found == count else max(LEAST, found)
        # The session notes the counters as the last step: before it nothing has changed, and the
        # plain path can take the same records.
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
        # Without the length before the frame, which differs here: `records` has bounded it.
        heads = _BETWEEN_FRAMES.join([raw[at + PREFIX : at + HEAD] for at, _ in records])
        columns = _Columns(heads, SKIPPED - PREFIX, count)
        ip_lengths, udp_lengths = columns.lift(_IP_LENGTHS), columns.lift(_UDP_LENGTHS)
        head = pattern.head[PREFIX:HEAD] + _BETWEEN_FRAMES
        found = _alike(heads, head, len(_BETWEEN_FRAMES), count)
        self._hoped_mixed = min(MOST, 2 * count) if found == count else max(LEAST, found)
        if found < LEAST:
            return []
        del records[found:]
        # Both headers' lengths must be the record's own; any other one is rogue, which is for the
        # plain path to say.
        expected = _words_of(found).pack
        lengths = [length for _, length in records]
        if (
            expected(*[length - link.IP for length in lengths]) != ip_lengths[: 2 * found]
            or expected(*[length - link.UDP for length in lengths]) != udp_lengths[: 2 * found]
            or not self._passes(pattern, columns, found, max(lengths), now)
        ):
            # The plain path takes one record, and the others come here again.
            self._hoped_mixed = LEAST
            return []
        before = PREFIX + link.HEADERS
        stream.at = records[-1][0] + PREFIX + lengths[-1]
        return [view[at + before : at + PREFIX + length] for at, length in records]

    def _passes(
        self, pattern: _Pattern, columns: _Columns, count: int, longest: int, now: float
    ) -> bool:
        # The cheap checks first. `sends` comes last, since it notes what it allows.
        first = int.from_bytes(columns.counters[:8], "little")
        return (
            _rise(columns.counters[: 8 * count], first, count)
            and _sum_to(pattern.checksum, columns.summed, count)
            and self._sessions.sends(pattern.receiver, first, count, longest - link.HEADERS, now)
        )


class _Columns:
    """The fields that may differ, copied out of ``heads`` and set to zero there."""

    __slots__ = ("count", "counters", "summed", "words")

    def __init__(self, heads: bytearray, skipped: int, count: int) -> None:
        # Cut to whole 64-bit words; the last one is the last head's counter.
        rest = memoryview(heads)[skipped : count * STEP - 8 + skipped]
        self.count = count
        self.words, counters = rest.cast("H"), rest.cast("Q")
        self.summed = [self.words[column].tobytes() for column in _SUMMED]
        self.counters = counters[_COUNTERS].tobytes()
        counters[_COUNTERS] = _NO_COUNTERS[:count]
        for column in _FREE:
            self.words[column] = _NO_WORDS[:count]

    def lift(self, column: slice) -> bytes:
        """Copy out one more column, and set it to zero."""
        lifted = self.words[column].tobytes()
        self.words[column] = _NO_WORDS[: self.count]
        return lifted


def _alike(heads: bytearray, head: bytes, between: int, count: int) -> int:
    """The number of the first heads that are ``head``; it ends with the bytes ``between`` heads."""
    if heads == (head * count)[:-between]:
        return count
    # The usual run is whole. Otherwise bisect: a comparison in C of half the heads costs less than
    # a loop in Python over a few.
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
    """Whether the counters are ``first``, ``first`` + 1, and so on."""
    # The lanes don't carry into each other below 2**64, and a session stays far below: its counter
    # may jump by 2**32 at most.
    return int.from_bytes(counters, "little") == _RISING[count] + first * _ONE_EACH_64[count]


def _sum_to(wanted: int, columns: list[bytes], count: int) -> bool:
    """Whether each row of words adds up to ``wanted`` modulo 65535.

    The words become lanes of 32 bits, even rows first, then odd ones, so that a sum of four words
    carries into no other lane. 65535 - ``wanted`` makes a right sum a positive multiple of 65535,
    and adding the high half to the low half makes that 65535 itself.
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
