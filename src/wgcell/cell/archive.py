"""The outputs' tar, from a guest that is assumed hostile, unpacked member by member.

tarfile only parses here; nothing is extracted by it. Every member is judged by our own rules and
then written by hand: folders are opened one component at a time without following links, files
are made with O_EXCL, so nothing can be overwritten, followed or made outside ``destination``. A
refused member is skipped and reported, and what was good stays; a limit or a broken stream ends
the unpacking, also reported.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from wgcell.errors import ArchiveError, StateError

__all__ = ["Refusal", "Unpacked", "unpack"]

MOST_MEMBERS = 100_000
MOST_REFUSALS = 100
"""Refusals kept by name; further ones are only counted."""
_LONGEST_NAME = 1024
_LONGEST_COMPONENT = 255
_DEEPEST = 32
_CHUNK = 1 << 20
# A pax header or a GNU long name is read whole by tarfile, before any rule of ours sees it.
_LARGEST_HEADER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Refusal:
    """One member that was not unpacked: its name, with control characters escaped, and why."""

    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of a tar. ``complete`` is False if a limit or a broken stream ended it early."""

    files: int
    folders: int
    bytes: int
    refusals: tuple[Refusal, ...]
    refused: int
    complete: bool


class _Limited:
    """A read-only stream that raises past ``limit`` bytes, whatever a header promises."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._stream.read(size)
        except OSError as error:
            raise ArchiveError(f"the stream broke: {error.strerror or error}") from None
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError("the stream is longer than its limit")
        return data


class _Member(tarfile.TarInfo):
    """A TarInfo that refuses oversized extended headers before they are read into memory."""

    def _guarded(self, name: str, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size > _LARGEST_HEADER:
            raise ArchiveError("an extended header is too large")
        parent: Callable[[tarfile.TarFile], tarfile.TarInfo] = getattr(super(), name)
        return parent(tar)

    def _proc_gnulong(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return self._guarded("_proc_gnulong", tar)

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return self._guarded("_proc_pax", tar)

    def _proc_sparse(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        raise ArchiveError("a sparse member")


def unpack(
    stream: BinaryIO,
    destination: Path,
    limit_bytes: int,
    limit_members: int = MOST_MEMBERS,
    allowed: Sequence[str] = (),
) -> Unpacked:
    """Unpack a tar stream into ``destination``, a folder made here if need be (mode 0700).

    ``allowed`` are the outputs that were asked for, relative to /work: a member that is none of
    them, nor below one, nor a folder above one, is refused. Nothing of the stream raises; only
    `StateError` does, when ``destination`` can't be written.
    """
    try:
        destination.mkdir(mode=0o700, exist_ok=True)
        root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"can't write {destination}: {error.strerror}") from None
    work = _Unpacking(root, limit_bytes, limit_members, tuple(map(PurePosixPath, allowed)))
    # Headers and padding take at most 2 KiB a member beside the data itself.
    bounded = _Limited(stream, limit_bytes + 2048 * limit_members + 10240)
    complete = True
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, bounded),  # in stream mode tarfile only ever calls read
            mode="r|",
            tarinfo=_Member,
            errorlevel=2,
        ) as tar:
            complete = work.take(tar)
    except ArchiveError as error:
        work.refuse("(stream)", error.message)
        complete = False
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        # ValueError and its kin: tarfile lets some of a malformed header's errors through.
        work.refuse("(stream)", f"not a readable tar: {type(error).__name__}")
        complete = False
    except OSError as error:
        raise StateError(f"can't write {destination}: {error.strerror or error}") from None
    finally:
        os.close(root)
    return Unpacked(
        work.files, work.folders, work.bytes, tuple(work.refusals), work.refused, complete
    )


class _Unpacking:
    """One unpacking's counts, and its rules."""

    def __init__(
        self, root: int, limit_bytes: int, limit_members: int, allowed: tuple[PurePosixPath, ...]
    ) -> None:
        self._root = root
        self._limit_bytes = limit_bytes
        self._limit_members = limit_members
        self._allowed = allowed
        self.files = 0
        self.folders = 0
        self.bytes = 0
        self.refused = 0
        self.refusals: list[Refusal] = []

    def refuse(self, name: str, reason: str) -> None:
        self.refused += 1
        if len(self.refusals) < MOST_REFUSALS:
            shown = name[:200].encode("unicode_escape").decode("ascii")
            self.refusals.append(Refusal(shown, reason))

    def take(self, tar: tarfile.TarFile) -> bool:
        for number, member in enumerate(tar, start=1):
            # A stream of endless members must not fill the memory with their headers.
            tar.members = []  # type: ignore[attr-defined]
            if number > self._limit_members:
                self.refuse(member.name, f"more than {self._limit_members} members")
                return False
            reason = self._judge(member)
            if reason is None:
                reason = self._write(tar, member)
            if reason is None:
                continue
            self.refuse(member.name, reason)
            if reason == _OVER_LIMIT:
                return False
        return True

    def _judge(self, member: tarfile.TarInfo) -> str | None:
        """Why this member may not be unpacked, or None. Pure: looks at its header only."""
        name = member.name
        path = PurePosixPath(name)
        if not (member.isreg() or member.isdir()) or member.issparse():
            return _TYPES.get(member.type, "of an unknown type")
        if name.startswith("/"):
            return "an absolute path"
        if ".." in path.parts:
            return "its path climbs out with .."
        if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name):
            return "its name holds control characters, or is not UTF-8"
        encoded = [len(os.fsencode(part)) for part in path.parts]
        if (
            sum(encoded) + len(encoded) > _LONGEST_NAME
            or max(encoded, default=0) > _LONGEST_COMPONENT
        ):
            return "its name is too long"
        if len(encoded) > _DEEPEST:
            return "its folders are nested too deeply"
        if not path.parts:
            return None if member.isdir() else "a file without a name"
        if not self._asked_for(path, member.isdir()):
            return "not an output that was asked for"
        if member.isreg() and self.bytes + member.size > self._limit_bytes:
            return _OVER_LIMIT
        return None

    def _asked_for(self, path: PurePosixPath, is_folder: bool) -> bool:
        return any(
            path.is_relative_to(output) or (is_folder and output.is_relative_to(path))
            for output in self._allowed
        )

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
        parts = PurePosixPath(member.name).parts
        folder = self._folder(parts if member.isdir() else parts[:-1])
        if folder is None:
            return "a file stands where its folder should be"
        try:
            return None if member.isdir() else self._file(tar, member, folder, parts[-1])
        finally:
            os.close(folder)

    def _folder(self, parts: Sequence[str]) -> int | None:
        """A descriptor of that folder below the root, made where missing; None if it can't be."""
        descriptor = os.dup(self._root)
        for part in parts:
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                    self.folders += 1
                below = os.open(
                    part,
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                    dir_fd=descriptor,
                )
            except NotADirectoryError:
                os.close(descriptor)
                return None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            descriptor = below
        return descriptor

    def _file(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: int, name: str
    ) -> str | None:
        # Only the owner's execute bit survives of the guest's mode: no setuid, nothing for others.
        mode = 0o700 if member.mode & 0o100 else 0o600
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, mode, dir_fd=folder)
        except FileExistsError:
            return "it would overwrite another member"
        try:
            source = tar.extractfile(member)
            with os.fdopen(descriptor, "wb") as file:
                while source is not None and (data := source.read(_CHUNK)):
                    file.write(data)
                    self.bytes += len(data)
        except BaseException:
            # Half a file looks like a whole one to whoever comes for it.
            os.unlink(name, dir_fd=folder)
            raise
        self.files += 1
        return None


_OVER_LIMIT = "it goes over the limit of bytes"
_TYPES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
