"""A survey of the inputs before a cell starts: their number and size, and all that is left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wgcell.cell.counts import Counted
from wgcell.cell.excludes import Excludes
from wgcell.cell.inputs import Input
from wgcell.cell.packing import MOST_BYTES, Budget
from wgcell.cell.walk import Walk

__all__ = ["Fingerprint", "Survey", "take_survey"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The part of a path's status that shows later whether it has changed."""

    mode: int
    size: int
    inode: int
    changed: int
    """Nanoseconds since 1970: the time of the last change to content, mode or owner."""
    target: str = ""
    """Of a symbolic link."""

    @staticmethod
    def of(status: os.stat_result, target: str = "") -> Fingerprint:
        """The fingerprint of a path with that ``status``."""
        # A folder's size and times change with its entries, which have fingerprints of their own.
        size, changed = (
            (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_ctime_ns)
        )
        return Fingerprint(status.st_mode, size, status.st_ino, changed, target)


@dataclass(frozen=True, slots=True)
class Survey:
    """The inputs as they were at the survey."""

    files: int
    bytes: int
    """Of their tar."""
    left_out: tuple[Counted, ...]
    """Sockets, pipes and devices."""
    links_out: tuple[Counted, ...]
    """Links kept as links, whose targets may be missing in the guest."""
    excluded: int
    """Files and folders that a pattern leaves out; the contents of such a folder don't count."""
    seen: Mapping[str, Fingerprint] = field(repr=False)
    """By path in the working folder; empty unless asked for."""
    kept_here: Callable[[str], bool] = field(repr=False)
    """Whether a pattern excludes this path in the working folder, or a folder above it."""
    links: frozenset[tuple[str, str]] = field(repr=False)
    """The path and target of each of ``links_out``: not counted again if they come back."""


def take_survey(
    inputs: Sequence[Input],
    most_bytes: int = MOST_BYTES,
    excludes: Sequence[str] = (),
    *,
    remember: bool = False,
) -> Survey:
    """Survey every input.

    ``excludes`` are patterns in gitignore's syntax, relative to the working folder; ``remember``
    fills `Survey.seen`. Raises `InputFileError` that names all inputs that are missing or
    unreadable, and as `wgcell.cell.packing.pack` does.
    """
    walk = Walk(Excludes(excludes, "--exclude"))
    budget = Budget(most_bytes)
    files = 0
    seen: dict[str, Fingerprint] = {}
    for found in walk.all(inputs):
        regular = stat.S_ISREG(found.status.st_mode)
        budget.add(found.path, found.status.st_size if regular else 0, found.name, found.target)
        if regular:
            files += 1
            if not os.access(found.base, os.R_OK, dir_fd=found.folder, effective_ids=True):
                walk.fail(found.path, os.strerror(errno.EACCES))
        if remember:
            seen[found.name] = Fingerprint.of(found.status, found.target)
    walk.finish()
    return Survey(
        files=files,
        bytes=budget.spent,
        left_out=tuple(walk.left_out),
        links_out=tuple(walk.links_out),
        excluded=walk.excluded,
        seen=seen,
        kept_here=walk.excludes,
        links=frozenset(walk.links),
    )
