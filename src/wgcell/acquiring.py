"""Resources that belong to somebody even if the caller who asked for them is cancelled meanwhile.

A thread can't be cancelled, and asyncio leaves pipes open when the start of a process is. So the
work goes on to its end; its result then goes to ``discard``, because nobody else knows of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

__all__ = ["acquired", "discard_process", "to_its_end"]

T = TypeVar("T")


async def acquired(
    work: Coroutine[object, None, T], discard: Callable[[T], Awaitable[object] | None]
) -> T:
    """The result of ``work``. If the caller is cancelled, the result is discarded."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await _finished(working)
        if not working.cancelled() and working.exception() is None:
            pending = discard(working.result())
            if pending is not None:
                await _finished(asyncio.ensure_future(pending))
        raise


async def to_its_end(work: Coroutine[object, None, object]) -> None:
    """Do ``work``, although the caller is cancelled meanwhile, and whatever it raises."""
    working = asyncio.ensure_future(work)
    await _finished(working)
    if not working.cancelled():
        working.exception()


async def _finished(work: asyncio.Future[T]) -> None:
    """Wait for ``work``: a second cancellation, and a third, would leave it to nobody."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((work,))


async def discard_process(process: asyncio.subprocess.Process) -> None:
    """Kill a child that nobody else knows of, and wait until it and its pipes are gone."""
    if process.returncode is None:
        process.kill()
    await process.communicate()
