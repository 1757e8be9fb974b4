"""A cell's whole life as scripts: events in, actions out, in no time at all.

::

    script   events with a time --> Core --> actions, and the outcome

What these can't show: that the supervisor hears everything, and does what the core asks for
(``test_conclusion.py``, ``test_supervisor_floods.py``, and the VMs do).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.guests import BARE
from tests.support.scripts import QUIET, REPORTS, Script, as_asked  # noqa: F401

import wgcell.cell.core
from wgcell.cell.archive import Unpacked
from wgcell.cell.core import actions as do
from wgcell.cell.core import core as core_module
from wgcell.cell.core import events as seen
from wgcell.cell.core import relay as dealings
from wgcell.cell.core.results import LAST_BYTES, MOST_IN_FLIGHT, STALL, START
from wgcell.cell.job import OnRogue
from wgcell.cell.states import Cause, Outcome, State
from wgcell.gateway import words as gateway
from wgcell.guest import protocol
from wgcell.guest.walls import Wall
from wgcell.relay import control as relay

ROGUE = relay.Rogue("mac1", "a frame", b"frame", 7.0, 100.0)
UNPACKED = Unpacked(1, 0, 0, 10, (), (), (), "")


# The whole life.


def test_an_ordinary_life() -> None:
    one = Script(outputs=("out",)).until(State.RUNNING)
    assert one.asked(do.SendConfiguration) and one.asked(do.FreeBootFiles)
    assert one.sent() == [protocol.RELEASE]
    one.seconds(30)
    one.guest(protocol.Exited(3, 10, 0))
    assert one.core.state is State.STOPPING and one.asked(do.StartUnpacking)
    one.guest(protocol.Outputs(512, 0, "a" * 64))
    assert one.asked(do.ExpectOutputs) == [do.ExpectOutputs(512, "a" * 64)]
    one.feed(seen.UnpackingEnded(UNPACKED))
    assert not one.asked(do.EndMachine), "10 bytes are owed"
    one.stream("stdout", delivered=10)
    assert one.end() is Outcome.COMPLETED
    assert one.core.exit_code == 3
    assert list(one.core.phases) == [state.value for state in State if state.value != "terminating"]
    entered = [(one.state.value, one.reason) for one in one.asked(do.StateEntered)]
    assert [state for state, _ in entered] == list(one.core.phases)
    assert ("stopping", "the workload exited with 3") in entered
    assert one.logged() == ["booting", "outputs_sent", "exited"]


def test_nothing_is_released_before_both_sides_agree() -> None:
    for first, second in ((0, 1), (1, 0)):
        one = Script().until(State.VERIFYING)
        one.guest(protocol.Report(REPORTS))
        words = (seen.FromRelay(relay.Verified()), seen.FromGuest(protocol.Ready()))
        one.feed(words[first])
        assert one.core.state is State.VERIFYING and protocol.RELEASE not in one.sent()
        one.feed(words[second])
        assert one.core.state is State.RUNNING and one.sent() == [protocol.RELEASE]


def test_a_guest_that_is_set_up_otherwise_is_tampered_with() -> None:
    one = Script().until(State.VERIFYING)
    one.relay(relay.Verified())
    one.guest(protocol.Report({**REPORTS, "links": "another"}), protocol.Ready())
    assert one.end() is Outcome.GUEST_FAULT and one.core.reason == "the guest's links are wrong"
    assert protocol.RELEASE not in one.sent() and "reports" in one.logged()


def test_reports_are_judged_once() -> None:
    one = Script().until(State.VERIFYING)
    one.relay(relay.Verified())
    one.guest(protocol.Report({"links": "x" * 20_000}), protocol.Ready())
    for _ in range(100):
        one.guest(protocol.Ready())
    assert one.logged().count("reports") == 1
    # Where being wrong means nothing any more, neither.
    two = Script().until(State.STOPPING)
    two.guest(protocol.Report({"links": "x" * 20_000}))
    two.relay(*[relay.Verified()] * 100)
    assert two.logged().count("reports") == 1


def test_an_exit_before_the_release_means_nothing() -> None:
    one = Script().until(State.VERIFYING)
    one.guest(protocol.Exited(0, 0, 0))
    assert one.core.state is State.VERIFYING and one.core.exit_code is None


# Each outcome, and how it comes.

ENDINGS: dict[str, tuple[State, Any, Outcome, str]] = {
    "no consent": (
        State.CONSENT,
        seen.Caused(Cause.NO_CONSENT, "nobody answered"),
        Outcome.UNVERIFIED,
        "nobody answered",
    ),
    "the host fails": (
        State.PREPARING,
        seen.Caused(Cause.HOST_FAULTED, "no disk"),
        Outcome.ERROR,
        "no disk",
    ),
    "a stray frame before the release": (
        State.VERIFYING,
        seen.FromRelay(ROGUE),
        Outcome.GUEST_FAULT,
        "mac1: a frame",
    ),
    "a rogue frame": (State.RUNNING, seen.FromRelay(ROGUE), Outcome.ROGUE, "mac1: a frame"),
    "a rogue frame behind the exit": (
        State.STOPPING,
        seen.FromRelay(ROGUE),
        Outcome.ROGUE,
        "mac1: a frame",
    ),
    "the quota before the release": (
        State.VERIFYING,
        seen.FromRelay(relay.Quota(9)),
        Outcome.QUOTA,
        "the tunnel has carried 9 bytes of 0",
    ),
    "the relay fails": (
        State.RUNNING,
        seen.FromRelay(relay.Fault("no memory")),
        Outcome.ERROR,
        "the relay: no memory",
    ),
    "the relay is ready twice": (
        State.RUNNING,
        seen.FromRelay(relay.Ready(True, {})),
        Outcome.ERROR,
        "the relay said a second time that it is ready",
    ),
    "the relay dies": (State.RUNNING, seen.RelayGone(), Outcome.ERROR, "the relay died"),
    "the gateway dies": (State.RUNNING, seen.GatewayGone(), Outcome.ERROR, "the gateway died"),
    "the gateway is ready twice": (
        State.RUNNING,
        seen.FromGateway(gateway.Ready("192.0.2.1", 1, {}, "embedded", "")),
        Outcome.ERROR,
        "the gateway said a second time that it is ready",
    ),
    "the machine dies": (
        State.RUNNING,
        seen.Caused(Cause.MACHINE_DIED, "exit code 1"),
        Outcome.GUEST_FAULT,
        "exit code 1",
    ),
    "the guest can't start": (
        State.VERIFYING,
        seen.FromGuest(protocol.Fault("no disk")),
        Outcome.GUEST_FAULT,
        "the guest could not start: no disk",
    ),
    "the agent fails behind the release": (
        State.RUNNING,
        seen.FromGuest(protocol.Fault("no room for a process")),
        Outcome.GUEST_FAULT,
        "the guest's agent failed: no room for a process",
    ),
    "the agent fails behind the exit": (
        State.STOPPING,
        seen.FromGuest(protocol.Fault("no outputs")),
        Outcome.GUEST_FAULT,
        "the guest's agent failed: no outputs",
    ),
    "the guest greets twice": (
        State.RUNNING,
        seen.FromGuest(protocol.Hello(1)),
        Outcome.GUEST_FAULT,
        "the guest said hello twice",
    ),
    "the guest is ready twice": (
        State.RUNNING,
        seen.FromGuest(protocol.Ready()),
        Outcome.GUEST_FAULT,
        "the guest said ready twice",
    ),
    "outputs before the end": (
        State.RUNNING,
        seen.FromGuest(protocol.Outputs(1, 0, "a" * 64)),
        Outcome.GUEST_FAULT,
        "the guest sent outputs before the workload's end",
    ),
    "more than a port holds": (
        State.RUNNING,
        seen.FromGuest(protocol.Exited(0, MOST_IN_FLIGHT + 1, 0)),
        Outcome.GUEST_FAULT,
        "the guest owes more of stdout than a port can hold",
    ),
    "an abort": (State.RUNNING, seen.AbortAsked("killed"), Outcome.CANCELLED, "killed"),
    "Ctrl-C before the release": (
        State.BOOTING,
        seen.CancelAsked("Ctrl-C"),
        Outcome.CANCELLED,
        "Ctrl-C",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_each_of_these_ends_the_cell_at_once(name: str) -> None:
    state, event, outcome, reason = ENDINGS[name]
    one = Script().until(state)
    asked = one.feed(event)
    assert asked[-1] == do.EndMachine(False, reason), "the machine first, the words later"
    assert one.end() is outcome and one.core.reason == reason


def test_a_gateway_that_says_why_it_dies() -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.FromGateway(gateway.Fault("no port")), seen.GatewayGone())
    assert one.end() is Outcome.ERROR and one.core.reason == "the gateway died: no port"


def test_a_tunnel_that_is_never_verified() -> None:
    one = Script(verify_timeout=30.0).until(State.VERIFYING)
    one.seconds(29)
    assert not one.asked(do.EndMachine)
    one.seconds(1.5)
    assert one.end() is Outcome.UNVERIFIED
    assert one.core.reason == "the tunnel was not verified within 30 s"


def test_a_change_in_the_guest_counts_where_it_has_every_wall() -> None:
    changed = protocol.Changed("network", "x" * 9000)
    one = Script(guest_walls=frozenset(Wall)).until(State.RUNNING)
    one.guest(changed, changed)
    assert one.end() is Outcome.GUEST_FAULT and one.core.reason == "the guest's network changed"
    (logged,) = one.asked(do.Log)[1:]
    assert (logged.event, len(logged.fields["seen"])) == ("changed", 4096)
    two = Script(guest_walls=frozenset({Wall.FIREWALL})).until(State.RUNNING)
    assert two.guest(changed) == []


def test_the_out_of_memory_killer_is_named() -> None:
    one = Script().until(State.RUNNING)
    one.guest(protocol.OutOfMemory(1, "python3"), protocol.OutOfMemory(2, "sh"))
    one.guest(protocol.Exited(137, 0, 0))
    assert "(256 MiB)" in one.core.reason and "killed python3" in one.core.reason
    assert one.logged().count("out_of_memory") == 1


# Silence, clocks, and a host that was suspended.


def test_a_silent_tunnel() -> None:
    one = Script(tunnel_timeout=50.0).until(State.RUNNING)
    for _ in range(49):
        one.guest(protocol.Heartbeat(1, 0))
        one.feed(seen.Tick(one.clock + one.now), after=1)
    assert not one.asked(do.EndMachine)
    one.guest(protocol.Heartbeat(1, 0))
    one.feed(seen.Tick(0), after=2)
    assert one.end() is Outcome.TUNNEL_LOST and one.core.reason == "no valid message for 50 s"


def test_a_silent_agent() -> None:
    one = Script().until(State.RUNNING)
    one.seconds(20, heartbeat=False)
    assert not one.asked(do.EndMachine)
    one.seconds(1, heartbeat=False)
    assert one.end() is Outcome.GUEST_FAULT and one.core.reason == "the agent was silent for 20 s"


def test_a_suspended_host_blames_nobody_and_sets_the_clock() -> None:
    one = Script().until(State.RUNNING)
    one.seconds(5)
    one.clock += 3600
    one.feed(seen.Tick(one.clock), after=3600)
    assert not one.asked(do.EndMachine) and len(one.asked(do.SetGuestClock)) == 1
    one.seconds(5)
    assert not one.asked(do.EndMachine)


def test_the_clock_is_sent_each_minute_and_after_a_step() -> None:
    one = Script().until(State.RUNNING)
    one.seconds(59)
    assert not one.asked(do.SetGuestClock)
    one.seconds(2)
    assert len(one.asked(do.SetGuestClock)) == 1
    one.clock += 0.6
    one.seconds(1)
    assert len(one.asked(do.SetGuestClock)) == 2
    one.seconds(5)
    assert len(one.asked(do.SetGuestClock)) == 2


# A workload that must end: SIGTERM, a grace period, SIGKILL.

IN_ORDER = {
    "Ctrl-C": (lambda one: one.feed(seen.CancelAsked("Ctrl-C")), Outcome.CANCELLED),
    "the quota": (lambda one: one.relay(relay.Quota(9)), Outcome.QUOTA),
    "the timeout": (lambda one: one.seconds(5), Outcome.TIMEOUT),
    "a full disk": (lambda one: one.stream("stdout", failure="full"), Outcome.ERROR),
}


@pytest.mark.parametrize("how", IN_ORDER)
def test_a_workload_that_must_end_is_asked_first(how: str) -> None:
    act, outcome = IN_ORDER[how]
    one = Script(timeout=5.0 if how == "the timeout" else None).until(State.RUNNING)
    act(one)
    assert one.core.state is State.TERMINATING
    assert one.sent()[-1] == protocol.TERMINATE and protocol.KILL not in one.sent()
    one.guest(protocol.Exited(143, 0, 0))
    assert one.end() is outcome
    assert protocol.KILL not in one.sent() and one.core.exit_code == 143


def test_a_workload_that_ignores_sigterm_is_killed() -> None:
    one = Script(grace=3.0).until(State.RUNNING)
    one.feed(seen.CancelAsked("Ctrl-C"))
    one.seconds(2.5)
    assert protocol.KILL not in one.sent()
    one.seconds(1)
    assert one.sent()[-1] == protocol.KILL
    one.guest(protocol.Exited(137, 0, 0))
    assert one.end() is Outcome.CANCELLED


def test_a_guest_that_never_reports_the_end_is_ended() -> None:
    one = Script(grace=0.0).until(State.RUNNING)
    one.feed(seen.CancelAsked("Ctrl-C"))
    one.seconds(7)
    assert one.end() is Outcome.CANCELLED and one.core.exit_code is None


def test_a_guest_that_writes_on_is_ended() -> None:
    one = Script(grace=0.0).until(State.RUNNING)
    one.feed(seen.CancelAsked("Ctrl-C"))
    one.seconds(0.1)
    one.stream("stdout", delivered=MOST_IN_FLIGHT + 1, waits_for_reader=True, moved=one.now)
    one.seconds(0.5)
    assert one.end() is Outcome.CANCELLED


def test_a_reader_that_stands_still_holds_up_no_hostile_guest() -> None:
    """It is given up once, and after that the guest's silence counts again."""
    one = Script(grace=0.0).until(State.RUNNING)
    one.stream("stdout", waits_for_reader=True, moved=0.0)
    one.feed(seen.CancelAsked("Ctrl-C"))
    one.seconds(LAST_BYTES + 10)
    assert one.end() is Outcome.CANCELLED
    assert one.asked(do.GiveUpReader) == [do.GiveUpReader("stdout")]
    assert one.logged().count("reader_stopped") == 1


def test_the_second_ctrl_c_ends_it_at_once() -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.CancelAsked("Ctrl-C"))
    assert not one.asked(do.EndMachine)
    one.feed(seen.CancelAsked("again"))
    assert one.end() is Outcome.CANCELLED and one.core.reason == "Ctrl-C"


def test_a_timeout_while_the_results_come_home_changes_nothing() -> None:
    one = Script(timeout=5.0).until(State.STOPPING)
    one.seconds(10)
    assert one.core.state is State.STOPPING
    one.stream("stdout", delivered=10)
    assert one.end() is Outcome.COMPLETED


def test_ctrl_c_while_the_results_come_home_waits_for_them() -> None:
    one = Script().until(State.STOPPING)
    one.feed(seen.CancelAsked("Ctrl-C"))
    assert one.core.state is State.STOPPING
    one.stream("stdout", delivered=10)
    assert one.end() is Outcome.CANCELLED


# Races: who is heard first.


def test_exit_0_then_rogue_is_rogue_before_and_behind_the_end() -> None:
    one = Script().until(State.STOPPING)
    one.relay(ROGUE)
    assert one.end() is Outcome.ROGUE
    two = Script().until(State.STOPPING)
    two.stream("stdout", delivered=10)
    two.relay(ROGUE)
    assert two.core.frames and two.end() is Outcome.ROGUE


@pytest.mark.parametrize("first", ["machine", "relay"])
def test_the_machines_death_and_the_relays_word_why(first: str) -> None:
    """The kill switch is quicker than words."""
    one = Script().until(State.RUNNING)
    words = [seen.Caused(Cause.MACHINE_DIED, "killed"), seen.FromRelay(ROGUE)]
    one.feed(*(words if first == "machine" else reversed(words)))
    assert one.end() is Outcome.ROGUE and one.core.reason == "mac1: a frame"
    assert one.core.killed_after == 0.5


def test_what_comes_when_the_record_is_closed_comes_too_late() -> None:
    one = Script().until(State.STOPPING)
    one.stream("stdout", delivered=10)
    assert one.end() is Outcome.COMPLETED
    one.relay(ROGUE)
    assert one.core.outcome is Outcome.COMPLETED


def test_a_write_that_fails_with_the_last_bytes_is_no_success() -> None:
    one = Script().until(State.STOPPING)
    one.stream("stdout", delivered=10, failure="No space left on device")
    assert one.end() is Outcome.ERROR and "could not be written" in one.core.reason


def test_a_reader_that_went_is_no_failure_and_the_guest_is_told_once() -> None:
    one = Script().until(State.RUNNING)
    one.stream("stdout", reader_gone=True)
    one.stream("stdout", delivered=5)
    assert one.sent().count(protocol.closed("stdout")) == 1
    one.guest(protocol.Exited(0, 10, 0))
    assert one.end() is Outcome.COMPLETED


def test_a_rogue_machine_that_is_to_be_frozen() -> None:
    one = Script(on_rogue=OnRogue.FREEZE).until(State.RUNNING)
    assert one.relay(ROGUE)[-1] == do.EndMachine(True, "mac1: a frame")
    one.feed(seen.CancelAsked("seen enough"))
    assert one.end() is Outcome.ROGUE
    two = Script(on_rogue=OnRogue.FREEZE).until(State.RUNNING)
    two.feed(seen.RelayGone())
    assert two.asked(do.EndMachine) == [do.EndMachine(False, "the relay died")]


def test_a_killed_machine_is_timed_once() -> None:
    one = Script().until(State.RUNNING)
    one.relay(ROGUE, replace(ROGUE, boottime=300.0))
    one.feed(seen.MachineDead(100.25), seen.MachineDead(500.0))
    assert one.core.killed_after == 0.25 and len(one.core.frames) == 2


def test_evidence_is_bounded() -> None:
    one = Script().until(State.RUNNING)
    one.relay(*[ROGUE] * 1000)
    assert len(one.core.frames) == dealings.MOST_FRAMES


# The results.


def test_too_few_bytes_and_too_many_are_lost_results() -> None:
    one = Script().until(State.STOPPING)
    one.stream("stdout", delivered=9, ended=True)
    assert one.end() is Outcome.GUEST_FAULT
    assert "9 of the 10 bytes came" in one.core.reason
    two = Script().until(State.STOPPING)
    two.stream("stdout", delivered=11)
    assert two.end() is Outcome.GUEST_FAULT


def test_outputs_that_are_missing() -> None:
    one = Script(outputs=("out",)).until(State.STOPPING)
    one.stream("stdout", delivered=10)
    one.guest(protocol.Outputs(512, 0, "a" * 64))
    one.feed(seen.UnpackingEnded(replace(UNPACKED, missing=("out",))))
    assert one.end() is Outcome.INCOMPLETE
    two = Script(outputs=("out",)).until(State.STOPPING)
    two.stream("stdout", delivered=10)
    two.guest(protocol.Outputs(512, 2, "a" * 64))
    two.feed(seen.UnpackingEnded(UNPACKED))
    assert two.end() is Outcome.INCOMPLETE and "tar's exit code 2" in two.core.reason


def test_outputs_that_are_lost() -> None:
    one = Script(outputs=("out",)).until(State.STOPPING)
    one.feed(seen.Caused(Cause.RESULTS_LOST, "another SHA-256"))
    assert one.end() is Outcome.GUEST_FAULT


def test_a_guest_that_sends_nothing_more() -> None:
    one = Script().until(State.STOPPING)
    one.seconds(STALL)
    assert not one.asked(do.EndMachine)
    one.seconds(2)
    assert one.end() is Outcome.GUEST_FAULT and "sent nothing of its results" in one.core.reason


@pytest.mark.parametrize("before", [0, 10 << 30])
def test_a_byte_now_and_then_buys_no_time(before: int) -> None:
    """Nor does what had come before the end."""
    one = Script().until(State.RUNNING)
    one.stream("stdout", delivered=before)
    one.guest(protocol.Exited(0, before + 100_000, 0))
    for _ in range(int(START) + 5):
        if one.asked(do.EndMachine):
            break
        delivered = one.streams["stdout"].delivered + 1
        one.stream("stdout", delivered=delivered, moved=one.now)
        one.seconds(1)
    assert one.end() is Outcome.GUEST_FAULT and "had not arrived" in one.core.reason


def test_standing_still_ourselves_loses_no_results() -> None:
    """Ctrl-Z for two minutes, or a suspended host."""
    one = Script().until(State.STOPPING)
    one.feed(seen.Tick(one.clock), after=120)
    one.seconds(30)
    assert not one.asked(do.EndMachine)


def test_a_long_stop_is_not_time_that_the_guest_took() -> None:
    one = Script().until(State.RUNNING)
    one.guest(protocol.Exited(0, 1000, 0))
    one.feed(seen.Tick(one.clock), after=10 * START)
    for count in range(20):
        one.stream("stdout", delivered=count, moved=one.now)
        one.seconds(1)
    assert not one.asked(do.EndMachine)


def test_a_reader_may_take_its_time_but_not_in_a_cell_that_was_to_end() -> None:
    one = Script(grace=5.0).until(State.STOPPING)
    one.stream("stdout", waits_for_reader=True, moved=one.now)
    one.seconds(1000)
    assert not one.asked(do.EndMachine)
    one.feed(seen.CancelAsked("Ctrl-C"))
    one.seconds(1)
    assert one.asked(do.GiveUpReader) == [do.GiveUpReader("stdout")]
    assert one.end() is Outcome.CANCELLED


def test_a_reader_that_was_given_up_does_not_hold_up_lost_outputs() -> None:
    one = Script(outputs=("out",), grace=1.0).until(State.STOPPING)
    one.stream("stdout", waits_for_reader=True, moved=one.now)
    one.feed(seen.CancelAsked("Ctrl-C"))
    one.seconds(10 + STALL)
    assert one.end() is Outcome.CANCELLED


# The network.


def test_a_narrower_path_is_told_and_a_wider_one_only_on_another_way() -> None:
    one = Script()
    one.feed(seen.PathSeen(1280, 1200, may_grow=True))
    one.until(State.RUNNING)
    told = [
        one.feed(seen.PathSeen(path, fits, may_grow=grows))
        for path, fits, grows in (
            (1500, 1420, False),
            (1500, 1440, False),
            (0, 0, True),
            (1400, 1320, False),
            (1500, 1420, False),
            (1500, 1420, True),
        )
    ]
    assert [bool(one) for one in told] == [False, False, False, True, False, True]
    assert one.sent()[-2:] == [protocol.tunnel_mtu(1320), protocol.tunnel_mtu(1420)]


def test_an_endpoint_that_moves_has_the_clock_sent_and_a_handshake_asked_for() -> None:
    """The guest's next initiation must be later than the supervisor's, and must come."""
    one = Script().until(State.RUNNING)
    assert one.feed(seen.AddressMet()) == [do.SetGuestClock(), do.SendGuest(protocol.RECONNECT)]
    one.relay(ROGUE)
    assert one.feed(seen.AddressMet()) == []


# The end's own failures.


def test_a_step_of_the_end_that_fails_is_no_success_and_takes_no_other_place() -> None:
    one = Script().until(State.STOPPING)
    one.stream("stdout", delivered=10)
    one.feed(seen.StepFailed("the logs", "full"))
    assert one.end() is Outcome.ERROR and one.core.reason == "the logs: full"
    two = Script().until(State.RUNNING)
    two.relay(ROGUE)
    two.feed(seen.StepFailed("the logs", "full"), seen.Crashed("full"))
    assert two.end() is Outcome.ROGUE and two.core.failures == ["the logs: full"]


@pytest.mark.parametrize("interrupted", [True, False])
def test_outputs_that_do_not_land(interrupted: bool) -> None:
    one = Script().until(State.STOPPING)
    one.stream("stdout", delivered=10)
    one.end()
    one.feed(seen.LandingEnded(False, 0, interrupted, "they stayed"))
    assert one.core.outcome is (Outcome.CANCELLED if interrupted else Outcome.INCOMPLETE)
    assert one.core.reason == "they stayed" and "landed" in one.logged()


# Whatever the order of events.

_small = st.integers(0, 3)
_facts = st.builds(
    seen.StreamFacts,
    name=st.sampled_from(protocol.STREAMS),
    delivered=_small,
    reader_gone=st.booleans(),
    failure=st.sampled_from([None, None, None, "full"]),
    ended=st.booleans(),
    moved=st.floats(0, 100),
    waits_for_reader=st.booleans(),
)
_guest = st.one_of(
    st.just(protocol.Hello(1)),
    st.just(protocol.Report(REPORTS)),
    st.just(protocol.Report({"links": "another"})),
    st.just(protocol.Ready()),
    st.builds(protocol.Heartbeat, _small, _small),
    st.just(protocol.Changed("network", "x")),
    st.just(protocol.Fault("x")),
    st.just(protocol.OutOfMemory(1, "sh")),
    st.builds(protocol.Exited, _small, _small, _small),
    st.builds(protocol.Outputs, _small, st.integers(0, 1), st.just("a" * 64)),
)
_relay = st.sampled_from(
    [
        *(relay.Begun(), relay.Ready(True, {}), relay.Verified(), relay.Alive()),
        *(relay.Handshake("guest"), ROGUE, relay.OutOfStep("x", ""), relay.Quota(1)),
        *(relay.Stats(0, 0, 0, 0, 0, {}, {}, 0, 0), relay.Closed("nic"), relay.Fault("x")),
    ]
)
_gateway = st.sampled_from(
    [
        gateway.Flow(1.0, 1, "x", "tcp", "x", 443, "x", "refuse", "x", "x", "x"),
        *(gateway.Applied(), gateway.Fault("x"), gateway.Stumble("x")),
    ]
)
_events = st.one_of(
    st.builds(seen.Caused, st.sampled_from(list(Cause)), st.just("x")),
    st.just(seen.CancelAsked("x")),
    st.just(seen.AbortAsked("x")),
    st.just(seen.Booting(BARE, 1)),
    st.builds(seen.FromGuest, _guest),
    st.builds(seen.FromRelay, _relay),
    st.builds(seen.FromGateway, _gateway),
    st.just(seen.RelayGone()),
    st.just(seen.GatewayGone()),
    st.builds(seen.Looked, st.tuples(_facts), _small, st.floats(0, 100)),
    st.just(seen.UnpackingEnded(UNPACKED)),
    st.builds(seen.PathSeen, _small, _small, st.booleans()),
    st.just(seen.AddressMet()),
    st.builds(seen.Tick, st.floats(0, 1e6)),
    st.just(seen.Alarm()),
    st.just(seen.StepFailed("x", "y")),
    st.just(seen.MachineDead(200.0)),
)
_RELEASING = (Cause.VERIFIED,)


@settings(max_examples=examples(400), deadline=None)
@given(
    start=st.sampled_from(
        [s for s in State if s not in (State.TERMINATING, State.ENDED)],
    ),
    moves=st.lists(st.tuples(_events, st.floats(0, 70)), max_size=40),
    outputs=st.booleans(),
    timeout=st.sampled_from([None, 5.0]),
)
def test_whatever_the_order(
    start: State, moves: list[tuple[Any, float]], outputs: bool, timeout: float | None
) -> None:
    one = Script(
        outputs=("out",) if outputs else (), timeout=timeout, guest_walls=frozenset(Wall)
    ).until(start)
    core = one.core
    verified = {"relay": start in (State.RUNNING, State.STOPPING)}
    verified["guest"] = verified["relay"]
    rogue = ended = False
    states = [core.state]
    for event, passed in moves:
        if isinstance(event, seen.Caused) and event.cause in _RELEASING:
            continue  # the core's own: nobody outside may say it
        if event == seen.FromRelay(relay.Verified()):
            verified["relay"] = True
        if event == seen.FromGuest(protocol.Ready()):
            verified["guest"] = True
        released = core.was_released
        asked = one.feed(event, after=passed)
        states.append(core.state)
        if core.was_released:
            assert all(verified.values()), "running before verification"
        if event == seen.FromRelay(ROGUE) and released:
            rogue = True
            assert ended or one.asked(do.EndMachine), "a rogue frame that ends nothing"
        if ended:
            assert all(isinstance(action, do.Record) for action in asked), asked
        ended = ended or bool(one.asked(do.EndMachine))
    assert len(one.asked(do.EndMachine)) <= 1
    assert one.sent().count(protocol.RELEASE) <= 1
    order = list(State)
    assert [order.index(state) for state in states] == sorted(map(order.index, states))
    if not ended:
        one.feed(seen.AbortAsked("the script is over"))
    outcome = one.end()
    assert outcome is not None and len(one.asked(do.Ended)) == 1
    if rogue:
        assert outcome in (Outcome.ROGUE, Outcome.TUNNEL_LOST)
        if outcome is Outcome.TUNNEL_LOST:
            assert core.reason.startswith("no valid message") or core.reason == "x"
    if outcome is Outcome.COMPLETED:
        assert core.exit_code is not None
    late = one.feed(seen.FromRelay(ROGUE), seen.CancelAsked("late"), seen.Tick(0), seen.Alarm())
    assert core.outcome is outcome and all(isinstance(action, do.Record) for action in late)


# The tables are whole, and there is no I/O.


def test_every_event_and_every_message_has_a_rule() -> None:
    assert set(core_module._RULES) == set(get_args(seen.Event))
    assert set(core_module._GUEST_RULES) == set(get_args(protocol.Message))


IMPURE = {"asyncio", "os", "socket", "time", "threading", "subprocess", "select", "random"}


def imported(source: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_the_core_has_no_clock_and_no_socket() -> None:
    for path in Path(wgcell.cell.core.__file__).parent.glob("*.py"):
        found = {name.split(".")[0] for name in imported(path.read_text())}
        assert not found & IMPURE, path.name
    assert "asyncio" in set(imported("import asyncio")), "the control"
