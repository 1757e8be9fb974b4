"""Paths that stay where they are: ``--exclude`` and ``.wgcellignore``, in gitignore's syntax.

The option's patterns are relative to the working folder, and win; those of an input folder's own
``.wgcellignore`` are relative to that folder. As in git, nothing below an excluded folder can be
taken in again. `pathspec` matches; it is loaded only if there is a pattern.
"""

from __future__ import annotations

import re
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
_MOST_STARS = 4
"""Runs of ``*`` in a pattern. Each one multiplies what a hostile name may cost to match."""
_STARS = re.compile(r"\*+/?")


class Excludes:
    """Patterns of one place. None given: nothing is excluded."""

    def __init__(self, patterns: Sequence[str], source: str) -> None:
        """Raises `InputFileError`, naming ``source`` and the pattern that is none."""
        self._spec = _spec(patterns, source) if patterns else None

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
        """Whether ``path`` is excluded; None if no pattern says. A folder ends with a slash."""
        return None if self._spec is None else self._spec.check_file(path).include


def _spec(patterns: Sequence[str], source: str) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    if len(patterns) > _MOST_PATTERNS:
        raise InputFileError(f"{source}: more than {_MOST_PATTERNS} patterns")
    for number, pattern in enumerate(patterns, start=1):
        where = f"{source}: line {number}: {shown(pattern[:80])!r}"
        if not pattern.startswith("#") and len(_STARS.findall(pattern)) > _MOST_STARS:
            raise InputFileError(f"{where} has more than {_MOST_STARS} *")
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError:
            raise InputFileError(
                f"{where} is no pattern; allowed: the syntax of .gitignore"
            ) from None
    return GitIgnoreSpec.from_lines(patterns)
