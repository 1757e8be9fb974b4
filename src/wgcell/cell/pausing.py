"""Pauses of a cell's machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wgcell.cell.core import Core
from wgcell.cell.core import events as seen
from wgcell.cell.launch import Launch
from wgcell.errors import HostError, StateError

__all__ = ["Pauses"]


class Pauses:
    """One cell's. Two requests at once are served one after the other."""

    def __init__(self, core: Core, launch: Launch, feed: Callable[[seen.Event], None]) -> None:
        self._core, self._launch, self._feed = core, launch, feed
        self._lock = asyncio.Lock()

    async def pause(self, uid: int) -> None:
        """Stop the machine's processors, for that user. Raises StateError with the reason."""
        async with self._lock:
            machine, why = self._launch.machine, self._core.no_pause
            if why or machine is None:
                raise StateError(why or "it has no machine")
            if not await machine.freeze():
                raise StateError("its machine does not answer")
            self._feed(seen.Paused(uid))

    async def unpause(self, uid: int) -> None:
        """Let the machine go on, for that user. Raises StateError with the reason."""
        async with self._lock:
            machine = self._launch.machine
            if machine is None or not self._core.is_paused:
                raise StateError("it is not paused")
            try:
                await machine.go()
            except HostError as error:
                raise StateError(error.message) from error
            self._feed(seen.Unpaused(uid))

    async def resume(self) -> None:
        """Let the machine go on, because it must end in order, or send its results."""
        async with self._lock:
            if self._launch.machine is not None:
                await self._launch.machine.go()
