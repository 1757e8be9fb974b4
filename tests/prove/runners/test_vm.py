"""What a boot's recording proves, without a boot: changes of rules, judged by the captures."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgcell import api
from wgcell.cell.states import Outcome
from wgcell.prove.battery.policy import POLICIES
from wgcell.prove.runners import vm
from wgcell.prove.runners.boots import Machines, plan
from wgcell.prove.runners.recording import Recording
from wgcell.prove.testbed.capture import Packet
from wgcell.prove.verdict import Result, Status

DENIED, _, BYTES = POLICIES
CABLE, LAN, LOOPBACK = "host lan0", "LAN lan1", "host lo"
MACHINES = Machines(api.Platform(api.store.Image("debian", Path("/"), {}), None, ""), False)  # type: ignore[arg-type]
(BOOT,) = [boot for boot in plan(MACHINES) if boot.own_gateway]


def packet(place: str, data: bytes, *, out: bool = True) -> Packet:
    return Packet(place, out, b"\0" * 42 + data, None)


def judged(*packets: Packet, **changed: object) -> dict[str, Result]:
    result = api.Result(Outcome.COMPLETED, 0, "", {}, {})
    recording = Recording(packets=list(packets), done=True, result=result)
    for name, value in changed.items():
        setattr(recording, name, value)
    controls: dict[str, bool] = {}
    return {case.name: vm._result(BOOT, case, recording, controls) for case in POLICIES}


CONTROLS = (
    *(packet(CABLE, case.before) for case in POLICIES[:2]),
    packet(LOOPBACK, BYTES.before),
)


def test_what_was_allowed_is_seen_and_nothing_else_is() -> None:
    found = judged(*CONTROLS, packet(LOOPBACK, DENIED.after))
    assert {one.status for one in found.values()} == {Status.HELD}


def test_a_rule_that_opened_nothing_proves_nothing() -> None:
    found = judged(packet(LOOPBACK, DENIED.before), packet(CABLE, DENIED.before, out=False))
    assert {one.status for one in found.values()} == {Status.NOT_PROVEN}


@pytest.mark.parametrize("place", [CABLE, LAN])
@pytest.mark.parametrize("case", POLICIES)
def test_a_mark_that_may_not_be_seen_is_a_leak(place: str, case: vm.PolicyCase) -> None:
    found = judged(*CONTROLS, packet(place, case.after))
    assert found[case.name].status is Status.LEAKED


def test_any_other_packet_by_the_card_is_a_leak_of_the_first() -> None:
    found = judged(*CONTROLS, packet(CABLE, b"anything"))
    assert found[DENIED.name].status is Status.LEAKED
    assert judged(*CONTROLS, packet(LOOPBACK, b"x"))[DENIED.name].status is Status.HELD


def test_a_cell_that_did_not_live_on_is_wrong() -> None:
    ended = api.Result(Outcome.ROGUE, 120, "", {}, {})
    found = judged(*CONTROLS, result=ended)
    assert {one.status for one in found.values()} == {Status.WRONG}


def test_a_capture_with_holes_proves_nothing() -> None:
    found = judged(*CONTROLS, lost=1)
    assert {one.status for one in found.values()} == {Status.NOT_PROVEN}
