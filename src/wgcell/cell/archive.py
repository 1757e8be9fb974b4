"""The outputs' tar, from a guest that is assumed hostile, unpacked member by member.

This runs in a process of its own, which is confined to one folder (`wgcell.cell.unpacker`).

Only what wgcell's own guest sends is accepted: busybox tar's GNU format with files, folders,
symbolic and hard links, and GNU's two headers for long names. A pax header, a sparse map or any
other kind ends the unpacking at its header, before a byte of it is read: each of them lets a few
bytes of tar take much of the host's memory or processor time. `tarfile` parses one 512-byte header
at a time and nothing else: its own reading takes a tar that was cut between two members for a
whole one. Here a tar is whole only with the two zero blocks that end it, and nothing behind them.

Members are written by hand. Folders are opened one component at a time without following links,
files are made with O_EXCL: nothing can be overwritten, followed or made outside ``destination``.
A refused member is skipped and counted under its reason, and what was good stays.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import BinaryIO

from wgcell.cell.counts import Counted, Counts
from wgcell.cell.globs import Pattern, components
from wgcell.errors import ArchiveError

__all__ = ["MOST_MEMBERS", "Reason", "Refused", "Rules", "Unpacked", "unpack", "vetted"]

MOST_MEMBERS = 100_000
_LONGEST_NAME = 4095
"""Bytes; Linux's PATH_MAX without its NUL."""
_LONGEST_COMPONENT = 255
_DEEPEST = 256
"""Folders within each other; a descriptor is held for each of the current path's."""
_LATEST = 2**34 - 2**31 - 1
"""Seconds since 1970: the last that ext4 can store, in 2446."""
_CHUNK = 1 << 20
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LONG = {tarfile.GNUTYPE_LONGNAME: "name", tarfile.GNUTYPE_LONGLINK: "linkname"}


class Reason(StrEnum):
    """Why a member did not come home: all that there are."""

    OVER_LIMIT = "it goes over the limit of bytes"
    NO_NAME = "a file without a name"
    UNASKED = "not an output that was asked for"
    OVERWRITES = "it would overwrite another member"
    NO_FOLDER = "a file stands where its folder should be"
    NO_SOURCE = "a hard link to a file that did not come"
    ABSOLUTE = "an absolute path"
    ODD = "its name holds control characters, or is not UTF-8"
    CLIMBS = "its path climbs out with .."
    TOO_LONG = "its name is too long"
    TOO_DEEP = "its folders are nested too deeply"
    FILE_SYSTEM = "this machine's file system does not take its name"
    # Of what has no content:
    LEADS_OUT = "a link that leads out of the outputs"
    CHARACTER_DEVICE = "a character device"
    BLOCK_DEVICE = "a block device"
    PIPE = "a named pipe"


_LEFT_OUT = {
    tarfile.CHRTYPE: Reason.CHARACTER_DEVICE,
    tarfile.BLKTYPE: Reason.BLOCK_DEVICE,
    tarfile.FIFOTYPE: Reason.PIPE,
}
"""Kinds without content of their own."""
_WRITTEN = frozenset(
    (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
)
_NO_SUCH_NAME = frozenset((errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of a tar."""

    files: int
    folders: int
    links: int
    bytes: int
    """Of the files' contents, hard links counted each."""
    refusals: tuple[Counted, ...]
    """Members with content that did not come home."""
    left_out: tuple[Counted, ...]
    """Members without content: pipes, devices, and links that lead out of the outputs."""
    missing: tuple[str, ...]
    """The patterns that were asked for, and of which nothing came."""
    stopped: str
    """What ended the unpacking before the tar's end; empty if it was read to its end."""

    @property
    def complete(self) -> bool:
        """Whether the whole tar was read, to its end mark and the stream's end."""
        return not self.stopped

    @property
    def refused(self) -> int:
        """How many members were refused."""
        return sum(counted.count for counted in self.refusals)


def unpack(
    stream: BinaryIO,
    root: int,
    limit_bytes: int,
    limit_members: int = MOST_MEMBERS,
    allowed: Sequence[str | Pattern] = (),
    known_links: frozenset[tuple[str, str]] = frozenset(),
) -> Unpacked:
    """Unpack a tar stream into the folder whose descriptor ``root`` is; it stays the caller's.

    ``allowed`` are the outputs that were asked for: a member that none of them covers is refused,
    but for the folders above one. ``limit_bytes`` bounds the files' contents, ``limit_members``
    the members. ``known_links`` are pairs of a path and a link's target that need no mention if
    they are refused: links that went into the guest like that.

    Neither the stream's bytes nor an `ArchiveError` that it raises are raised here: they are in
    what is returned. Raises OSError if the folder can't be written, ValueError if a pattern is
    none.
    """
    patterns = [one if isinstance(one, Pattern) else Pattern.parse(one) for one in allowed]
    work = _Unpacking(os.dup(root), limit_bytes, patterns, known_links)
    # A member takes at most two long names beside its own header, and padding.
    bounded = _Stream(stream, limit_bytes + limit_members * (3 * _LONGEST_NAME) + 20 * _BLOCK)
    stopped = ""
    with ExitStack() as folders:
        folders.callback(work.close)
        try:
            for number, header in enumerate(_headers(bounded), start=1):
                if number > limit_members:
                    raise ArchiveError(f"more than {limit_members} members")
                work.take(header, bounded)
            bounded.finish()
        except ArchiveError as error:
            stopped = error.message
    return work.result(stopped)


class _Asked:
    """The outputs that were asked for. A look-up takes no longer the more of them are spelled out;
    only those with wildcards are gone through."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns
        self._globs = [one for one in patterns if one.is_glob]
        self._spelled = {one.parts: one for one in patterns if not one.is_glob}
        self._above = {parts[:end] for parts in self._spelled for end in range(len(parts))}
        self._longest = max(map(len, self._spelled), default=0)
        self._arrived: set[Pattern] = set()

    def covering(self, parts: tuple[str, ...]) -> Iterator[Pattern]:
        """Each that names ``parts``, or a folder above."""
        for end in range(min(len(parts), self._longest) + 1):
            if (one := self._spelled.get(parts[:end])) is not None:
                yield one
        for one in self._globs:
            if one.covers(parts):
                yield one

    def covers(self, parts: tuple[str, ...]) -> bool:
        """Whether one names ``parts``, or a folder above."""
        return next(self.covering(parts), None) is not None

    def leads_to(self, parts: tuple[str, ...]) -> bool:
        """Whether ``parts`` is a folder above one of them."""
        return parts in self._above or any(one.leads_to(parts) for one in self._globs)

    def arrived(self, parts: tuple[str, ...]) -> None:
        """Something came of those that cover ``parts``."""
        self._arrived.update(self.covering(parts))

    def missing(self) -> Iterator[str]:
        """Those of which nothing came, as `Pattern` writes them."""
        return (str(one) for one in self._patterns if one not in self._arrived)


class _Stream:
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
        """``size`` bytes, a small number. Raises `ArchiveError` where the stream ends before."""
        data = self.read(size)
        while len(data) < size:
            more = self.read(size - len(data))
            if not more:
                raise ArchiveError("the tar is cut short")
            data += more
        return data

    def contents(self, size: int) -> Iterator[bytes]:
        """A member's ``size`` bytes in pieces, and then its padding, read away."""
        left = size
        while left:
            data = self.read(min(left, _CHUNK))
            if not data:
                raise ArchiveError("the tar is cut short")
            left -= len(data)
            yield data
        self.exactly(-size % _BLOCK)

    def finish(self) -> None:
        """Read what is behind the end mark: zeros up to the stream's end."""
        while data := self.read(_CHUNK):
            if data.count(0) != len(data):
                raise ArchiveError("there is something behind the tar's end")


def _headers(stream: _Stream) -> Iterator[tarfile.TarInfo]:
    """Each member's header, up to the end mark. Who takes one reads its contents before the next.

    Raises `ArchiveError` for all that the guest's tar does not write.
    """
    long: dict[str, str] = {}
    while True:
        block = stream.exactly(_BLOCK)
        if block == _ZEROS:
            if stream.exactly(_BLOCK) != _ZEROS:
                raise ArchiveError("the tar's end mark is half of one")
            if long:
                raise ArchiveError("a long name without a member")
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise ArchiveError(f"not a readable tar: {type(error).__name__}") from None
        if field := _LONG.get(header.type):
            if field in long or not 0 < header.size <= _LONGEST_NAME + 1:
                raise ArchiveError("a long name that is too long, or given twice")
            raw = b"".join(stream.contents(header.size))
            long[field] = raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            continue
        if header.type not in _WRITTEN and header.type not in _LEFT_OUT:
            raise ArchiveError(f"a member of the type {header.type!r}, which the guest never sends")
        if header.size < 0 or (header.size and not header.isreg()):
            raise ArchiveError("a member with an impossible size")
        header.name = long.pop("name", header.name)
        header.linkname = long.pop("linkname", header.linkname)
        yield header


class _Passed(Exception):
    """A member that is not written."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Refused(_Passed):
    """One with content."""


class _LeftOut(_Passed):
    """One without content of its own."""


class Rules:
    """Where a member may be written, and where a link may lead.

    The unpacking holds the tar to them, and `wgcell.cell.inspection` the unpacking.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.asked = _Asked(patterns)

    def admit(self, parts: tuple[str, ...], *, is_folder: bool) -> None:
        """Nothing, if a member may be there. Raises `Refused`."""
        if not parts and not is_folder:
            raise Refused(Reason.NO_NAME)
        if not (self.asked.covers(parts) or (is_folder and self.asked.leads_to(parts))):
            raise Refused(Reason.UNASKED)

    def link_refused(self, parts: tuple[str, ...], target: str) -> Reason | None:
        """Whether a symbolic link at ``parts`` may not lead to an output, whatever other links are
        on its way.

        ``..`` may only come first: there it climbs real folders, those above the link. Behind a
        name it would climb out of wherever a link of that name leads.
        """
        if not target or target.startswith("/") or _is_odd(target):
            return Reason.LEADS_OUT
        steps = components(target)
        up = 0
        while up < len(steps) and steps[up] == "..":
            up += 1
        if ".." in steps[up:] or up > len(parts) - 1 or len(target) > _LONGEST_NAME:
            return Reason.LEADS_OUT
        leads_to = parts[: len(parts) - 1 - up] + steps[up:]
        return None if self.asked.covers(leads_to) else Reason.LEADS_OUT


@dataclass(slots=True)
class _Open:
    """A folder on the way to the current one; what its mode and time become when it is left."""

    name: str
    descriptor: int
    final: tuple[int, int] | None = None

    def close(self) -> None:
        try:
            if self.final is not None:
                mode, mtime = self.final
                os.fchmod(self.descriptor, mode)
                os.utime(self.descriptor, (mtime, mtime))
        finally:
            os.close(self.descriptor)


class _Unpacking:
    """One unpacking's counts, the folders it is in, and its rules."""

    def __init__(
        self,
        root: int,
        limit_bytes: int,
        patterns: Sequence[Pattern],
        known_links: frozenset[tuple[str, str]],
    ) -> None:
        self._path = [_Open("", root)]
        self._limit_bytes = limit_bytes
        self._rules = Rules(patterns)
        self._known_links = known_links
        self._files = 0
        self._folders = 0
        self._links = 0
        self._bytes = 0
        self._refused = Counts()
        self._left_out = Counts()

    def take(self, header: tarfile.TarInfo, stream: _Stream) -> None:
        """Write one member, or count why not. Raises `ArchiveError` to end it all, OSError."""
        contents = stream.contents(header.size)
        try:
            parts = self._judged(header)
            try:
                self._write(header, parts, contents)
            except OSError as error:
                if error.errno in _NO_SUCH_NAME:
                    raise Refused(Reason.FILE_SYSTEM) from None
                raise
        except Refused as refused:
            self._refused.add(refused.reason, header.name)
            if refused.reason is Reason.OVER_LIMIT:
                raise ArchiveError("the outputs are larger than their limit") from None
        except _LeftOut as left_out:
            if (header.name, header.linkname) not in self._known_links:
                self._left_out.add(left_out.reason, header.name)
        else:
            self._rules.asked.arrived(parts)
        for _ in contents:
            pass

    def close(self) -> None:
        """Leave all folders: they get the modes and times of the tar. Raises OSError."""
        with ExitStack() as folders:
            for folder in self._path:
                folders.callback(folder.close)
        self._path.clear()

    def result(self, stopped: str) -> Unpacked:
        return Unpacked(
            files=self._files,
            folders=self._folders,
            links=self._links,
            bytes=self._bytes,
            refusals=tuple(self._refused),
            left_out=tuple(self._left_out),
            missing=tuple(dict.fromkeys(self._rules.asked.missing())),
            stopped=stopped,
        )

    def _judged(self, header: tarfile.TarInfo) -> tuple[str, ...]:
        """The member's components, if it may be written. Looks at its header only."""
        parts = vetted(header.name)
        header.name = "/".join(parts)
        self._rules.admit(parts, is_folder=header.isdir())
        if header.type in _LEFT_OUT:
            raise _LeftOut(_LEFT_OUT[header.type])
        if header.issym() and (leads := self._rules.link_refused(parts, header.linkname)):
            raise _LeftOut(leads)
        if header.isreg():
            self._afford(header.size)
        return parts

    def _afford(self, size: int) -> None:
        if self._bytes + size > self._limit_bytes:
            raise Refused(Reason.OVER_LIMIT)

    def _write(
        self, header: tarfile.TarInfo, parts: tuple[str, ...], contents: Iterator[bytes]
    ) -> None:
        mtime = min(max(int(header.mtime), 0), _LATEST)
        if header.isdir():
            self._enter(parts)
            # Its owner can always delete what is in it.
            self._path[-1].final = ((header.mode & 0o777) | 0o700, mtime)
            return
        folder = self._enter(parts[:-1])
        name = parts[-1]
        try:
            if header.issym():
                os.symlink(header.linkname, name, dir_fd=folder)
                with suppress(PermissionError):  # where nothing may be set by a name
                    os.utime(name, (mtime, mtime), dir_fd=folder, follow_symlinks=False)
                self._links += 1
                return
            if header.islnk():
                with self._linked(header.linkname) as linked:
                    contents = iter(partial(linked.read, _CHUNK), b"")
                    self._file(folder, name, header.mode, mtime, contents)
                return
            self._file(folder, name, header.mode, mtime, contents)
        except FileExistsError:
            raise Refused(Reason.OVERWRITES) from None

    def _file(
        self, folder: int, name: str, mode: int, mtime: int, contents: Iterator[bytes]
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            size = 0
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for data in contents:
                    size += len(data)
                    self._afford(size)
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                # No setuid, setgid or sticky bit; its owner can always read it.
                os.fchmod(descriptor, (mode & 0o777) | 0o400)
                os.utime(descriptor, (mtime, mtime))
        except BaseException:
            # Half a file looks like a whole one to whoever comes for it.
            os.unlink(name, dir_fd=folder)
            raise
        self._files += 1
        self._bytes += size

    def _linked(self, linkname: str) -> io.FileIO:
        """The contents of the file that a hard link names: one of those written before."""
        descriptor = os.dup(self._path[0].descriptor)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            for part in vetted(linkname):
                below = os.open(part, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return os.fdopen(os.dup(descriptor), "rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        finally:
            os.close(descriptor)
        raise Refused(Reason.NO_SOURCE)

    def _enter(self, parts: Sequence[str]) -> int:
        """A descriptor of that folder, made where it is missing. It stays this object's."""
        shared = 0
        for folder, part in zip(self._path[1:], parts, strict=False):
            if folder.name != part:
                break
            shared += 1
        while len(self._path) > shared + 1:
            self._path.pop().close()
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        for part in parts[shared:]:
            above = self._path[-1].descriptor
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=above)
                    self._folders += 1
                descriptor = os.open(part, flags, dir_fd=above)
            except NotADirectoryError:
                raise Refused(Reason.NO_FOLDER) from None
            self._path.append(_Open(part, descriptor))
        return self._path[-1].descriptor


def _is_odd(name: str) -> bool:
    return not name.isprintable() and any(
        ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name
    )


def vetted(name: str) -> tuple[str, ...]:
    """A member's components, if they may be a path here. Pure. Raises `Refused`."""
    if name.startswith("/"):
        raise Refused(Reason.ABSOLUTE)
    if _is_odd(name):
        raise Refused(Reason.ODD)
    parts = components(name)
    if ".." in parts:
        raise Refused(Reason.CLIMBS)
    lengths = [len(part) if part.isascii() else len(os.fsencode(part)) for part in parts]
    if sum(lengths) + len(lengths) > _LONGEST_NAME or max(lengths, default=0) > _LONGEST_COMPONENT:
        raise Refused(Reason.TOO_LONG)
    if len(parts) > _DEEPEST:
        raise Refused(Reason.TOO_DEEP)
    return parts
