"""A machine that stands still for a while: scripts of events, as in ``test_core.py``."""

from __future__ import annotations

import pytest
from tests.support.scripts import Script, as_asked  # noqa: F401

from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.core.pausing import SESSION_LOST
from wgcell.cell.core.terms import HEARTBEAT_TIMEOUT
from wgcell.cell.states import Cause, Outcome, State
from wgcell.guest import protocol
from wgcell.relay import control as relay
from wgcell.vm.spec import Accelerator

SILENT = HEARTBEAT_TIMEOUT[Accelerator.KVM]
ME = 1000


def paused(**changed: object) -> Script:
    one = Script(**changed).until(State.RUNNING)
    one.seconds(3)
    assert not one.core.no_pause
    one.feed(seen.Paused(ME))
    assert one.core.is_paused
    return one


def test_who_stands_still_is_not_silent() -> None:
    one = paused()
    one.seconds(3600, heartbeat=False)
    assert one.core.state is State.RUNNING and not one.asked(do.EndMachine)
    one.feed(seen.Unpaused(ME))
    assert one.logged()[-2:] == ["paused", "unpaused"] and not one.core.is_paused
    one.seconds(SILENT - 2, heartbeat=False)
    assert not one.asked(do.EndMachine), "silence counts from here on"
    one.seconds(4, heartbeat=False)
    assert one.end() is Outcome.GUEST_FAULT and "silent" in one.core.reason


def test_who_goes_on_is_told_the_time_and_then_makes_a_handshake() -> None:
    for length, handshake in ((SESSION_LOST - 1, False), (SESSION_LOST + 1, True)):
        one = paused()
        one.seconds(length, heartbeat=False)
        assert not one.asked(do.SetGuestClock)
        asked = one.feed(seen.Unpaused(ME))
        wanted: list[do.Action] = [do.SetGuestClock()]
        wanted += [do.SendGuest(protocol.RECONNECT)] if handshake else []
        assert [action for action in asked if not isinstance(action, do.Log)] == wanted


def test_nothing_is_sent_to_who_stands_still() -> None:
    one = paused()
    before = list(one.actions)
    one.clock += 100  # the time of day jumps: a running guest would be told
    one.seconds(200, heartbeat=False)
    assert one.actions == before


def test_the_workloads_time_goes_on_and_its_grace_period_is_one() -> None:
    one = paused(timeout=10.0, grace=5.0)
    one.seconds(8, heartbeat=False)
    assert one.core.state is State.TERMINATING
    assert one.sent()[-1] in (protocol.TERMINATE, protocol.RECONNECT)
    assert len(one.asked(do.ResumeMachine)) == 1 and not one.core.is_paused
    one.guest(protocol.Exited(143, 0, 0))
    assert one.end() is Outcome.TIMEOUT


@pytest.mark.parametrize("event", [seen.CancelAsked("stopped"), seen.FromRelay(relay.Quota(9))])
def test_who_must_end_in_order_goes_on_first(event: seen.Event) -> None:
    one = paused()
    one.feed(event)
    assert one.core.state is State.TERMINATING and one.asked(do.ResumeMachine)
    assert not one.core.is_paused and one.logged()[-1] == "unpaused"


def test_an_exit_that_was_on_its_way_brings_its_results() -> None:
    one = paused()
    one.guest(protocol.Exited(0, 5, 0))
    assert one.core.state is State.STOPPING and one.asked(do.ResumeMachine)
    one.stream("stdout", delivered=5)
    assert one.end() is Outcome.COMPLETED


def test_who_must_end_meanwhile_is_not_left_standing() -> None:
    """The machine was being stopped when its cell had to end."""
    one = Script().until(State.RUNNING)
    one.feed(seen.CancelAsked("stopped"))
    asked = one.feed(seen.Paused(ME))
    assert asked == [do.ResumeMachine()] and not one.core.is_paused


def test_whoever_ends_at_once_ends_although_it_stands_still() -> None:
    one = paused()
    one.feed(seen.AbortAsked("killed"))
    assert one.end() is Outcome.CANCELLED
    assert one.core.no_pause
    one.feed(seen.Unpaused(ME))
    assert not one.asked(do.ResumeMachine)


def test_only_a_running_cell_can_be_paused() -> None:
    one = Script().until(State.VERIFYING)
    assert one.core.no_pause == "only a running cell can be paused: this one is verifying"
    assert paused().core.no_pause == "it is paused already"
    one = paused()
    one.feed(seen.Unpaused(ME))
    assert not one.core.no_pause
    before = one.logged()
    one.feed(seen.Unpaused(ME))
    assert one.logged() == before
    one.feed(seen.Caused(Cause.HOST_FAULTED, "no disk"))
    assert "only a running cell" in one.core.no_pause
