"""One session as the relay tracks it: its two indices, its age, and the guest's counters.

The counters are those of the messages that the guest sent. `Counters` is the window of RFC 6479 and
of WireGuard's paper (section 5.4.6): a counter passes once, and not too far behind the highest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import wireguard

__all__ = ["ABSURD_JUMP", "SESSION_LIFETIME", "WINDOW", "Counters", "Offer", "Session", "Side"]

SESSION_LIFETIME = wireguard.REJECT_AFTER_TIME + 10.0
"""Seconds; the two ends' clocks start at different messages."""
WINDOW = 8192
"""Counters behind the highest that may still come (Linux: COUNTER_BITS_TOTAL)."""
ABSURD_JUMP = 1 << 32
"""The link can't lose so many messages in one session's life."""


class Side(Enum):
    """The sender of a message."""

    GUEST = "guest"
    ENDPOINT = "endpoint"


@dataclass(slots=True)
class Counters:
    """The highest counter, and a bitmap of the window below it.

    ``fresh`` counters, the topmost in unbroken order, are not in the bitmap yet. So the usual
    case, the very next counter, takes two additions instead of a shift of 1 KiB.
    """

    highest: int = -1
    seen: int = 0
    fresh: int = 0

    def refuse(self, counter: int) -> Refusal | None:
        """Why a message with that counter may not pass; None if it may."""
        if counter == self.highest + 1:
            return None
        if counter > self.highest + ABSURD_JUMP:
            return Refusal(Reason.COUNTER_ABSURD, f"{counter} after {self.highest}")
        behind = self.highest - counter
        if behind >= WINDOW:
            return Refusal(Reason.COUNTER_OLD, f"{counter} after {self.highest}")
        self._settle()
        if behind >= 0 and self.seen >> behind & 1:
            return Refusal(Reason.COUNTER_REPEATED, str(counter))
        return None

    def note(self, counter: int, count: int = 1) -> None:
        """Note ``count`` counters from ``counter`` on, none of which is refused."""
        ahead = counter - self.highest
        if ahead == 1:
            self.highest += count
            self.fresh += count
            return
        self._settle()
        if ahead > 0:
            self._shift(ahead, 1)
            self.highest = counter
        else:
            self.seen |= 1 << -ahead

    def _settle(self) -> None:
        if self.fresh:
            self._shift(self.fresh, (1 << min(self.fresh, WINDOW)) - 1)
            self.fresh = 0

    def _shift(self, by: int, new: int) -> None:
        kept = self.seen << by if by < WINDOW else 0
        self.seen = (kept | new) & ((1 << WINDOW) - 1)


@dataclass(slots=True)
class Session:
    """A handshake under which the guest has sent transport. ``guest``, ``endpoint``: indices."""

    initiator: Side
    guest: int
    endpoint: int
    born: float
    complete: bool
    counters: Counters = field(default_factory=Counters)

    def dead(self, now: float) -> bool:
        """Whether neither end accepts a message under it any more."""
        return now - self.born > SESSION_LIFETIME

    def refuse(self, counter: int, now: float) -> Refusal | None:
        """Why the guest's transport under this session may not pass; None if it may."""
        if self.dead(now):
            return Refusal(Reason.SESSION_DEAD, f"{now - self.born:.0f} s old")
        return self.counters.refuse(counter)


@dataclass(slots=True)
class Offer:
    """The guest's response to an initiation of the endpoint's."""

    endpoint: int
    born: float
    confirmed: bool = False
