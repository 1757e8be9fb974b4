"""The walk through a cell's life: its state, its outcome, and its end. No I/O.

``states.TRANSITIONS`` is the walk itself. Once a cause has ended the cell, the machine is killed
(`EndMachine`), and only records are asked for. Events until `RecordClosed` may still change the
outcome, by ``states.settled``: a rogue frame before the end was a rogue frame, also if the relay's
message comes behind the machine's death.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.core.terms import Terms
from wgcell.cell.states import TRANSITIONS, Cause, Outcome, State, settled, step

__all__ = ["RULES_OF_LIFE", "Life"]

_EVEN_NOW = (Cause.HOST_FAULTED, Cause.OUTPUT_FAILED, Cause.ROGUE_FRAME)
"""Causes that count although the cell has ended: they are about what happened before."""
_SOON = 0.001
"""Seconds by which a timer may come too early."""


class Life:
    """One cell's state and outcome. ``started`` is when the supervisor began."""

    def __init__(self, terms: Terms, started: float) -> None:
        self.state = State.PREPARING
        self.outcome: Outcome | None = None
        self.reason = ""
        self.phases: dict[str, float] = {}
        """Seconds from the start to each state."""
        self.failures: list[str] = []
        """Steps of the end that failed, and why."""
        self.killed_after: float | None = None
        """Seconds from the relay's reading of the first rogue frame until the machine was dead."""
        self._terms = terms
        self._started = self._now = started
        self._actions: list[do.Action] = []
        self._alarms: list[tuple[float, Callable[[], None]]] = []
        self.crashed = False
        """The record or the supervisor has failed, or the supervisor was cancelled."""
        self._ending: str | None = None
        """Why the machine is being ended, or was."""
        self._closed = False
        self._cancelled = False
        self._rogue_at: float | None = None

    @property
    def was_released(self) -> bool:
        """Whether anything of the requester's has run."""
        return State.RUNNING.value in self.phases

    # Causes, and where they lead.

    def _do(self, action: do.Action) -> None:
        if self._ending is None or isinstance(action, do.Record | do.EndMachine | do.Ended):
            self._actions.append(action)

    def _log(self, event: str, **fields: object) -> None:
        self._do(do.Log(event, fields))

    def _log_bounded(self, event: str, **fields: object) -> None:
        self._do(do.LogBounded(event, fields))

    def _wake(self, seconds: float, act: Callable[[], None]) -> None:
        self._alarms.append((self._now + seconds, act))
        self._do(do.Wake(self._now + seconds))

    def _cause(self, cause: Cause, reason: str = "") -> None:
        if self._ending is not None:
            self._late(cause, reason)
            return
        taken = step(self.state, cause)
        if taken is None:
            return
        self._settle(cause, taken.outcome, reason)
        if taken.state is State.ENDED:
            self._ending = reason
            freeze = cause is Cause.ROGUE_FRAME and self._terms.freeze_rogue
            self._do(do.EndMachine(freeze, reason))
        elif taken.state is not self.state:
            self._enter(taken.state, reason)

    def _settle(self, cause: Cause, taken: Outcome | None, reason: str) -> None:
        outcome = settled(self.outcome, cause, taken)
        if outcome is not self.outcome:
            self.outcome, self.reason = outcome, reason

    def _late(self, cause: Cause, reason: str) -> None:
        """Something failed, or was seen, behind the cause that ended the cell."""
        meaning = TRANSITIONS[State.STOPPING if self.was_released else State.VERIFYING]
        taken = meaning.get(cause)
        if cause in _EVEN_NOW and taken is not None and not self._closed:
            self._settle(cause, taken.outcome, reason)

    def _enter(self, state: State, reason: str) -> None:
        self.state = state
        self.phases[state.value] = round(self._now - self._started, 3)
        self._do(do.StateEntered(state, reason))
        self._entered(state)

    def _entered(self, state: State) -> None:
        """The first actions of a state."""

    def _began(self, event: seen.Began) -> None:
        self._enter(State.PREPARING, "")

    def _caused(self, event: seen.Caused) -> None:
        self._cause(event.cause, event.reason)

    def _cancel(self, event: seen.CancelAsked) -> None:
        again, self._cancelled = self._cancelled, True
        self._cause(Cause.ABORT if again else Cause.CANCEL, event.reason)

    def _abort(self, event: seen.AbortAsked) -> None:
        self._cancelled = True
        self._cause(Cause.ABORT, event.reason)

    # The end.

    def _machine_dead(self, event: seen.MachineDead) -> None:
        if self._rogue_at is not None and self.killed_after is None:
            self.killed_after = round(event.boottime - self._rogue_at, 6)

    def _machine_ended(self, event: seen.MachineEnded) -> None:
        self._enter(State.ENDED, self._ending or "")
        self._do(do.Ended())

    def _step_failed(self, event: seen.StepFailed) -> None:
        self.failures.append(f"{event.step}: {event.why}")
        self._not_completed(self.failures[-1])

    def _crashed(self, event: seen.Crashed) -> None:
        self.crashed = True
        self._ending = self._ending or event.why
        self._not_completed(event.why)

    def _not_completed(self, why: str) -> None:
        if self.outcome in (None, Outcome.COMPLETED):
            self.outcome, self.reason = Outcome.ERROR, why

    def _record_closed(self, event: seen.RecordClosed) -> None:
        self._closed = True

    def _landed(self, event: seen.LandingEnded) -> None:
        self._log("landed", whole=event.whole, files=event.files, sentence=event.sentence)
        if not event.whole:
            cause = Cause.CANCEL if event.interrupted else Cause.RESULTS_MISSING
            self._settle(cause, TRANSITIONS[State.STOPPING][cause].outcome, event.sentence)

    # Timers.

    def _alarm(self, event: seen.Alarm) -> None:
        due = [act for at, act in self._alarms if at <= self._now + _SOON]
        self._alarms = [(at, act) for at, act in self._alarms if at > self._now + _SOON]
        for act in due:
            act()


RULES_OF_LIFE: Mapping[type, Callable[..., None]] = {
    seen.Began: Life._began,
    seen.Caused: Life._caused,
    seen.CancelAsked: Life._cancel,
    seen.AbortAsked: Life._abort,
    seen.Alarm: Life._alarm,
    seen.MachineDead: Life._machine_dead,
    seen.MachineEnded: Life._machine_ended,
    seen.StepFailed: Life._step_failed,
    seen.Crashed: Life._crashed,
    seen.LandingEnded: Life._landed,
    seen.RecordClosed: Life._record_closed,
}
"""The rule for each event."""
