"""Inputs, packed into the plain tar that the guest gets as a read-only disk.

The order is sorted and owners are 0, so the same inputs make the same bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from wgcell.cell.counts import shown
from wgcell.cell.excludes import Excludes
from wgcell.cell.inputs import BENEATH, Input, reason
from wgcell.cell.tarstream import BLOCK, CHUNK
from wgcell.cell.walk import Found, Walk
from wgcell.errors import InputFileError, StateError

__all__ = ["MOST_BYTES", "Budget", "pack", "write"]

MOST_BYTES = 16 * 2**30
"""Bytes of the inputs' tar, by default: the files' contents, and a header for each."""
_CHANGED = "changed while it was read"


def pack(
    inputs: Sequence[Input],
    destination: Path,
    most_bytes: int = MOST_BYTES,
    excludes: Sequence[str] = (),
) -> int:
    """Write the inputs' tar to ``destination``, a new file of mode 0600; return its bytes.

    Raises `InputFileError` as `write` does; `StateError` if the tar can't be written. No file is
    left at ``destination`` after an error.
    """
    try:
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StateError(f"can't write {destination}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            # An input may hold the cell's own folder, and with it the tar that is being written.
            own = destination.parent.stat()
            write(inputs, file, most_bytes, excludes, skipped=(own.st_dev, own.st_ino))
            size = file.seek(0, os.SEEK_END)
            size += -size % BLOCK
            file.truncate(size)
        return size
    except BaseException as error:
        destination.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StateError(f"can't write {destination}: {error.strerror or error}") from None
        raise


def write(
    inputs: Sequence[Input],
    file: BinaryIO,
    most_bytes: int = MOST_BYTES,
    excludes: Sequence[str] = (),
    *,
    skipped: tuple[int, int] | None = None,
    ignore_files: bool = True,
) -> None:
    """Write the inputs' tar to ``file``, which stays open.

    ``skipped`` is the device and inode of a folder that is left out; ``ignore_files``: an input's
    own ignore file counts. Raises OSError if ``file``
    can't be written; `InputFileError` for an input that is missing, unreadable, in a circle of
    links, outside the folder that must contain it, changed while it is read, or over ``most_bytes``
    together with the others.
    """
    walk = Walk(Excludes(excludes, "--exclude"), skipped, ignore_files=ignore_files)
    budget = Budget(most_bytes)
    # GNU's format for long names, and not pax: busybox's tar skips pax headers, and cuts the name.
    with tarfile.TarFile(
        fileobj=file, mode="w", format=tarfile.GNU_FORMAT, copybufsize=CHUNK
    ) as tar:
        for found in walk.all(inputs):
            tar.members = []  # type: ignore[attr-defined]  # not kept: there may be a million
            _add(tar, found, walk, budget)
        walk.finish()


class Budget:
    """The bytes of a tar, added up before they are written."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.spent = tarfile.RECORDSIZE  # the end mark, and its padding

    def add(self, path: str, size: int, *names: str) -> None:
        """Add one member and its names. Raises `InputFileError` for a sum over the limit."""
        self.spent += BLOCK + _padded(size)
        for name in names:
            if len(name) >= tarfile.LENGTH_NAME / 4:  # a character is at most four bytes
                self.spent += BLOCK + _padded(4 * len(name) + 1)
        if self.spent > self._most:
            raise InputFileError(
                f"inputs are over the limit at {shown(path)}: together they take more than the "
                f"{self._most} bytes of the cell's disk",
                hint="give it more with --disk, or leave some out with --exclude",
            )


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _add(tar: tarfile.TarFile, found: Found, walk: Walk, budget: Budget) -> None:
    info = tarfile.TarInfo(found.name)
    info.mode = stat.S_IMODE(found.status.st_mode) & 0o777
    info.mtime = max(int(found.status.st_mtime), 0)
    if stat.S_ISREG(found.status.st_mode):
        _add_file(tar, info, found, walk, budget)
        return
    budget.add(found.path, 0, found.name, found.target)
    is_link = stat.S_ISLNK(found.status.st_mode)
    info.type = tarfile.SYMTYPE if is_link else tarfile.DIRTYPE
    info.linkname = found.target
    tar.addfile(info)


def _add_file(
    tar: tarfile.TarFile, info: tarfile.TarInfo, found: Found, walk: Walk, budget: Budget
) -> None:
    try:
        # The file may have been replaced since the walk saw it: by a link (O_NOFOLLOW), by a pipe
        # (O_NONBLOCK, fstat), by a longer file (the budget is for the size that is read).
        flags = os.O_RDONLY | os.O_NONBLOCK | BENEATH
        descriptor = os.open(found.base, flags, dir_fd=found.folder)
    except OSError as error:
        walk.fail(found.path, _CHANGED if error.errno == errno.ELOOP else reason(error))
        return
    with os.fdopen(descriptor, "rb") as source:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            walk.fail(found.path, _CHANGED)
            return
        info.size = status.st_size
        budget.add(found.path, info.size, found.name)
        try:
            tar.addfile(info, source)
        except OSError as error:
            if "end of data" in str(error):
                raise InputFileError(
                    f"input {shown(found.path)} shrank while it was read"
                ) from None
            raise
