"""The silence of the endpoint and of the guest's agent, and the setting of the guest's clock. No
I/O.

A gap of more than `STOPPED` seconds between two ticks means that the host was suspended or the
supervisor stopped: the others' silence meanwhile means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from wgcell.cell.core.results import STOPPED
from wgcell.cell.core.terms import Terms
from wgcell.cell.states import Cause

__all__ = ["Watch"]

CLOCK_INTERVAL = 60.0
CLOCK_JUMP = 0.5
"""Seconds between two messages to the guest about the time; and by how much the host's clock must
have jumped against CLOCK_MONOTONIC, by a suspend or a step, for one at once."""


@dataclass(slots=True)
class Watch:
    """When the endpoint and the guest's agent were last heard, by the clock of ``now``."""

    last_valid: float = 0.0
    last_heartbeat: float = 0.0
    _ticked: float | None = None
    _clock_set: float = 0.0
    _clock_offset: float = 0.0

    def began(self, now: float) -> None:
        """The workload is released: silence counts from now on."""
        self.last_valid = self.last_heartbeat = now

    def tick(self, now: float, clock: float, *, stands_still: bool = False) -> float | None:
        """The seconds since the last tick; None for the first, which has none before it.

        ``stands_still``: the machine was paused, so nobody in it could say anything.
        """
        if self._ticked is None:
            self._ticked = self._clock_set = now
            self._clock_offset = clock - now
            return None
        passed, self._ticked = now - self._ticked, now
        if passed > STOPPED or stands_still:
            self.last_valid += passed
            self.last_heartbeat += passed
        return passed

    def must_set_clock(self, now: float, clock: float, passed: float) -> bool:
        """Whether the guest must be sent the time; if so, it counts as sent.

        CLOCK_MONOTONIC stands still while the host is suspended; the time of day does not.
        """
        jumped = abs(clock - now - self._clock_offset) > CLOCK_JUMP or passed > STOPPED
        if not (jumped or now - self._clock_set > CLOCK_INTERVAL):
            return False
        self._clock_set, self._clock_offset = now, clock - now
        return True

    def silence(self, now: float, terms: Terms) -> tuple[Cause, str] | None:
        """The cause for a silence that is too long."""
        if now - self.last_valid > terms.tunnel_timeout:
            return Cause.TUNNEL_SILENT, f"no valid message for {terms.tunnel_timeout:g} s"
        if now - self.last_heartbeat > terms.heartbeat_timeout:
            reason = f"the agent was silent for {terms.heartbeat_timeout:.0f} s"
            return Cause.HEARTBEAT_SILENT, reason
        return None
