"""A tar from a guest that is assumed hostile, read strictly. No file is written here.

Only what wgcell's own guest sends is accepted: busybox tar's GNU format with files, folders,
symbolic and hard links, and GNU's two headers for long names. A pax header, a sparse map or any
other kind ends the reading at its header, before a byte of it is read: each of them lets a few
bytes of tar take much of the host's memory or processor time. `tarfile` parses one 512-byte header
at a time and nothing else: its own reading accepts a tar that was cut between two members. Here a
tar is whole only with the two zero blocks that end it, and nothing behind them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from wgcell.errors import ArchiveError

__all__ = ["BLOCK", "CHUNK", "LONGEST_NAME", "TarStream", "headers"]

LONGEST_NAME = 4095
"""Bytes; Linux's PATH_MAX without its NUL."""
CHUNK = 1 << 20
"""Bytes that are read at once, at most."""
BLOCK = 512
_ZEROS = bytes(BLOCK)
_LONG = {tarfile.GNUTYPE_LONGNAME: "name", tarfile.GNUTYPE_LONGLINK: "linkname"}
_TYPES = frozenset(
    (
        *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
        *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
    )
)


class TarStream:
    """A tar's bytes, read once from front to back, and no more than ``limit`` of them."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the stream's end. Raises `ArchiveError`."""
        try:
            data = self._stream.read(size)
        except OSError as error:
            raise ArchiveError(f"the stream broke: {error.strerror or error}") from None
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError("the stream is longer than its limit")
        return data

    def exactly(self, size: int) -> bytes:
        """``size`` bytes, a small number. Raises `ArchiveError` if the stream ends before."""
        data = self.read(size)
        while len(data) < size:
            more = self.read(size - len(data))
            if not more:
                raise ArchiveError("the tar is cut short")
            data += more
        return data

    def contents(self, size: int) -> Iterator[bytes]:
        """A member's ``size`` bytes in pieces. Its padding is read at the end, and not yielded."""
        left = size
        while left:
            data = self.read(min(left, CHUNK))
            if not data:
                raise ArchiveError("the tar is cut short")
            left -= len(data)
            yield data
        self.exactly(-size % BLOCK)

    def finish(self) -> None:
        """Read to the stream's end. Raises `ArchiveError` for anything but zeros."""
        while data := self.read(CHUNK):
            if data.count(0) != len(data):
                raise ArchiveError("there is something behind the tar's end")


def headers(stream: TarStream) -> Iterator[tarfile.TarInfo]:
    """Each member's header, up to the end mark.

    The caller reads a member's `TarStream.contents` before it takes the next header. Raises
    `ArchiveError` for all that the guest's tar does not write.
    """
    long: dict[str, str] = {}
    while (block := stream.exactly(BLOCK)) != _ZEROS:
        header = _parsed(block)
        if field := _LONG.get(header.type):
            if field in long:
                raise ArchiveError("a long name that is given twice")
            long[field] = _long_name(stream, header.size)
            continue
        if header.type not in _TYPES:
            raise ArchiveError(f"a member of the type {header.type!r}, which the guest never sends")
        if header.size < 0 or (header.size and not header.isreg()):
            raise ArchiveError("a member with an impossible size")
        header.name = long.pop("name", header.name)
        header.linkname = long.pop("linkname", header.linkname)
        yield header
    if stream.exactly(BLOCK) != _ZEROS:
        raise ArchiveError("the tar's end mark is half of one")
    if long:
        raise ArchiveError("a long name without a member")


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise ArchiveError(f"not a readable tar: {type(error).__name__}") from None


def _long_name(stream: TarStream, size: int) -> str:
    """The name that is the content of one of GNU's two headers."""
    if not 0 < size <= LONGEST_NAME + 1:
        raise ArchiveError("a long name that is too long")
    raw = b"".join(stream.contents(size))
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
