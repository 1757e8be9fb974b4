from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from wgcell.vm.qemu.accelerator import choose, host_tsc_khz, kvm_boots
from wgcell.vm.spec import Accelerator


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    opens = tmp_path / "kvm"
    opens.touch()
    return opens


def test_tsc_rate_from_bogomips() -> None:
    text = "processor: 0\nflags\t\t: fpu constant_tsc\nbogomips\t: 5192.29\n\n"
    assert host_tsc_khz(text) == 2596145
    assert host_tsc_khz(text.replace("constant_tsc", "")) is None
    assert host_tsc_khz("flags : constant_tsc") is None


def test_a_kernel_that_speaks_is_kvm_that_works(tmp_path: Path, device: Path) -> None:
    qemu = script(tmp_path / "qemu", "echo '[    0.000000] Linux version 6.1'")
    assert kvm_boots(qemu, tmp_path / "kernel", device=device) == (True, "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 0", "said nothing"),
        ("echo 'cpu host: aborted' >&2; exit 134", "cpu host: aborted"),
    ],
)
def test_a_device_that_opens_is_not_enough(
    tmp_path: Path, device: Path, body: str, reason: str
) -> None:
    boots, why = kvm_boots(script(tmp_path / "qemu", body), tmp_path / "kernel", device=device)
    assert not boots and reason in why


def test_no_device(tmp_path: Path) -> None:
    boots, why = kvm_boots("qemu", tmp_path / "kernel", device=tmp_path / "absent")
    assert not boots and "is not there" in why


def test_a_hanging_kernel_is_given_up(
    tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wgcell.vm.qemu.accelerator.PROBE_TIMEOUT", 0.2)
    qemu = script(tmp_path / "qemu", "exec sleep 5")
    boots, why = kvm_boots(qemu, tmp_path / "kernel", device=device)
    assert not boots and "did not run" in why


def test_the_answer_is_kept_for_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"kernel")
    asked: list[str] = []

    def probe(qemu: str, kernel: Path) -> tuple[bool, str]:
        asked.append(qemu)
        return False, "no"

    monkeypatch.setattr("wgcell.vm.qemu.accelerator.kvm_boots", probe)
    for _ in range(2):
        assert choose("qemu", kernel, tmp_path / "cache") == (Accelerator.TCG, "no")
    assert len(asked) == 1
    os.utime(kernel, (1, 1))
    choose("qemu", kernel, tmp_path / "cache")
    assert len(asked) == 2
