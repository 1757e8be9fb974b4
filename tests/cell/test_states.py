from __future__ import annotations

import pytest

from wgcell.cell.states import EXIT_CODES, TRANSITIONS, Cause, Outcome, State, step


def live(*causes: Cause) -> tuple[State, Outcome | None]:
    """Walk the table from the start; the final state and the outcome that stands."""
    state, outcome = State.PREPARING, None
    for cause in causes:
        taken = step(state, cause)
        if taken is None:
            continue
        state = taken.state
        if taken.outcome is not None and outcome in (None, Outcome.COMPLETED):
            outcome = taken.outcome
    return state, outcome


TO_BOOTING = (Cause.PREPARED, Cause.CONSENTED)
TO_RUNNING = (*TO_BOOTING, Cause.GUEST_READY, Cause.VERIFIED)


@pytest.mark.parametrize(
    ("causes", "outcome"),
    [
        ((*TO_RUNNING, Cause.WORKLOAD_EXITED, Cause.RESULTS_HOME), Outcome.COMPLETED),
        ((*TO_RUNNING, Cause.WORKLOAD_EXITED, Cause.MACHINE_DIED), Outcome.COMPLETED),
        ((*TO_RUNNING, Cause.ROGUE_FRAME), Outcome.ROGUE),
        ((Cause.PREPARED, Cause.NO_CONSENT), Outcome.UNVERIFIED),
        ((*TO_BOOTING, Cause.NOT_VERIFIED), Outcome.UNVERIFIED),
        ((*TO_BOOTING, Cause.GUEST_READY, Cause.NOT_VERIFIED), Outcome.UNVERIFIED),
        ((*TO_RUNNING, Cause.TUNNEL_SILENT), Outcome.TUNNEL_LOST),
        ((*TO_RUNNING, Cause.TAMPERED), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.HEARTBEAT_SILENT), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.MACHINE_DIED), Outcome.GUEST_FAULT),
        ((*TO_BOOTING, Cause.ROGUE_FRAME), Outcome.GUEST_FAULT),
        ((*TO_RUNNING, Cause.TIME_IS_UP), Outcome.TIMEOUT),
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


def test_every_state_can_be_cancelled_and_every_state_is_in_the_table() -> None:
    for state in State:
        assert state in TRANSITIONS
        if state is not State.ENDED:
            taken = step(state, Cause.CANCEL)
            assert taken is not None and taken.outcome is Outcome.CANCELLED


def test_exit_codes_are_the_designs_and_one_for_a_quota() -> None:
    assert {outcome.value: code for outcome, code in EXIT_CODES.items()} == {
        "quota": 119,
        "rogue": 120,
        "unverified": 121,
        "tunnel_lost": 122,
        "guest_fault": 123,
        "timeout": 124,
        "error": 125,
        "cancelled": 130,
    }
