"""Which VMs are booted: each case at each wall that must stop it, behind its control."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgcell.api import Platform
from wgcell.image.store import Image
from wgcell.prove.battery.bypass import BYPASSES
from wgcell.prove.battery.exhaustion import EXHAUSTIONS
from wgcell.prove.battery.policy import POLICIES
from wgcell.prove.battery.sabotage import SABOTAGES
from wgcell.prove.runners.boots import EVERY_WALL, Boot, Machines, all_cases, plan
from wgcell.prove.verdict import Verdict
from wgcell.vm.spec import Accelerator


def machines(every: bool) -> Machines:
    return Machines(Platform(Image("debian", Path("/"), {}), Accelerator.TCG, ""), every)


def with_case(boots: list[Boot], name: str) -> list[str]:
    return [boot.name for boot in boots if name in {case.name for case in boot.cases}]


@pytest.mark.parametrize("every", [False, True])
def test_every_case_for_a_vm_has_a_control_before_it(every: bool) -> None:
    boots = plan(machines(every))
    assert len({boot.name for boot in boots}) == len(boots)
    controlled: set[str] = set()
    for boot in boots:
        names = {case.name for case in boot.cases}
        if boot.control:
            controlled |= names
            continue
        for case in boot.cases:
            shown = case.verdict is Verdict.PASS or case in EXHAUSTIONS
            tampering = case in SABOTAGES and "no-sabotage" in controlled
            # A change of rules has its control within itself: what it sends before the change.
            shown = shown or case in POLICIES
            assert shown or tampering or case.name in controlled, case.name
    played = {case.name for boot in boots for case in boot.cases}
    assert {case.name for case in (*BYPASSES, *EXHAUSTIONS)} <= played
    assert every == ({case.name for case in SABOTAGES} <= played)


def test_a_bypass_meets_the_relay_and_each_wall_that_must_stop_it_alone() -> None:
    for bypass in BYPASSES:
        boots = plan(machines(False), [bypass.name])
        alone = [f"the guest's {wall.value} alone" for wall in bypass.alone]
        found = with_case(boots, bypass.name)
        expected = {"control: every wall down", "the guest's walls", *alone, bypass.name}
        assert len(found) == len(set(found)) and set(found) == expected
        (relay_alone,) = [boot for boot in boots if boot.name == bypass.name]
        assert not relay_alone.walls and not relay_alone.pass_through


def test_the_long_form_boots_one_vm_for_each_frame_that_kills() -> None:
    few, many = plan(machines(False)), plan(machines(True))
    assert with_case(few, "lan-ping")[-1] == "lan-ping"
    assert "lan-udp" not in with_case(few, "lan-udp")
    assert with_case(many, "lan-udp")[-1] == "lan-udp"


def test_changes_of_rules_come_first_and_what_the_cell_survives_behind_them() -> None:
    (boot,) = [boot for boot in plan(machines(False)) if boot.own_gateway]
    count = len(POLICIES)
    assert boot.cases[:count] == POLICIES and not boot.pass_through and not boot.walls
    assert {case.verdict for case in boot.cases} == {Verdict.DROP}
    assert len(boot.cases) > count + 5
    (alone,) = plan(machines(False), ["rule-over"])
    assert alone.own_gateway and [case.name for case in alone.cases] == ["rule-over"]


def test_a_sabotage_meets_every_wall_and_one_that_sends_is_shown_first() -> None:
    boots = plan(machines(False), ["init-replaced", "reboot"])
    names = ["control: no sabotage", "control: init-replaced", "init-replaced", "reboot"]
    assert [boot.name for boot in boots] == names
    assert {boot.name for boot in boots if boot.pass_through} == {"control: init-replaced"}
    assert all(boot.walls == EVERY_WALL for boot in boots if not boot.pass_through)


def test_each_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
