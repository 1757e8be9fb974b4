from __future__ import annotations

import pytest

from wgcell.prove.verdict import Observation, Phase, Result, Status, Verdict, judge, passes

KILLED = Observation(cut=True, control=True)
DROPPED = Observation(control=True)


def status(verdict: Verdict, seen: Observation, phase: Phase = Phase.RUNNING) -> Status:
    asked = verdict is not Verdict.PASS
    return judge(verdict, phase, seen, control_asked=asked)[0]


def test_what_was_due_and_seen_to_happen_has_held() -> None:
    assert status(Verdict.KILL, KILLED) is Status.HELD
    assert status(Verdict.DROP, DROPPED) is Status.HELD
    assert status(Verdict.PASS, Observation(arrived=True)) is Status.HELD


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_leak_is_a_leak_whatever_else_is_true(verdict: Verdict) -> None:
    for cut in (True, False):
        seen = Observation(leaks=("host lan0: 60 bytes",), cut=cut, control=True, arrived=True)
        assert status(verdict, seen) is Status.LEAKED


@pytest.mark.parametrize("control", [None, False])
def test_a_control_that_was_not_seen_proves_nothing(control: bool | None) -> None:
    assert status(Verdict.KILL, Observation(cut=True, control=control)) is Status.NOT_PROVEN


def test_a_capture_with_holes_proves_nothing() -> None:
    assert status(Verdict.KILL, Observation(cut=True, control=True, lost=1)) is Status.NOT_PROVEN


def test_another_verdict_than_the_one_due_is_wrong() -> None:
    assert status(Verdict.KILL, DROPPED) is Status.WRONG
    assert status(Verdict.DROP, KILLED) is Status.WRONG
    assert status(Verdict.PASS, Observation()) is Status.WRONG
    assert status(Verdict.DROP, Observation(control=True, alive=False)) is Status.WRONG


def test_a_bound_that_did_not_hold_is_told_even_if_nothing_leaked() -> None:
    seen = Observation(control=True, cut=True, beyond=("the cell's disk took 9, of 1",))
    assert judge(Verdict.KILL, Phase.RUNNING, seen) == (Status.WRONG, seen.beyond[0])


def test_in_boot_a_rogue_frame_may_be_dropped_or_kill() -> None:
    assert status(Verdict.KILL, DROPPED, Phase.BOOT) is Status.HELD
    assert status(Verdict.KILL, KILLED, Phase.BOOT) is Status.HELD


def test_the_relays_own_word_changes_nothing() -> None:
    boast = Observation(leaks=("out",), cut=True, control=True, said="stopped it")
    assert status(Verdict.KILL, boast) is Status.LEAKED


def result(found: Status) -> Result:
    return Result("c", "g", "does", "relay", Phase.RUNNING, Verdict.KILL, found, "why")


@pytest.mark.parametrize("bad", [Status.LEAKED, Status.WRONG, Status.NOT_PROVEN])
def test_one_case_that_did_not_hold_fails_the_run(bad: Status) -> None:
    assert passes([result(Status.HELD)])
    assert passes([result(Status.HELD), result(Status.NOT_PLAYED)])
    assert not passes([result(Status.HELD), result(bad)])
    assert not passes([])
    assert not passes([result(Status.NOT_PLAYED)])
