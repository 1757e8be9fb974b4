"""Paths that stay where they are: ``--exclude`` and ``.wgcellignore``, in gitignore's syntax.

The option's patterns are relative to the working folder, and win; those of an input folder's own
``.wgcellignore`` are relative to that folder. As in git, nothing below an excluded folder can be
taken in again. `pathspec` matches; it is loaded only if there is a pattern.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wgcell.cell.counts import shown
from wgcell.errors import InputFileError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__all__ = ["IGNORE_FILE", "LARGEST_IGNORE_FILE", "Excludes"]

IGNORE_FILE = ".wgcellignore"
LARGEST_IGNORE_FILE = 64 * 1024
"""Bytes."""
_MOST_PATTERNS = 1000
_MOST_STARS = 3
"""Runs of ``*`` in a pattern. Each one multiplies what a hostile name may cost to match: with
these, one name takes at most a tenth of a second."""
_MOST_DEEP = 2
"""Of them, those of two ``*``, which go over folders."""
_LONGEST_MATCHING = 20.0
"""Seconds that all names may take together; 10,000 honest ones take less than one."""
_STARS = re.compile(r"\*+")


class Excludes:
    """Patterns of one place. None given: nothing is excluded."""

    def __init__(
        self, patterns: Sequence[str], source: str, longest: float = _LONGEST_MATCHING
    ) -> None:
        """``longest`` are the seconds that all matching may take together.

        Raises `InputFileError`, naming ``source`` and the pattern that is none.
        """
        self._spec = _spec(patterns, source) if patterns else None
        self._source = source
        self._longest = self._left = longest

    @staticmethod
    def of_text(text: bytes, source: str) -> Excludes:
        """The patterns of an ignore file's content. Raises `InputFileError`."""
        if len(text) > LARGEST_IGNORE_FILE:
            raise InputFileError(f"{source}: larger than {LARGEST_IGNORE_FILE // 1024} KiB")
        try:
            return Excludes(text.decode("utf-8").splitlines(), source)
        except UnicodeDecodeError:
            raise InputFileError(f"{source}: not UTF-8 text") from None

    def verdict(self, path: str) -> bool | None:
        """Whether ``path`` is excluded; None if no pattern says. A folder ends with a slash.

        Raises `InputFileError` if matching takes too long.
        """
        if self._spec is None:
            return None
        before = time.perf_counter()
        found = self._spec.check_file(path).include
        self._left -= time.perf_counter() - before
        if self._left < 0:
            raise InputFileError(
                f"{self._source}: its patterns take more than {self._longest:g} s to match",
                hint="write them with fewer *",
            )
        return found


def _spec(patterns: Sequence[str], source: str) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    if len(patterns) > _MOST_PATTERNS:
        raise InputFileError(f"{source}: more than {_MOST_PATTERNS} patterns")
    for number, pattern in enumerate(patterns, start=1):
        line = "" if source.startswith("--") else f"{number}:"  # of a file
        where = f"{source}:{line} {shown(pattern[:80])!r}"
        stars = [] if pattern.startswith("#") else _STARS.findall(pattern)
        if len(stars) > _MOST_STARS or sum(len(run) > 1 for run in stars) > _MOST_DEEP:
            raise InputFileError(f"{where} has more than {_MOST_STARS} *, or {_MOST_DEEP} **")
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError:
            raise InputFileError(
                f"{where} is no pattern; allowed: the syntax of .gitignore"
            ) from None
    return GitIgnoreSpec.from_lines(patterns)
