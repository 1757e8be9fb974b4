"""A cell, for a program with an event loop: `wgcell.Cell`.

::

    async with wgcell.Cell(allow=["packages.example.com:443"], memory="1GiB") as cell:
        await cell.files.write("a.py", b"print(6 * 7)")
        done = await cell.exec("python3", "a.py", timeout=60)
        assert done.stdout == b"42\\n"

The cell's supervisor is another process. If this one ends, however it ends, the cell ends in order,
unless it was detached. What is asked of a cell goes over its control socket, so `connect` gives the
same for a cell that anybody has started.

`wgcell.sync.Cell` is this class for a program without an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Unpack

from wgcell.acquiring import acquired, to_its_end
from wgcell.cell.folder import Folder, find, state_folders
from wgcell.cell.remark import Remark
from wgcell.cell.start import Over, Said, Start
from wgcell.client.beginning import Beginning
from wgcell.client.completed import died, end_of, was_released
from wgcell.client.running import ENDS_WITHIN, RunningCell
from wgcell.client.settings import CellSettings, StrPath, start_of
from wgcell.client.supervised import Supervised
from wgcell.errors import HostError, StateError

__all__ = ["Cell", "connect"]


class Cell(RunningCell):
    """One cell. A context manager: the cell is started at its beginning and ended at its end."""

    def __init__(
        self,
        *command: str,
        detach: bool = False,
        remove: bool = False,
        stdin: bool = False,
        tty: bool | tuple[int, int] = False,
        remark: Callable[[str], None] = lambda sentence: None,
        **settings: Unpack[CellSettings],
    ) -> None:
        """A cell that runs ``command``; without one, a cell that waits for `exec` and `spawn`.

        ``detach``: it lives on when the context, or the program, ends. ``remove``: its folder is
        deleted then. ``stdin``: the command reads what `attach` writes; ``tty``: it has a terminal,
        of so many rows and columns (24, 80). ``remark`` is called with sentences for a person: what
        the cell may reach, and what is odd about that. ``settings`` are those of `CellSettings`.

        Nothing is started yet. Raises JobError for a setting that can't be.
        """
        super().__init__()
        self._start: Start | None = start_of(
            command, settings, stdin=stdin, tty=tty, remove=remove and detach
        )
        self._detach, self._remove = detach, remove
        self._remark = remark
        self._supervised: Supervised | None = None

    @classmethod
    def _of(cls, folder: Folder) -> Cell:
        """A cell that somebody has started."""
        cell = cls(detach=True)
        cell._start, cell._folder = None, folder
        return cell

    # Its life.

    async def start(self) -> None:
        """Start the cell, and wait until its tunnel is verified; seconds, a minute if emulated.

        Raises JobError and the other InputErrors for what was asked for, HostError for what this
        machine lacks; Unverified and NeverRan if the cell ended before. Cancelled, it ends.
        """
        if self._start is None:
            raise StateError("this cell has been started before")
        start, self._start = self._start, None
        beginning = Beginning(self._heard)
        supervised = self._supervised = await acquired(
            asyncio.to_thread(Supervised.start, start), Supervised.abandon
        )
        try:
            await _follow(supervised, beginning)
        except BaseException:
            supervised.let_go()
            await to_its_end(self._gone(supervised, beginning))
            raise
        finally:
            self._folder = beginning.folder
            supervised.close()
        if beginning.end is not None:
            raise self._never_ran(beginning.end)
        if self._detach:
            self.detach()

    async def _gone(self, supervised: Supervised, beginning: Beginning) -> None:
        """Wait until a cell that was let go of has ended, but not for good."""
        async with asyncio.timeout(ENDS_WITHIN):
            await _follow(supervised, beginning)
            self._folder = beginning.folder
            await self._end()

    def _heard(self, word: Said) -> None:
        if isinstance(word, Remark):
            self._remark(word.text)

    def _never_ran(self, end: Over) -> Exception:
        released = was_released(self._known)
        error = end_of(self._known, end.outcome, end.exit_code, end.reason, released=released)
        return error or HostError(f"{self.id}: {end.reason}")

    async def __aenter__(self) -> Cell:
        if self._folder is None:
            await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the cell go: one that was started here, and not detached, ends in order."""
        await self._hang_up()
        if self._supervised is not None:
            self._supervised.let_go()
            if not self._detach:
                await self._end()
                if self._remove:
                    await asyncio.to_thread(self._known.remove)

    def detach(self) -> None:
        """Let the cell live on when the context, or this program, ends."""
        self._detach = True
        if self._supervised is not None:
            self._supervised.keep()


def connect(cell: str, *, state_dir: StrPath | None = None) -> Cell:
    """A cell that runs, or has run: by its id, its name, or how its id begins.

    It is nobody's by that: when the context ends, the cell goes on. Raises StateError if there is
    none, and if there are several, which it lists.
    """
    folders = state_folders(None if state_dir is None else Path(state_dir))
    return Cell._of(find(folders, cell))


async def _follow(supervised: Supervised, beginning: Beginning) -> None:
    """Hear the supervisor's report to its last word. Raises as `Cell.start`."""
    while not beginning.is_over:
        data = supervised.read()
        if data is None:
            await _readable(supervised.report)
        elif data:
            beginning.feed(data)
        else:
            broke = await asyncio.to_thread(supervised.broke_off, beginning)
            raise broke if beginning.folder is None else died(beginning.folder)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
