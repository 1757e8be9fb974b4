"""All that a report says of one run, and the figures that follow from its results."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from wgcell.prove.verdict import Result, Status, Verdict, passes

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says.

    ``oracle`` is the view of the captures, ``facts`` are names and values in their order, and
    ``not_shown`` are sentences on the limits of this run. ``description`` is a sentence on its
    mode and its machines, ``command`` the command that repeats it. ``seconds`` is its duration.
    """

    mode: str
    oracle: str
    seconds: float
    facts: tuple[tuple[str, str], ...]
    results: tuple[Result, ...]
    not_shown: tuple[str, ...]
    description: str = ""
    command: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing leaked, every verdict was right and every control was seen."""
        return passes(self.results)

    @property
    def counts(self) -> Counter[Status]:
        """How many results of each status."""
        return Counter(result.status for result in self.results)

    @property
    def rogue(self) -> int:
        """N: how many frames that must not leave were sent, and looked for in the captures."""
        return sum(
            result.observation.frames
            for result in self.results
            if result.expected is not Verdict.PASS and result.status in (Status.HELD, Status.LEAKED)
        )

    @property
    def leaked(self) -> int:
        """How many packets have left, or reached the guest, against the rules."""
        return sum(len(result.observation.leaks) for result in self.results)

    @property
    def controls(self) -> tuple[int, int]:
        """How many controls the captures have shown, and how many were run."""
        played = [r.observation.control for r in self.results if r.observation.control is not None]
        return sum(played), len(played)

    @property
    def controls_in_words(self) -> str:
        """One sentence."""
        seen, of = self.controls
        return f"With the wall down, {seen} of {of} controls were seen by the same captures."

    @property
    def bound_in_words(self) -> str:
        """The meaning of 3/N here; empty after a leak, and without a frame that must not leave."""
        if self.leaked or not self.rogue:
            return ""
        return (
            f"The bound is the rule of three: none of {self.rogue} frames leaked, so with 95 % "
            f"confidence less than 3/{self.rogue}, one in {max(self.rogue // 3, 1)}, of frames "
            "drawn like these would."
        )

    @property
    def bound(self) -> float:
        """With no leak in N frames, 95 % confidence that fewer than this share leak (3/N)."""
        return 3 / self.rogue if self.rogue else 1.0

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.leaked:
            return f"packets leaked: {self.leaked}, of {self.rogue} rogue frames sent"
        bound = f"95 % bound {self.bound:.2g}" if self.rogue else "nothing was run"
        return f"leaked 0 of {self.rogue} rogue frames ({bound})"
