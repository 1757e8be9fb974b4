"""A machine whose start fails behind QEMU's own start leaves no process.

A `sleep` plays QEMU. What this can't show: that QEMU itself dies (tests/vm/qemu/test_process.py).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from wgcell.errors import LaunchError
from wgcell.vm.kill_switch import KillSwitch
from wgcell.vm.qemu import backend, process
from wgcell.vm.qemu.backend import Qemu
from wgcell.vm.qemu.process import QemuMachine
from wgcell.vm.sandbox.jail import Jail
from wgcell.vm.spec import Accelerator, MachineSpec

pytestmark = pytest.mark.process


def refusing(error: Exception) -> KillSwitch:
    """A kill switch that can't be armed."""
    switch = KillSwitch()

    def arm(pid: int) -> None:
        raise error

    switch.arm = arm  # type: ignore[method-assign]
    return switch


@pytest.mark.parametrize(
    "error", [PermissionError(1, "Operation not permitted"), ValueError("the switch is closed")]
)
def test_a_machine_whose_kill_switch_cant_be_armed_is_killed_at_once(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kernel", "initramfs"):
        (tmp_path / name).write_bytes(b"x")
    made: list[QemuMachine] = []
    real = QemuMachine.start

    async def start(*given: Any, **named: Any) -> QemuMachine:
        made.append(await real(*given, **named))
        return made[-1]

    monkeypatch.setattr(process, "qemu_argv", lambda spec: ["sleep", "60"])
    monkeypatch.setattr(backend, "find_qemu", lambda: "/usr/bin/true")
    monkeypatch.setattr(QemuMachine, "start", start)
    nic, card = socket.socketpair()
    switch = refusing(error)

    async def body() -> None:
        spec = MachineSpec(
            accelerator=Accelerator.TCG,
            kernel=tmp_path / "kernel",
            initramfs=tmp_path / "initramfs",
            cpus=1,
            memory=1 << 27,
            disk=1 << 20,
            drives=(),
            mac="02:77:67:00:00:02",
            nic=card,
            ports=("control",),
        )
        with pytest.raises(LaunchError, match="kill switch"):
            await Qemu().start(spec, Jail(None, None, missing="none here"), None, switch)
        (machine,) = made
        assert machine.process.returncode == -9

    before = set(os.listdir("/proc/self/fd"))
    try:
        asyncio.run(body())
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        switch.close()
        nic.close()
        card.close()
