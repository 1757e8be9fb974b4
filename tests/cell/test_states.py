from __future__ import annotations

import pytest

from wgcell.cell.states import EXIT_CODES, TRANSITIONS, Cause, Outcome, State, settled, step


def live(*causes: Cause) -> tuple[State, Outcome | None]:
    """Walk the table from the start; the final state and the outcome that stands."""
    state, outcome = State.PREPARING, None
    for cause in causes:
        taken = step(state, cause)
        if taken is None:
            continue
        state = taken.state
        outcome = settled(outcome, cause, taken.outcome)
    return state, outcome


TO_BOOTING = (Cause.PREPARED, Cause.CONSENTED)
TO_RUNNING = (*TO_BOOTING, Cause.GUEST_READY, Cause.VERIFIED)
TO_STOPPING = (*TO_RUNNING, Cause.WORKLOAD_EXITED)
HOME = (Cause.WORKLOAD_EXITED, Cause.RESULTS_ARRIVED)


@pytest.mark.parametrize(
    ("causes", "outcome"),
    [
        ((*TO_STOPPING, Cause.RESULTS_ARRIVED), Outcome.COMPLETED),
        ((*TO_STOPPING, Cause.RESULTS_MISSING), Outcome.INCOMPLETE),
        ((*TO_STOPPING, Cause.ROGUE_FRAME), Outcome.ROGUE),
        ((*TO_STOPPING, Cause.CANCEL, Cause.ROGUE_FRAME), Outcome.ROGUE),
        ((*TO_STOPPING, Cause.MACHINE_DIED, Cause.RESULTS_LOST), Outcome.GUEST_FAULT),
        ((*TO_STOPPING, Cause.OUTPUT_FAILED, Cause.RESULTS_ARRIVED), Outcome.ERROR),
        ((*TO_STOPPING, Cause.HOST_FAULTED), Outcome.ERROR),
        # In order: the workload is asked to end, and its results come home.
        ((*TO_RUNNING, Cause.TIME_IS_UP, *HOME), Outcome.TIMEOUT),
        ((*TO_RUNNING, Cause.CANCEL, *HOME), Outcome.CANCELLED),
        ((*TO_RUNNING, Cause.QUOTA_SPENT, *HOME), Outcome.QUOTA),
        ((*TO_RUNNING, Cause.OUTPUT_FAILED, *HOME), Outcome.ERROR),
        ((*TO_STOPPING, Cause.CANCEL, Cause.RESULTS_ARRIVED), Outcome.CANCELLED),
        ((*TO_RUNNING, Cause.TIME_IS_UP, Cause.GRACE_IS_OVER), Outcome.TIMEOUT),
        ((*TO_RUNNING, Cause.TIME_IS_UP, Cause.CANCEL, *HOME), Outcome.TIMEOUT),
        # Asked again: at once.
        ((*TO_RUNNING, Cause.CANCEL, Cause.ABORT), Outcome.CANCELLED),
        ((*TO_STOPPING, Cause.CANCEL, Cause.ABORT), Outcome.CANCELLED),
        ((*TO_RUNNING, Cause.ABORT), Outcome.CANCELLED),
        # What is gravest counts during the grace period too.
        ((*TO_RUNNING, Cause.TIME_IS_UP, Cause.ROGUE_FRAME), Outcome.ROGUE),
        ((*TO_RUNNING, Cause.CANCEL, Cause.TAMPERED), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.CANCEL, Cause.HOST_FAULTED), Outcome.ERROR),
        ((*TO_RUNNING, Cause.OUTPUT_FAILED, Cause.ROGUE_FRAME), Outcome.ROGUE),
        ((*TO_STOPPING, Cause.OUTPUT_FAILED, Cause.ROGUE_FRAME), Outcome.ROGUE),
        # And what is lesser does not change why the workload had to end.
        ((*TO_RUNNING, Cause.TIME_IS_UP, Cause.MACHINE_DIED), Outcome.TIMEOUT),
        ((*TO_RUNNING, Cause.TIME_IS_UP, *HOME[:1], Cause.RESULTS_LOST), Outcome.TIMEOUT),
        ((*TO_RUNNING, Cause.ROGUE_FRAME), Outcome.ROGUE),
        ((Cause.PREPARED, Cause.NO_CONSENT), Outcome.UNVERIFIED),
        ((*TO_BOOTING, Cause.NOT_VERIFIED), Outcome.UNVERIFIED),
        ((*TO_BOOTING, Cause.GUEST_READY, Cause.NOT_VERIFIED), Outcome.UNVERIFIED),
        ((*TO_RUNNING, Cause.TUNNEL_SILENT), Outcome.TUNNEL_LOST),
        ((*TO_RUNNING, Cause.TAMPERED), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.HEARTBEAT_SILENT), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.MACHINE_DIED), Outcome.GUEST_FAULT),
        ((*TO_BOOTING, Cause.ROGUE_FRAME), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.HOST_FAULTED), Outcome.ERROR),
        ((Cause.CANCEL,), Outcome.CANCELLED),
    ],
)
def test_every_outcome_is_reached(causes: tuple[Cause, ...], outcome: Outcome) -> None:
    assert live(*causes) == (State.ENDED, outcome)


def test_nothing_of_the_requesters_runs_before_verified() -> None:
    before = [Cause.PREPARED, Cause.CONSENTED, Cause.GUEST_READY]
    for cause in Cause:
        if cause is not Cause.VERIFIED:
            assert live(*before, cause)[0] is not State.RUNNING
    for state in (State.PREPARING, State.CONSENT, State.BOOTING):
        assert step(state, Cause.VERIFIED) is None


def test_the_verification_clock_means_nothing_once_running() -> None:
    assert step(State.RUNNING, Cause.NOT_VERIFIED) is None


def test_an_ended_cell_stays_ended() -> None:
    assert all(step(State.ENDED, cause) is None for cause in Cause)


def test_a_machine_that_dies_with_the_results_is_never_completed_by_its_death() -> None:
    assert step(State.STOPPING, Cause.MACHINE_DIED) is None


def test_only_results_that_are_home_complete_a_cell() -> None:
    for cause in Cause:
        taken = step(State.STOPPING, cause)
        if taken is not None and taken.state is State.ENDED and cause is not Cause.RESULTS_ARRIVED:
            assert settled(Outcome.COMPLETED, cause, taken.outcome) is not Outcome.COMPLETED


def test_every_state_can_be_cancelled_and_every_state_is_in_the_table() -> None:
    for state in State:
        assert state in TRANSITIONS
        if state is not State.ENDED:
            assert step(state, Cause.CANCEL) is not None
            aborted = step(state, Cause.ABORT)
            assert aborted is not None and aborted.state is State.ENDED


def test_exit_codes_are_the_documented_ones() -> None:
    assert {outcome.value: code for outcome, code in EXIT_CODES.items()} == {
        "incomplete": 118,
        "quota": 119,
        "rogue": 120,
        "unverified": 121,
        "tunnel_lost": 122,
        "guest_fault": 123,
        "timeout": 124,
        "error": 125,
        "cancelled": 130,
    }
