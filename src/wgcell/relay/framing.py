"""QEMU's stream: each frame behind its length, 4 bytes big-endian (``-netdev stream``).

One buffer, read into at once as far as there is room. A record cut off at its end moves to the
front before the next read, so in a steady stream records lie at multiples of their size, and what
was cut out of the buffer once can be cut out of it again: `Stream.cut`.
"""

from __future__ import annotations

import struct

__all__ = ["LONGEST_FRAME", "PREFIX", "Stream", "prefixed"]

LONGEST_FRAME = 65536 + 256
"""Bytes; QEMU itself never writes more. A longer length is no frame but a lie."""

PREFIX = 4
_LENGTH = struct.Struct(">I")

BUFFER = 1 << 18
CUTS_KEPT = 8
"""Sizes of record whose views are kept: a view costs 200 bytes, and 0.1 µs to make."""
CUT_MOST = 256


def prefixed(frame: bytes) -> bytes:
    """``frame`` as it goes to QEMU."""
    return _LENGTH.pack(len(frame)) + frame


class Stream:
    """The buffer. ``at`` and ``end`` delimit what was read and not yet taken."""

    def __init__(self) -> None:
        self.raw = bytearray(BUFFER)
        self.view = memoryview(self.raw)
        self.at = 0
        self.end = 0
        self._cuts: dict[tuple[int, int], list[memoryview]] = {}

    def room(self) -> memoryview:
        """The place for the next bytes. Every view that was cut out of the buffer before is void
        now."""
        left = self.end - self.at
        if self.at:
            # Through a copy: the two may overlap.
            self.view[:left] = bytes(self.view[self.at : self.end])
            self.at, self.end = 0, left
        return self.view[left:]

    def length(self) -> int | None:
        """The length of the next record's frame, in bytes; None if the record is not whole yet.

        0 or more than LONGEST_FRAME is a lie, and ends the stream for its reader.
        """
        have = self.end - self.at
        if have < PREFIX:
            return None
        found: int = _LENGTH.unpack_from(self.view, self.at)[0]
        if have < PREFIX + found and 0 < found <= LONGEST_FRAME:
            return None
        return found

    def alike(self, length: int, most: int) -> int:
        """How many whole records of that length may stand here, judged by the last one's prefix.

        A guess, to spare a closer look: 0 means that ``most`` are not there.
        """
        last = self.at + (most - 1) * (PREFIX + length)
        if last + PREFIX + length > self.end:
            return 0
        return most if _LENGTH.unpack_from(self.view, last)[0] == length else 0

    def alone(self, length: int) -> bool:
        """Whether not even the length of the record behind the next one is there."""
        return self.at + PREFIX + length + PREFIX > self.end

    def records(self, most: int, shortest: int, longest: int) -> list[tuple[int, int]]:
        """The places of the next whole records, and the length of each one's frame.

        At most so many, up to the first whose frame is shorter or longer than that.
        """
        found: list[tuple[int, int]] = []
        view, at, end = self.view, self.at, self.end - PREFIX
        unpack = _LENGTH.unpack_from
        while at <= end and len(found) < most:
            (length,) = unpack(view, at)
            if not shortest <= length <= longest or at + length > end:
                break
            found.append((at, length))
            at += PREFIX + length
        return found

    def cut(self, stride: int, behind: int, count: int) -> list[memoryview]:
        """The bytes ``behind`` the start of each of ``count`` records of ``stride`` bytes from here
        on."""
        first, odd = divmod(self.at, stride)
        if odd or first + count > CUT_MOST:
            view, start, stop = self.view, self.at + behind, self.at + stride
            return [view[start + n : stop + n] for n in range(0, count * stride, stride)]
        kept = self._cuts.get((stride, behind))
        if kept is None:
            if len(self._cuts) >= CUTS_KEPT:
                self._cuts.clear()
            kept = self._cuts[stride, behind] = []
        for n in range(len(kept), first + count):
            kept.append(self.view[n * stride + behind : (n + 1) * stride])
        return kept[first : first + count]
