"""The machine's end: first the machine is dead, then the record says so, which waits for a disk."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from wgcell.cell.core import Core
from wgcell.cell.core import actions as do
from wgcell.cell.core.events import MachineDead
from wgcell.cell.events import EventLog
from wgcell.cell.followers import cancelled_or_dead
from wgcell.cell.launch import Launch
from wgcell.errors import HostError

__all__ = ["MachineEnd"]


class MachineEnd:
    """The end of one cell's machine, if it has one."""

    def __init__(self, core: Core, launch: Launch, log: EventLog) -> None:
        self.cancelled = asyncio.Event()
        """Somebody has asked for the cell's end: a frozen machine waits no longer."""
        self.is_frozen = False
        """A rogue frame has frozen the machine, which waits for somebody to examine it."""
        self._core, self._launch, self._log = core, launch, log
        self._asked: do.EndMachine | None = None

    def ask(self, asked: do.EndMachine) -> None:
        """Kill the machine at once, unless it is to be frozen, which `end` does."""
        self._asked = asked
        if self._launch.machine is not None and not asked.freeze:
            self._launch.machine.kill()  # before anything is written to the record

    async def end(self, write_evidence: Callable[[], None]) -> None:
        """Freeze the machine if that was asked for, and kill it when its wait is over."""
        asked, machine = self._asked, self._launch.machine
        if asked is None or machine is None:
            return
        if asked.freeze and await machine.freeze():
            write_evidence()  # a person who examines the machine reads this first
            self.is_frozen = True
            self._log.append("frozen", reason=asked.reason)
            await cancelled_or_dead(self.cancelled, machine)
            self.is_frozen = False
        with contextlib.suppress(HostError):  # the conclusion tries again, and says so
            await self.kill()

    async def kill(self) -> None:
        """Kill the machine and wait until it is dead. Again does no harm."""
        machine = self._launch.machine
        if machine is None:
            return
        machine.kill()
        await machine.dead()
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._core.handle(MachineDead(now), time.monotonic())
        await machine.reap()
