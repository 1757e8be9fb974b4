"""A cell as its control socket sees it: a folder, a listener, sessions, and a fake guest."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.programs import FakeGuest

from wgcell.cell.control.listener import Listener
from wgcell.cell.core import events as seen
from wgcell.cell.folder import create
from wgcell.cell.sessions.links import Sessions
from wgcell.cell.sessions.refusal import refused
from wgcell.cell.sessions.tap import Tap
from wgcell.guest.frames import Subject

__all__ = ["Cell", "joined"]

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
