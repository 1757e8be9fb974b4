"""A request, its steps, and the sentence on it in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgcell.api import Platform
from wgcell.errors import InputError
from wgcell.image.store import Image
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.pcap import UserFrame
from wgcell.prove.request import Mode, Request, description, steps
from wgcell.prove.runners.boots import Machines
from wgcell.prove.verdict import Phase
from wgcell.vm.spec import Accelerator


def test_the_quick_form_runs_each_case_that_needs_no_minutes_in_its_phases() -> None:
    found = steps(Request(Mode.QUICK))
    assert found == [(case, phase) for case in CASES if not case.wait for phase in case.phases]


def test_the_long_form_runs_every_case_in_every_phase_as_often_as_asked() -> None:
    once, twice = steps(Request(Mode.LONG)), steps(Request(Mode.LONG, times=2))
    slow = [step for step in once if step[0].wait]
    assert {case.name for case, _ in once} == {case.name for case in CASES}
    assert len(twice) == 2 * len(once) - len(slow)
    phases = {phase for case, phase in once if case.name == "vlan"}
    assert phases == set(Phase)


def test_a_users_frames_run_alone() -> None:
    frames = (UserFrame(1, b"a" * 60), UserFrame(2, b"b" * 60))
    found = steps(Request(Mode.FRAMES, frames=frames))
    assert [(case.name, phase) for case, phase in found] == [
        ("frame-1", Phase.RUNNING),
        ("frame-2", Phase.RUNNING),
    ]


def test_a_name_that_no_case_has_is_refused() -> None:
    assert [case.name for case, _ in steps(Request(Mode.QUICK, only=("vlan",)))] == ["vlan"]
    assert steps(Request(Mode.QUICK, only=("macvlan",))) == []  # a case for a VM
    with pytest.raises(InputError, match="no case 'nothing'"):
        steps(Request(Mode.QUICK, only=("vlan", "nothing")))


@pytest.mark.parametrize(
    ("accelerator", "words"), [(Accelerator.TCG, "emulated by QEMU"), (Accelerator.KVM, "on KVM")]
)
def test_emulation_is_said(tmp_path: Path, accelerator: Accelerator, words: str) -> None:
    machines = Machines(Platform(Image("debian", tmp_path, {}), accelerator, ""))
    assert words in description(Request(Mode.DEFAULT, machines=machines))
