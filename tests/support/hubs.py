"""A cell as its control socket sees it: a folder, a listener, sessions, and a fake guest."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.support.cells import WGCELL
from tests.support.programs import FakeGuest
from tests.support.waiting import GENEROUS

from wgcell.cell.control.listener import Listener
from wgcell.cell.core import events as seen
from wgcell.cell.folder import create
from wgcell.cell.sessions.links import Sessions
from wgcell.cell.sessions.refusal import refused
from wgcell.cell.sessions.tap import Tap
from wgcell.guest.frames import Subject

__all__ = ["Cell", "Running", "joined", "running"]

Seen = seen.Caused | seen.SessionOpened | seen.SessionExited


class Cell:
    """What a control socket can ask of a cell; what was reported is in ``seen``."""

    def __init__(self, cells: Path) -> None:
        self.folder = create(cells, "x")
        self.state = "running"
        self.reads = True
        self.seen: list[Seen] = []
        self.stopped: list[bool] = []
        self.listener = Listener(self.folder, self)
        self.sessions = Sessions(self.refused, self.seen.append)
        ours, theirs = socket.socketpair()
        self.port = ours
        self.guest = FakeGuest(theirs)
        self.taps: dict[str, Tap] = {
            name: self.sessions.tap(name, self.folder.path / f"{name}.log")
            for name in ("stdout", "stderr")
        }

    def refused(self, subject: Subject) -> str:
        connected = self.sessions.is_connected
        return refused(subject, self.state, connected=connected, reads=self.reads)

    def stop(self, *, now: bool) -> None:
        self.stopped.append(now)

    async def serve(
        self, transport: asyncio.Transport, first: bytes, uid: int, *, detached: bool
    ) -> None:
        await self.sessions.serve(transport, first, uid, detached=detached)

    @property
    def causes(self) -> list[seen.Caused]:
        """What would have ended the cell."""
        return [one for one in self.seen if isinstance(one, seen.Caused)]


@asynccontextmanager
async def joined(cells: Path, code: int = 0) -> AsyncIterator[Cell]:
    """A cell whose guest is connected; at the end it ends with that exit code."""
    cells.mkdir(parents=True, exist_ok=True)
    cell = Cell(cells)
    assert not await cell.listener.start()
    await cell.sessions.connect(cell.port)
    try:
        yield cell
    finally:
        await cell.guest.close()
        for tap in cell.taps.values():
            tap.close()
        cell.sessions.end(code)
        await cell.listener.close()
        cell.sessions.close()


class Running:
    """Such a cell in a loop of its own, alive for whoever looks at its folder."""

    def __init__(self, cells: Path, code: int) -> None:
        self.cell: Cell
        self.loop: asyncio.AbstractEventLoop
        self.code = code
        self._cells = cells
        self._began = threading.Event()
        self._over: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._thread.start()
        assert self._began.wait(GENEROUS)
        self._lock = self.cell.folder.hold()

    async def _live(self) -> None:
        self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with joined(self._cells, self.code) as self.cell:
            self._began.set()
            await self._over.wait()

    def call(self, act: Callable[[], Any]) -> Any:
        """``act``, in the cell's loop."""

        async def acted() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(acted(), self.loop).result(GENEROUS)

    def end(self) -> None:
        """The cell ends; more than once does no harm."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._over.set)
            self._thread.join(GENEROUS)
            os.close(self._lock)


@contextmanager
def running(cells: Path, code: int = 0, **job: Any) -> Iterator[Running]:
    """A cell for programs that are clients of it; ``job`` is what its job.json says."""
    one = Running(cells, code)
    one.cell.folder.write("job.json", {"stdin": True, "terminal": False, **job})
    try:
        yield one
    finally:
        one.end()


def argv(one: Running, verb: str, *options: str, command: tuple[str, ...] = ()) -> list[str]:
    place = ("--state-dir", str(one.cell.folder.path.parent))
    words = [WGCELL, verb, *place, *options, one.cell.folder.id]
    return [*words, "--", *command] if command else words
