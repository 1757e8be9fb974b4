"""A machine that is paused because somebody asked for it. No I/O.

Meanwhile nobody in it is silent, because its time has stopped. Its workload's ``timeout`` goes on,
since that is time of the host's. A machine that must end in order, or must send its results, is
resumed first: SIGTERM and a grace period mean nothing to a machine that is paused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.core.life import Life
from wgcell.cell.core.terms import Terms
from wgcell.cell.states import State
from wgcell.guest import protocol

__all__ = ["RULES_OF_PAUSES", "Pausing"]

SESSION_LOST = 15.0
"""Seconds of a pause after which the guest makes a handshake at once. By itself it would, behind a
session that its endpoint may have given up, wait for an answer for so long (whitepaper, 6.5)."""


class Pausing(Life):
    """One cell's pauses."""

    def __init__(self, terms: Terms, started: float) -> None:
        super().__init__(terms, started)
        self._paused_since: float | None = None

    @property
    def is_paused(self) -> bool:
        """Whether the machine stands still."""
        return self._paused_since is not None

    @property
    def no_pause(self) -> str:
        """Why it can't be paused now; empty: it can."""
        if self.is_paused:
            return "it is paused already"
        if self.state is not State.RUNNING or self._ending is not None:
            return f"only a running cell can be paused: this one is {self.state.value}"
        return ""

    def _entered(self, state: State) -> None:
        if self.is_paused and state in (State.TERMINATING, State.STOPPING):
            self._do(do.ResumeMachine())
            self._goes_on(None)

    def _paused(self, event: seen.Paused) -> None:
        if self.state is not State.RUNNING:  # by now: it must end, and was stopped meanwhile
            self._do(do.ResumeMachine())
            return
        self._paused_since = self._now
        self._log("paused", by=event.uid)

    def _unpaused(self, event: seen.Unpaused) -> None:
        if self.is_paused:
            self._goes_on(event.uid)

    def _goes_on(self, uid: int | None) -> None:
        since = self._now if self._paused_since is None else self._paused_since
        self._paused_since = None
        self._log("unpaused", by=uid, seconds=round(self._now - since, 3))
        # A responder ignores an initiation older than the last: first the time, then a handshake.
        self._do(do.SetGuestClock())
        if self._now - since > SESSION_LOST:
            self._do(do.SendGuest(protocol.RECONNECT))


RULES_OF_PAUSES: Mapping[type, Callable[..., None]] = {
    seen.Paused: Pausing._paused,
    seen.Unpaused: Pausing._unpaused,
}
"""The rule for each event."""
