"""Tasks that nobody awaits. The event loop itself holds them only by weak references."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

__all__ = ["Tasks"]


class Tasks:
    """Keeps each task until it ends."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, None, None]) -> None:
        """Start ``work``. An exception that it raises goes to the loop's exception handler."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def cancel(self) -> None:
        """Cancel all tasks but the current one, and wait for their end."""
        tasks = [task for task in self._running if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
