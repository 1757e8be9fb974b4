"""QEMU as a `wgcell.vm.machine.Backend`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

from wgcell.acquiring import acquired, to_its_end
from wgcell.errors import LaunchError
from wgcell.vm.kill_switch import KillSwitch
from wgcell.vm.machine import Machine
from wgcell.vm.qemu.accelerator import choose, host_tsc_khz
from wgcell.vm.qemu.argv import QemuSpec, kernel_command_line
from wgcell.vm.qemu.boot import BootFiles
from wgcell.vm.qemu.process import KVM_DEVICE, PACKAGE, QEMU, QemuMachine, find_qemu
from wgcell.vm.sandbox.cgroup import Cgroup
from wgcell.vm.sandbox.jail import Jail
from wgcell.vm.spec import CONSOLE, Accelerator, MachineSpec

__all__ = ["Qemu"]

_MONITOR = "qmp"
_PORT_PREFIX = "wgcell."
"""The prefix of each port's name, as the guest's agent finds it."""


class Qemu:
    """Machines by QEMU, on KVM or emulated."""

    @property
    def programs(self) -> Mapping[str, str]:
        """QEMU itself, from Debian's package."""
        return {QEMU: PACKAGE}

    def probe(self, kernel: Path, cache: Path) -> tuple[Accelerator, str]:
        """KVM where ``kernel`` boots on it, else TCG, and why."""
        return choose(find_qemu(), kernel, cache)

    def device(self, accelerator: Accelerator) -> Path | None:
        """/dev/kvm for KVM."""
        return KVM_DEVICE if accelerator is Accelerator.KVM else None

    async def start(
        self,
        spec: MachineSpec,
        jail: Jail,
        cgroup: Cgroup | None = None,
        kill_switch: KillSwitch | None = None,
    ) -> Machine:
        """Start QEMU, its processors stopped. Raises LaunchError; then nothing of it is left."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as handed_over:
            boot = await acquired(
                asyncio.to_thread(BootFiles, spec.kernel, spec.initramfs), BootFiles.forget
            )
            ours.callback(boot.forget)
            near: dict[str, socket.socket] = {}
            far: dict[str, int] = {}
            for name in (_MONITOR, CONSOLE, *spec.ports):
                end, other = socket.socketpair()
                near[name] = ours.enter_context(end)
                far[name] = handed_over.enter_context(other).fileno()
            monitor = near.pop(_MONITOR)
            machine = await QemuMachine.start(
                QemuSpec(
                    qemu=find_qemu(),
                    accelerator=spec.accelerator,
                    kernel_fd=boot.kernel,
                    initramfs_fd=boot.initramfs,
                    command_line=kernel_command_line(
                        spec.accelerator, host_tsc_khz(Path("/proc/cpuinfo").read_text())
                    ),
                    cpus=spec.cpus,
                    memory=spec.memory >> 20,
                    drives=spec.drives,
                    mac=spec.mac,
                    nic_fd=spec.nic.fileno(),
                    qmp_fd=far[_MONITOR],
                    console_fd=far[CONSOLE],
                    ports={f"{_PORT_PREFIX}{name}": far[name] for name in spec.ports},
                ),
                monitor,
                jail,
                spec.disk,
                cgroup,
                channels=near,
                boot=boot,
            )
            ours.pop_all()  # they are the machine's now
        if kill_switch is not None:
            await _arm(kill_switch, machine)
        return machine


async def _arm(kill_switch: KillSwitch, machine: QemuMachine) -> None:
    """Arm the switch for ``machine``. Raises LaunchError if that fails, with the machine dead."""
    try:
        with contextlib.suppress(ProcessLookupError):  # it is dead, which `ended` will report
            kill_switch.arm(machine.process.pid)
    except (OSError, ValueError) as error:
        # No caller knows the machine yet: it would wait, stopped, for this process's death.
        await to_its_end(_discard(machine))
        raise LaunchError(f"QEMU's kill switch can't be armed: {error}") from error


async def _discard(machine: QemuMachine) -> None:
    machine.kill()
    await machine.reap()
    await machine.close()
