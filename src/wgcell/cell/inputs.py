"""An input of a cell: a file, a folder, or a folder's contents; and how its path is opened.

An input appears in the working folder under its last component. One that ends in ``.`` or ``..``
brings its contents, as for ``cp -r``. An input that is itself a link brings the link's target; for
an input of a job file the target must lie in the job file's own folder. Links are resolved once.
From there on each folder is opened beneath the one before, without following links, so a link that
is swapped meanwhile changes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wgcell.cell.counts import shown
from wgcell.errors import InputFileError

__all__ = ["BENEATH", "CIRCLE", "Input", "opened", "opened_above", "reason"]

BENEATH = os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags of every open(2) below an input."""
CIRCLE = "is a symbolic link that goes in a circle"


@dataclass(frozen=True, slots=True)
class Input:
    """One input."""

    path: Path
    """Absolute."""
    contents: bool = False
    """Whether the folder's contents are meant, and not the folder under its name."""
    beneath: Path | None = None
    """The folder that must contain the input once all links are resolved; None is anywhere."""
    name: str = ""
    """What it is called in the tar; empty: by its own name."""

    @staticmethod
    def of(text: str | os.PathLike[str], anchor: Path, beneath: Path | None = None) -> Input:
        """The input with the path ``text``, relative to ``anchor``, an absolute folder."""
        plain = os.fspath(text)
        last = plain.rstrip("/").rpartition("/")[2]
        contents = last in (".", "..") or not PurePosixPath(plain).parts
        return Input(anchor / plain, contents, beneath)

    def __str__(self) -> str:
        return f"{self.path}/." if self.contents else str(self.path)


def opened(one: Input) -> int:
    """A descriptor of ``one``, a regular file, for reading; the caller closes it.

    Raises OSError, and `InputFileError` if the file lies elsewhere, whatever changes meanwhile, or
    is no regular file.
    """
    folder, base = opened_above(one)
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_NONBLOCK | BENEATH, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputFileError(f"{one.path}: is not a file")
    return descriptor


def opened_above(one: Input) -> tuple[int, str]:
    """A descriptor of the folder that holds ``one``, and its name there, with all links resolved.

    The caller closes the descriptor. Raises OSError (ELOOP for a circle of links), and
    `InputFileError` for an input outside `Input.beneath`.
    """
    # Path.resolve raises nothing for a circle since Python 3.13; realpath does, if it is strict.
    real = os.path.realpath(one.path, strict=True)
    start, parts = "/", real.strip("/").split("/")
    if one.beneath is not None:
        start = os.path.realpath(one.beneath, strict=True)
        if not Path(real).is_relative_to(start):
            raise InputFileError(
                f"input {one.path} points out of the job file's folder, to {shown(real)}",
                hint="name a file elsewhere on the command line, with --input",
            )
        parts = list(PurePosixPath(real).relative_to(start).parts)
    if not any(parts):
        parts = ["."]
    folder = os.open(start, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | BENEATH, dir_fd=folder)
            os.close(folder)
            folder = below
    except BaseException:
        os.close(folder)
        raise
    return folder, parts[-1]


def reason(error: OSError) -> str:
    """Why an input can't be read, in words."""
    if error.errno == errno.ELOOP:
        return CIRCLE
    return error.strerror or str(error)
