"""The life of a cell: every state, every cause of a change, every outcome, in one table.

::

    preparing -> consent -> booting -> verifying -> running -> stopping -> ended
                                                        \\-> terminating -/

``step`` is the only way from one state to the next. A cause that the table does not hold for a
state changes nothing there: a late heartbeat timeout while stopping is not a second verdict. The
first outcome is final, with the two exceptions of `settled`.

A workload that must end before it has exited is *terminating*: it got SIGTERM, and has a grace
period. Whichever way it ends, the cell is then *stopping*: the workload's results arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

__all__ = ["EXIT_CODES", "TRANSITIONS", "Cause", "Outcome", "State", "Step", "settled", "step"]


class State(Enum):
    """A cell's place in its life."""

    PREPARING = "preparing"
    CONSENT = "consent"
    BOOTING = "booting"
    VERIFYING = "verifying"
    RUNNING = "running"
    TERMINATING = "terminating"
    STOPPING = "stopping"
    ENDED = "ended"


class Outcome(Enum):
    """How a cell ended."""

    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    ROGUE = "rogue"
    UNVERIFIED = "unverified"
    TUNNEL_LOST = "tunnel_lost"
    GUEST_FAULT = "guest_fault"
    TIMEOUT = "timeout"
    ERROR = "error"
    CANCELLED = "cancelled"
    QUOTA = "quota"


EXIT_CODES: Mapping[Outcome, int] = MappingProxyType(
    {
        Outcome.INCOMPLETE: 118,
        Outcome.QUOTA: 119,
        Outcome.ROGUE: 120,
        Outcome.UNVERIFIED: 121,
        Outcome.TUNNEL_LOST: 122,
        Outcome.GUEST_FAULT: 123,
        Outcome.TIMEOUT: 124,
        Outcome.ERROR: 125,
        Outcome.CANCELLED: 130,
    }
)
"""``completed`` has no code of its own: it is the workload's. So has ``incomplete``, if that is
not 0."""


class Cause(Enum):
    """A cause that can move a cell from one state to the next."""

    PREPARED = "prepared"
    CONSENTED = "consented"
    GUEST_READY = "guest_ready"
    VERIFIED = "verified"
    WORKLOAD_EXITED = "workload_exited"
    RESULTS_ARRIVED = "results_arrived"
    RESULTS_MISSING = "results_missing"
    RESULTS_LOST = "results_lost"
    OUTPUT_FAILED = "output_failed"
    ROGUE_FRAME = "rogue_frame"
    NO_CONSENT = "no_consent"
    NOT_VERIFIED = "not_verified"
    TUNNEL_SILENT = "tunnel_silent"
    TAMPERED = "tampered"
    HEARTBEAT_SILENT = "heartbeat_silent"
    GUEST_FAULTED = "guest_faulted"
    MACHINE_DIED = "machine_died"
    HOST_FAULTED = "host_faulted"
    TIME_IS_UP = "time_is_up"
    QUOTA_SPENT = "quota_spent"
    CANCEL = "cancel"
    ABORT = "abort"
    GRACE_IS_OVER = "grace_is_over"


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a cause. ``outcome`` None: the cell goes on, or its outcome stands already."""

    state: State
    outcome: Outcome | None = None


def _end(outcome: Outcome) -> Step:
    return Step(State.ENDED, outcome)


def _terminate(outcome: Outcome) -> Step:
    return Step(State.TERMINATING, outcome)


_ANYWHERE = {
    Cause.HOST_FAULTED: _end(Outcome.ERROR),
    Cause.CANCEL: _end(Outcome.CANCELLED),
    Cause.ABORT: _end(Outcome.CANCELLED),
}
_WITH_A_GUEST = {
    **_ANYWHERE,
    Cause.GUEST_FAULTED: _end(Outcome.GUEST_FAULT),
    Cause.MACHINE_DIED: _end(Outcome.GUEST_FAULT),
}

TRANSITIONS: Mapping[State, Mapping[Cause, Step]] = MappingProxyType(
    {
        State.PREPARING: {**_ANYWHERE, Cause.PREPARED: Step(State.CONSENT)},
        State.CONSENT: {
            **_ANYWHERE,
            Cause.CONSENTED: Step(State.BOOTING),
            Cause.NO_CONSENT: _end(Outcome.UNVERIFIED),
        },
        # Before release nothing of the requester's runs, so a stray frame is the image's fault.
        State.BOOTING: {
            **_WITH_A_GUEST,
            Cause.GUEST_READY: Step(State.VERIFYING),
            Cause.NOT_VERIFIED: _end(Outcome.UNVERIFIED),
            Cause.ROGUE_FRAME: _end(Outcome.GUEST_FAULT),
        },
        State.VERIFYING: {
            **_WITH_A_GUEST,
            Cause.VERIFIED: Step(State.RUNNING),
            Cause.NOT_VERIFIED: _end(Outcome.UNVERIFIED),
            Cause.QUOTA_SPENT: _end(Outcome.QUOTA),
            Cause.ROGUE_FRAME: _end(Outcome.GUEST_FAULT),
            Cause.TAMPERED: _end(Outcome.GUEST_FAULT),
        },
        State.RUNNING: {
            **_WITH_A_GUEST,
            Cause.WORKLOAD_EXITED: Step(State.STOPPING, Outcome.COMPLETED),
            Cause.ROGUE_FRAME: _end(Outcome.ROGUE),
            Cause.TUNNEL_SILENT: _end(Outcome.TUNNEL_LOST),
            Cause.TAMPERED: _end(Outcome.GUEST_FAULT),
            Cause.HEARTBEAT_SILENT: _end(Outcome.GUEST_FAULT),
            # In order: SIGTERM, a grace period, the results home.
            Cause.TIME_IS_UP: _terminate(Outcome.TIMEOUT),
            Cause.QUOTA_SPENT: _terminate(Outcome.QUOTA),
            Cause.CANCEL: _terminate(Outcome.CANCELLED),
            Cause.OUTPUT_FAILED: _terminate(Outcome.ERROR),
        },
        # The tunnel stays open, but for a spent quota: a workload may bring its own work to safety.
        State.TERMINATING: {
            **_WITH_A_GUEST,
            Cause.WORKLOAD_EXITED: Step(State.STOPPING),
            Cause.ROGUE_FRAME: _end(Outcome.ROGUE),
            Cause.TAMPERED: _end(Outcome.GUEST_FAULT),
            Cause.CANCEL: Step(State.TERMINATING),
            Cause.GRACE_IS_OVER: Step(State.ENDED),
        },
        # The workload has ended. The machine's death is no cause here any more: what it still owes
        # says what that means.
        State.STOPPING: {
            **_ANYWHERE,
            Cause.ROGUE_FRAME: _end(Outcome.ROGUE),
            Cause.RESULTS_ARRIVED: Step(State.ENDED),
            Cause.RESULTS_MISSING: _end(Outcome.INCOMPLETE),
            Cause.RESULTS_LOST: _end(Outcome.GUEST_FAULT),
            Cause.GUEST_FAULTED: _end(Outcome.GUEST_FAULT),
            Cause.CANCEL: Step(State.STOPPING, Outcome.CANCELLED),
            Cause.OUTPUT_FAILED: Step(State.STOPPING, Outcome.ERROR),
        },
        State.ENDED: {},
    }
)


def step(state: State, cause: Cause) -> Step | None:
    """The step that ``cause`` takes from ``state``; None if it means nothing there."""
    return TRANSITIONS[state].get(cause)


_IN_ORDER = (Outcome.CANCELLED, Outcome.TIMEOUT, Outcome.QUOTA)
_BESIDE_ROGUE = (*_IN_ORDER, Outcome.ERROR, Outcome.INCOMPLETE, Outcome.GUEST_FAULT)
"""Outcomes that a rogue frame replaces: an error of a reader, and bytes that the killed machine
owes."""
_GRAVEST = (Cause.ROGUE_FRAME, Cause.TAMPERED, Cause.HOST_FAULTED)


def settled(before: Outcome | None, cause: Cause, taken: Outcome | None) -> Outcome | None:
    """The outcome after ``cause``, whose own outcome is ``taken``.

    The first outcome is final. But a workload that completed may still lose its results, and the
    gravest causes count also for a workload that was asked to end.
    """
    if taken is None:
        return before
    milder = _BESIDE_ROGUE if cause is Cause.ROGUE_FRAME else _IN_ORDER
    if before in (None, Outcome.COMPLETED) or (before in milder and cause in _GRAVEST):
        return taken
    return before
