"""A cell without a machine: `wgcell.supervise` as it is, but for that. See `conftest.machineless`.

What a cell does is its command. ``wait`` runs until it is stopped, and so does a cell without a
command; ``exit N`` ends by itself; ``read`` keeps its standard input as what it printed, and ends
with it; ``print WORDS`` writes them to the log and waits; ``unverified`` never sees its tunnel
verified; ``slow`` is never prepared; ``fault`` is a fault of wgcell's own; ``die`` is killed before
it runs, ``die-late`` soon after.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.guests import CONFIG
from tests.support.hostguest import HostGuest
from tests.support.standins import Dead
from tests.support.waiting import forever

from wgcell import api, supervise
from wgcell.cell.core import events as seen
from wgcell.cell.folder import CappedLog
from wgcell.cell.states import Cause
from wgcell.cell.streams import Stream
from wgcell.cell.supervisor import Supervisor
from wgcell.guest import protocol
from wgcell.image import store
from wgcell.vm.spec import Accelerator


class Standing(Dead):
    """A machine that can stand still, and has nothing to run."""

    diagnostics = None

    async def freeze(self) -> bool:
        return True

    async def go(self) -> None:
        """It goes on, with nothing."""


class Agent:
    """The guest's, as far as it obeys: a workload that is to end does."""

    def __init__(self, cell: Supervisor, guest: HostGuest) -> None:
        self._cell, self._guest = cell, guest

    def write(self, line: bytes) -> None:
        if line in (protocol.TERMINATE, protocol.KILL):
            for program in [*self._guest.programs.values()]:
                program.hung_up.set()
                program.input.put_nowait(b"")
            self.exit(143)

    def read(self, into: Path) -> None:
        """Read the workload's standard input to its end, and keep it; then it exits."""

        async def reading() -> None:
            while data := await self._guest.workload.read():
                with into.open("ab") as file:
                    file.write(data)
            self.exit(0)

        self._cell.tasks.spawn(reading(), "the workload's reading")

    def exit(self, code: int) -> None:
        exited = seen.FromGuest(protocol.Exited(code, 0, 0))
        asyncio.get_running_loop().call_soon(self._cell.post, exited)


async def live(self: Supervisor) -> None:
    folder, outlets = self.host.folder.path, self.outlets
    for name in protocol.STREAMS:
        log = CappedLog(folder / f"{name}.log")
        outlets.streams[name] = Stream(name, lambda data: None, log, lambda: None)
        log.close()
    self.launch.own_machine(Standing())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    work = folder / "work"
    work.mkdir()
    guest = HostGuest(theirs, work)
    try:
        await self.sessions.connect(ours)
        play(self, Agent(self, guest))
        await forever()
    finally:
        await guest.close()


def play(cell: Supervisor, agent: Agent) -> None:
    """What the cell's command says."""
    cell._effects.attach(agent)  # type: ignore[arg-type]
    what, *words = cell.job.command or ("wait",)
    if what == "slow":
        return
    cell.feed(seen.Caused(Cause.PREPARED))
    if what == "unverified":
        cell.feed(seen.Caused(Cause.NO_CONSENT, "nobody answered"))
        return
    cell.feed(seen.Caused(Cause.CONSENTED))
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    cell.feed(seen.Booting(CONFIG, os.getpid()))
    cell.feed(seen.Caused(Cause.GUEST_READY))
    cell.feed(seen.Caused(Cause.VERIFIED))
    if what == "die-late":
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGKILL)
    if what == "print":
        (cell.host.folder.path / "stdout.log").write_text(" ".join(words))
    if what == "exit":
        agent.exit(int(words[0]))
    if what == "read":
        agent.read(cell.host.folder.path / "stdout.log")


def load(name: str) -> store.Image:
    folder = Path(os.environ["WGCELL_CACHE_DIR"])
    (folder / "manifest.json").write_text("{}")
    return store.Image(name, folder, None)  # type: ignore[arg-type]


def plan(job: Any, **how: Any) -> api.Plan:
    if job.command == ("fault",):
        raise RuntimeError("this was not foreseen")
    return _plan(job, **how)


_plan = api.plan


def install(put: Callable[[object, str, object], None] = setattr) -> None:
    """Have every cell of this process without a machine; ``put`` is as setattr."""
    put(Supervisor, "live", live)
    put(api.store, "load", load)
    put(api.store, "exists", lambda name: True)
    put(api, "is_current", lambda image, scripts: True)
    put(api, "platform", lambda image: api.Platform(image, Accelerator.KVM, ""))
    put(api, "plan", plan)


if __name__ == "__main__":
    install()
    supervise.program()
