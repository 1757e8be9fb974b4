"""A guest's tar, unpacked below one folder, member by member. The guest is assumed hostile.

The outputs are unpacked by this in a process that is confined to one folder
(`wgcell.cell.unpacker`). `wgcell.cell.tarstream` reads the tar, `wgcell.cell.members` has the rules
for names and links.

Members are written by hand. Folders are opened one component at a time without following links,
and files are made with O_EXCL: nothing can be overwritten, followed or made outside the folder. A
refused member is skipped and counted under its reason; the members before it stay.
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
from functools import partial
from typing import BinaryIO

from wgcell.cell.counts import Counted, Counts
from wgcell.cell.globs import Pattern
from wgcell.cell.members import MemberLeftOut, MemberRefused, MemberRules, Reason, vetted
from wgcell.cell.tarstream import BLOCK, CHUNK, LONGEST_NAME, TarStream, headers
from wgcell.errors import ArchiveError

__all__ = ["MOST_MEMBERS", "Unpacked", "unpack"]

MOST_MEMBERS = 100_000
_LATEST = 2**34 - 2**31 - 1
"""Seconds since 1970: the last that ext4 can store, in 2446."""
_NO_SUCH_NAME = frozenset((errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The result of one unpacking."""

    files: int
    folders: int
    links: int
    bytes: int
    """Of the files' contents; each hard link counts as a file."""
    refusals: tuple[Counted, ...]
    """Members with content that were not written."""
    left_out: tuple[Counted, ...]
    """Members without content: pipes, devices, and links that point out of the outputs."""
    missing: tuple[str, ...]
    """The patterns that were asked for, and that no member has met."""
    stopped: str
    """Why the unpacking ended before the tar's end; empty if the tar was read to its end."""

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
    """Unpack a tar stream into the folder with the descriptor ``root``; the caller closes that.

    ``allowed`` are the outputs that were asked for; ``.`` is every path. A member is refused if
    none of them covers it, except for the folders above one. ``limit_bytes`` bounds the files'
    contents, ``limit_members`` the members. ``known_links`` are pairs of a path and a link's
    target that are not counted if they are refused: the guest was given these links as inputs.

    An `ArchiveError` is not raised: it is `Unpacked.stopped`. Raises OSError if the folder can't be
    written, ValueError for a malformed pattern.
    """
    patterns = [one if isinstance(one, Pattern) else Pattern.parse(one) for one in allowed]
    work = _Unpacking(_Folders(os.dup(root)), limit_bytes, patterns, known_links)
    # A member takes at most two long names beside its own header, and padding.
    bounded = TarStream(stream, limit_bytes + limit_members * (3 * LONGEST_NAME) + 20 * BLOCK)
    stopped = ""
    with ExitStack() as at_end:
        at_end.callback(work.folders.close)
        try:
            for number, header in enumerate(headers(bounded), start=1):
                if number > limit_members:
                    raise ArchiveError(f"more than {limit_members} members")
                work.take(header, bounded)
            bounded.finish()
        except ArchiveError as error:
            stopped = error.message
    return work.result(stopped)


@dataclass(slots=True)
class _Folder:
    """An open folder; ``final`` are the mode and time that it gets when it is closed."""

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


class _Folders:
    """The open folders from the root to the current one. No link is followed on the way."""

    def __init__(self, root: int) -> None:
        """``root`` is this object's from now on."""
        self._path = [_Folder("", root)]
        self.made = 0

    def enter(self, parts: Sequence[str]) -> _Folder:
        """The folder at ``parts``, created where it is missing, and the current one from now on.

        It is open until another one is entered. Raises `MemberRefused` if a file is in its place.
        """
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
                    self.made += 1
                descriptor = os.open(part, flags, dir_fd=above)
            except NotADirectoryError:
                raise MemberRefused(Reason.NO_FOLDER) from None
            self._path.append(_Folder(part, descriptor))
        return self._path[-1]

    def written(self, parts: Sequence[str]) -> io.FileIO:
        """The file at ``parts``, open for reading: one that was written before.

        Raises `MemberRefused` if there is none.
        """
        descriptor = os.dup(self._path[0].descriptor)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            for part in parts:
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
        raise MemberRefused(Reason.NO_SOURCE)

    def close(self) -> None:
        """Close all folders, which get the modes and times of the tar. Raises OSError."""
        with ExitStack() as at_end:
            for folder in self._path:
                at_end.callback(folder.close)
        self._path.clear()


class _Unpacking:
    """One unpacking: the rules, and the counts so far."""

    def __init__(
        self,
        folders: _Folders,
        limit_bytes: int,
        patterns: Sequence[Pattern],
        known_links: frozenset[tuple[str, str]],
    ) -> None:
        self.folders = folders
        self._limit_bytes = limit_bytes
        self._rules = MemberRules(patterns)
        self._known_links = known_links
        self._files = 0
        self._links = 0
        self._bytes = 0
        self._refused = Counts()
        self._left_out = Counts()

    def take(self, header: tarfile.TarInfo, stream: TarStream) -> None:
        """Write one member, or count why it was not written.

        Raises `ArchiveError` to end the whole unpacking; OSError.
        """
        contents = stream.contents(header.size)
        try:
            parts = self._rules.judge(header)
            if header.isreg():
                self._afford(header.size)
            self._write(header, parts, contents)
        except MemberRefused as refused:
            self._refused.add(refused.reason, header.name)
            if refused.reason is Reason.OVER_LIMIT:
                raise ArchiveError("the outputs are larger than their limit") from None
        except MemberLeftOut as left_out:
            if (header.name, header.linkname) not in self._known_links:
                self._left_out.add(left_out.reason, header.name)
        else:
            self._rules.asked.arrived(parts)
        for _ in contents:
            pass  # the next header is behind what was not written

    def result(self, stopped: str) -> Unpacked:
        return Unpacked(
            files=self._files,
            folders=self.folders.made,
            links=self._links,
            bytes=self._bytes,
            refusals=tuple(self._refused),
            left_out=tuple(self._left_out),
            missing=tuple(dict.fromkeys(self._rules.asked.missing())),
            stopped=stopped,
        )

    def _afford(self, size: int) -> None:
        if self._bytes + size > self._limit_bytes:
            raise MemberRefused(Reason.OVER_LIMIT)

    def _write(
        self, header: tarfile.TarInfo, parts: tuple[str, ...], contents: Iterator[bytes]
    ) -> None:
        try:
            if header.isdir():
                # Its owner can always delete what is in it.
                mode = (header.mode & 0o777) | 0o700
                self.folders.enter(parts).final = (mode, _mtime(header))
            else:
                folder = self.folders.enter(parts[:-1])
                self._write_in(folder.descriptor, parts[-1], header, contents)
        except FileExistsError:
            raise MemberRefused(Reason.OVERWRITES) from None
        except OSError as error:
            if error.errno in _NO_SUCH_NAME:
                raise MemberRefused(Reason.FILE_SYSTEM) from None
            raise

    def _write_in(
        self, folder: int, name: str, header: tarfile.TarInfo, contents: Iterator[bytes]
    ) -> None:
        if header.issym():
            self._link(folder, name, header)
        elif header.islnk():
            with self.folders.written(vetted(header.linkname)) as linked:
                self._file(folder, name, header, iter(partial(linked.read, CHUNK), b""))
        else:
            self._file(folder, name, header, contents)

    def _link(self, folder: int, name: str, header: tarfile.TarInfo) -> None:
        os.symlink(header.linkname, name, dir_fd=folder)
        mtime = _mtime(header)
        with suppress(PermissionError):  # the seccomp filter may forbid calls with a name
            os.utime(name, (mtime, mtime), dir_fd=folder, follow_symlinks=False)
        self._links += 1

    def _file(
        self, folder: int, name: str, header: tarfile.TarInfo, contents: Iterator[bytes]
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
                os.fchmod(descriptor, (header.mode & 0o777) | 0o400)
                mtime = _mtime(header)
                os.utime(descriptor, (mtime, mtime))
        except BaseException:
            # A reader can't see that a file is half of one.
            os.unlink(name, dir_fd=folder)
            raise
        self._files += 1
        self._bytes += size


def _mtime(header: tarfile.TarInfo) -> int:
    return min(max(int(header.mtime), 0), _LATEST)
