"""What a running cell may reach, seen and changed by a program."""

from __future__ import annotations

from dataclasses import dataclass

from wgcell.cell.control import words

__all__ = ["PATIENCE", "Change", "Rule"]

PATIENCE = 30.0
"""Seconds that a cell's gateway has to change its rules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule in force. Of several that match, the first decides."""

    rule: str
    """As it was written, ``allow`` or ``deny`` before it."""
    origin: str
    """``order``: given to the running cell; ``start``, ``service``, ``published``: by its job."""
    by: int | None
    """The user id of whoever gave the order."""
    until: float | None
    """When it ends, in seconds since the epoch; None: with the cell."""

    @staticmethod
    def of(word: words.Rule) -> Rule:
        """The rule that an answer tells of."""
        return Rule(word.rule, word.origin, word.by, word.until)


@dataclass(frozen=True, slots=True)
class Change:
    """A rule that was given to a running cell, and is in force."""

    rule: str
    until: float | None
    """When it ends, in seconds since the epoch; None: with the cell."""
    cut: int
    """Open flows that the change has ended."""

    @staticmethod
    def of(word: words.PolicyChanged) -> Change:
        """The change that an answer tells of."""
        return Change(word.rule, word.until, word.cut)
