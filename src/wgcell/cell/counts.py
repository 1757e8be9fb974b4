"""Files counted by the reason of their fate, with a few of their names.

A folder may hold thousands of files, so messages have one line for each reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["EXAMPLES", "LONGEST_EXAMPLE", "Counted", "Counts", "named", "shown"]

EXAMPLES = 3
"""Files named for each reason; the others are only counted."""
_LONGEST_SHOWN = 400
LONGEST_EXAMPLE = 10 * _LONGEST_SHOWN
"""Characters of a name as `shown` has it: each may be spelled as ``\\U0010ffff``."""


def shown(name: str) -> str:
    """``name`` for a terminal: unprintable characters are escaped, and a long name is cut."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii")
        for one in name[:_LONGEST_SHOWN]
    )


def named(examples: tuple[str, ...], count: int) -> str:
    """The first of ``count`` names, and that there are more."""
    return ", ".join(examples) + (", …" if count > len(examples) else "")


@dataclass(frozen=True, slots=True)
class Counted:
    """Files with one thing in common: the reason, how many, and a few names as `shown` has them."""

    reason: str
    count: int
    examples: tuple[str, ...]

    @property
    def member(self) -> str:
        """The files, in a phrase."""
        names = named(self.examples, self.count)
        return names if self.count == 1 else f"{self.count} files ({names})"

    def __str__(self) -> str:
        return f"{self.member}: {self.reason}"


class Counts:
    """Reasons as they come. Their number is the caller's to bound: constants, not texts."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, list[str]]] = {}

    def add(self, reason: str, name: str) -> None:
        """One more file with this reason."""
        count, examples = self._counts.get(reason, (0, []))
        if len(examples) < EXAMPLES:
            examples.append(shown(name))
        self._counts[reason] = (count + 1, examples)

    def __iter__(self) -> Iterator[Counted]:
        for reason, (count, examples) in self._counts.items():
            yield Counted(reason, count, tuple(examples))
