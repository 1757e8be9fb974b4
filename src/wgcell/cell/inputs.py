"""Inputs, packed into the plain tar that the guest gets as a read-only disk.

Each input appears under its last component. What is packed is what the person named and nothing a
link could smuggle in: a symbolic link is kept as a link if it stays inside its input, and refused
if it leads out. The order is sorted and owners are 0, so the same inputs make the same bytes.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from wgcell.errors import InputFileError, StateError

__all__ = ["MOST_BYTES", "MOST_MEMBERS", "check", "pack"]

MOST_BYTES = 16 * 2**30
"""Bytes all inputs may have together."""
MOST_MEMBERS = 1_000_000
_SECTOR = 512

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def check(inputs: Sequence[Path], most_bytes: int = MOST_BYTES) -> None:
    """Look at every input before anything starts. Raises `InputFileError` as `pack` does."""
    for _ in _walk_all(inputs, most_bytes):
        pass


def pack(inputs: Sequence[Path], destination: Path, most_bytes: int = MOST_BYTES) -> int:
    """Write the inputs' tar to ``destination`` (made anew, mode 0600); return its bytes.

    Raises `InputFileError` for an input that is missing, unreadable, a device, pipe or socket, a
    link leading out, or over ``most_bytes`` together; `StateError` if the tar can't be written.
    Nothing is left at ``destination`` after an error.
    """
    members = list(_walk_all(inputs, most_bytes))
    try:
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StateError(f"can't write {destination}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(members, file)
            size = file.seek(0, os.SEEK_END)
            size += -size % _SECTOR
            file.truncate(size)
        return size
    except BaseException as error:
        destination.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StateError(f"can't write {destination}: {error.strerror or error}") from None
        raise


def _walk_all(inputs: Sequence[Path], most_bytes: int) -> Iterator[tuple[Path, str]]:
    total = 0
    count = 0
    for top in inputs:
        for path, name in _walk(top, top, top.name):
            try:
                status = path.lstat()
            except OSError as error:
                raise InputFileError(f"input {path}: {error.strerror}") from None
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
            count += 1
            if total > most_bytes or count > MOST_MEMBERS:
                raise InputFileError(
                    f"inputs are over the limit at {path}: {most_bytes} bytes, "
                    f"{MOST_MEMBERS} files",
                    mend="name less in inputs, or let the workload fetch it through the tunnel",
                )
            yield path, name


def _walk(top: Path, path: Path, name: str) -> Iterator[tuple[Path, str]]:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise InputFileError(f"input {path}: {error.strerror}") from None
    for is_kind, what in _KINDS:
        if is_kind(mode):
            raise InputFileError(f"input {path} is {what}; allowed: files, folders, links inside")
    if stat.S_ISLNK(mode):
        _vet_link(top, path)
    yield path, name
    if stat.S_ISDIR(mode):
        try:
            entries = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise InputFileError(f"input {path}: {error.strerror}") from None
        for entry in entries:
            yield from _walk(top, path / entry, f"{name}/{entry}")


def _vet_link(top: Path, path: Path) -> None:
    """Refuse a link that leads out of its input's folder, directly or through other links."""
    # A link named as an input itself may only lead to something beside it.
    folder = (top if path != top else top.parent).resolve()
    target = path.readlink()
    try:
        leads_to = path.resolve(strict=False)
    except (OSError, RuntimeError):
        raise InputFileError(f"input {path} is a symbolic link that goes in a circle") from None
    if target.is_absolute() or not leads_to.is_relative_to(folder):
        raise InputFileError(
            f"input {path} is a symbolic link out of its folder, to {target}",
            mend="name the file it points to",
        )
    if path == top and not leads_to.exists():
        raise InputFileError(f"input {path} is a symbolic link to nothing: {target}")


def _write(members: Sequence[tuple[Path, str]], file: BinaryIO) -> None:
    tops = {name for _, name in members if "/" not in name}
    # GNU's format for long names, and not pax: busybox's tar skips pax headers, and cuts the name.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, name in members:
            # A link that is itself an input would dangle in /work: what it leads to is packed.
            _add(tar, path.resolve() if name in tops and path.is_symlink() else path, name)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    try:
        # O_NOFOLLOW and fstat: what was vetted as a file must still be one when it is read.
        status = path.lstat()
        info.mode = stat.S_IMODE(status.st_mode) & 0o777
        info.mtime = int(status.st_mtime)
        if stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
            tar.addfile(info)
            return
        if stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputFileError(f"input {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputFileError(f"input {path} changed while it was read")
        info.size = status.st_size
        try:
            tar.addfile(info, source)
        except OSError as error:
            if "end of data" in str(error):
                raise InputFileError(f"input {path} shrank while it was read") from None
            raise
