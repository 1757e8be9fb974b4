"""Rules that change while a cell runs, and a port of its own that is published.

The cell's gateway is one that `wgcell run` would start, beside it on the host. The host connects to
the cell's published port, allows a target on the LAN, and closes it again. The guest sends a mark
to the target all the time, and another mark from the moment on in which the host says, over the
published connection, that the rule is over: that one may not be seen.

Both marks take the same way. So the first is the control: the captures must have shown it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wgcell.prove.verdict import Verdict

__all__ = ["CLOSED", "DONE", "POLICIES", "PORT", "TARGET", "Ends", "PolicyCase"]

PORT = 8000
"""The guest's, that is published."""
TARGET = ("203.0.113.7", 53)
"""A decoy of the LAN that takes datagrams and connections."""
CLOSED, DONE = b"closed\n", b"done\n"
"""What the host says when the rule is over, and the guest when it has tried."""


class Ends(Enum):
    """How the rule for the target ends."""

    DENIED = "denied"
    OVER = "its time is over"
    NEVER_WAS = "there is none"
    """There is no rule at all: the marks are sent to the host, over the published port."""


@dataclass(frozen=True, slots=True)
class PolicyCase:
    """One change. ``before`` is the control's mark, ``after`` may not be seen on the LAN."""

    name: str
    does: str
    before: bytes
    after: bytes
    ends: Ends

    @property
    def verdict(self) -> Verdict:
        """Nothing leaves, and the cell goes on."""
        return Verdict.DROP

    @property
    def group(self) -> str:
        """The report's group."""
        return "policy"


POLICIES = (
    PolicyCase(
        "rule-denied",
        "sends on to a target that was allowed, and is denied now",
        *(b"wgcell-mark-allowed-1", b"wgcell-mark-denied-1", Ends.DENIED),
    ),
    PolicyCase(
        "rule-over",
        "sends on to a target that was allowed for a time that is over",
        *(b"wgcell-mark-allowed-2", b"wgcell-mark-over-2", Ends.OVER),
    ),
    PolicyCase(
        "published-bytes",
        "answers a client of the host at its published port; no card carries a byte of that",
        *(b"wgcell-mark-answer-3", b"wgcell-mark-answer-3", Ends.NEVER_WAS),
    ),
)
