"""The contract between a cell and what runs its machine.

A `Backend` finds out what works on this host (`Backend.probe`) and starts machines, each with its
processors stopped. A `Machine` is then let go, frozen or killed, and used over its channels.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from wgcell.vm.kill_switch import KillSwitch
from wgcell.vm.sandbox.cgroup import Cgroup
from wgcell.vm.sandbox.jail import Jail
from wgcell.vm.spec import Accelerator, MachineSpec

__all__ = ["Backend", "Machine"]


class Machine(Protocol):
    """A running machine. Its owner must `kill` and `reap` it, then `close` it."""

    pid: int
    """The id of the process that runs the guest's instructions."""

    def take(self, channel: str) -> socket.socket:
        """The host's end of a channel, `wgcell.vm.spec.CONSOLE` or a port; the caller closes it.

        Each can be taken once.
        """

    @property
    def diagnostics(self) -> asyncio.StreamReader | None:
        """The machine process's own messages, for the caller to read to their end."""

    async def attest(self) -> None:
        """Make sure that it has the one network card that was asked for, before anything runs.

        Raises LaunchError if it has another, or does not answer.
        """

    async def go(self) -> None:
        """Let the guest's first instruction run. Raises LaunchError if it does not answer."""

    def booted(self) -> None:
        """The guest has booted: the kernel and the initramfs are not read again. More than once
        does no harm."""

    async def freeze(self) -> bool:
        """Stop the processors, keep the memory. False if it does not answer."""

    def kill(self) -> None:
        """Kill it at once, without waiting; harmless if it is dead already."""

    async def dead(self) -> None:
        """Wait until it is dead. Raises HostError if a killed one does not die."""

    async def ended(self) -> int:
        """Wait until its process ends by itself; the exit code (negative: a signal)."""

    async def reap(self) -> int:
        """Wait until it is dead, and let go of its processes; the exit code."""

    async def close(self) -> None:
        """Let go of all that is left of it, once it is dead. More than once does no harm."""


class Backend(Protocol):
    """One way to run machines."""

    @property
    def programs(self) -> Mapping[str, str]:
        """The programs that it starts, one at least, each with the Debian package that has it."""

    def probe(self, kernel: Path, cache: Path) -> tuple[Accelerator, str]:
        """The accelerator that runs ``kernel`` here, and why not a better one. ``cache`` is a
        folder that may keep the answer. Raises LaunchError, with a hint, if a program is missing.
        """

    def device(self, accelerator: Accelerator) -> Path | None:
        """The device file that the accelerator needs."""

    async def start(
        self,
        spec: MachineSpec,
        jail: Jail,
        cgroup: Cgroup | None = None,
        kill_switch: KillSwitch | None = None,
    ) -> Machine:
        """Start a machine, its processors stopped.

        ``jail`` and ``cgroup`` close it in, ``kill_switch`` is armed with it. Raises LaunchError;
        then nothing of it is left.
        """
