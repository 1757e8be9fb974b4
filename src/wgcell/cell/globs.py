"""Output patterns: paths relative to the working folder, with the shell's ``*``, ``?`` and ``[]``.

The guest expands a pattern with its shell; the host checks each name that arrives against the same
pattern, component by component, and believes nothing else. A pattern names a file or folder and
all that lies below it. As in a shell, a wildcard does not match a leading dot, and a name that is
spelled exactly like the pattern matches it too.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["WORKING_FOLDER", "Pattern", "components"]

WORKING_FOLDER = "/work"
"""The working folder, as the workload sees it."""
_WILDCARDS = frozenset("*?[")
_MOST_STARS = 8
"""``*`` in one component. fnmatch's cost grows with each; no honest pattern has so many."""

_Match = Callable[[str], object]


def components(path: str) -> tuple[str, ...]:
    """The components of a path, without the empty ones and those that are a single dot."""
    return tuple(part for part in path.split("/") if part not in ("", "."))


@dataclass(frozen=True, slots=True)
class Pattern:
    """One output that was asked for. No components: the whole working folder."""

    parts: tuple[str, ...]
    _tests: tuple[_Match, ...] = field(repr=False, compare=False)

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern ``text``, relative or below ``/work``. Raises ValueError, with the reason.

        A path elsewhere, a ``..``, a ``**``, a backslash and control characters are refused.
        """
        if any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise ValueError("it holds control characters")
        if not text:
            raise ValueError("it is empty; the whole working folder is .")
        if "\\" in text:
            raise ValueError("it holds a backslash, which the guest's shell would take as its own")
        parts = components(text)
        if text.startswith("/"):
            root = components(WORKING_FOLDER)
            if parts[: len(root)] != root:
                raise ValueError(_elsewhere(parts))
            parts = parts[len(root) :]
        if ".." in parts:
            raise ValueError("an output lies in the working folder: name it without ..")
        for part in parts:
            if "**" in part:
                raise ValueError(
                    "** is not known; name the folder, of which everything comes, "
                    "or write one * for each level"
                )
            if part.count("*") > _MOST_STARS:
                raise ValueError(f"more than {_MOST_STARS} * in one component")
        return Pattern(parts, tuple(map(_test, parts)))

    def __str__(self) -> str:
        return "/".join(self.parts) or "."

    @property
    def is_glob(self) -> bool:
        """Whether the shell may find something else by it than what it spells."""
        return any(_WILDCARDS & set(part) for part in self.parts)

    def covers(self, parts: Sequence[str]) -> bool:
        """Whether ``parts`` is what the pattern names, or lies below it."""
        return len(parts) >= len(self.parts) and self._fits(parts)

    def passes_through(self, parts: Sequence[str]) -> bool:
        """Whether ``parts`` is a folder above something that the pattern may name."""
        return len(parts) < len(self.parts) and self._fits(parts)

    def _fits(self, parts: Sequence[str]) -> bool:
        return all(test(part) for test, part in zip(self._tests, parts, strict=False))


def _elsewhere(parts: tuple[str, ...]) -> str:
    named = parts[-1] if parts and parts[-1] != ".." else "results"
    return (
        f"an output lies in the working folder, {WORKING_FOLDER}: let the workload write it there, "
        f"and name it {named} or {WORKING_FOLDER}/{named}"
    )


def _test(pattern: str) -> _Match:
    if not _WILDCARDS & set(pattern):
        return pattern.__eq__
    # The shell's [^a] is [!a] to fnmatch.
    match = re.compile(fnmatch.translate(pattern.replace("[^", "[!"))).match
    hidden_too = pattern.startswith(".")

    def test(name: str) -> bool:
        if name == pattern:
            return True
        return (hidden_too or not name.startswith(".")) and match(name) is not None

    return test
