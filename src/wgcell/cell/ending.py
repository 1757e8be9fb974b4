"""The end of a cell as a list of named steps. Each one runs, even if earlier ones have failed.

A step *fails* if it raises, or if it takes longer than its bound. Then it is abandoned, its failure
is reported, and the next one begins. So no fault at the end can skip a later step, keep the cell
from ending, or pass for success: `run_all` calls ``failed`` for every one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from wgcell.errors import WgcellError

__all__ = ["EndStep", "in_thread", "run_all", "words"]

T = TypeVar("T")

_given_up: set[asyncio.Future[None]] = set()
"""Steps that still run although their time is up: a task that nobody refers to is collected."""


@dataclass(frozen=True, slots=True)
class EndStep:
    """One step. ``act`` may be a coroutine function; ``within`` are the seconds that it may take.

    A bound is for a machine that is broken, not for one that is busy: far above what a step takes.
    ``is_record``: if it fails, nobody can read in the record how the cell ended.
    """

    name: str
    act: Callable[[], Awaitable[None] | None]
    within: float = 30.0
    is_record: bool = False


async def run_all(
    steps: Iterable[EndStep], failed: Callable[[EndStep, BaseException], None]
) -> None:
    """Run every step, in order. ``failed`` is called for each that fails, at once.

    Our own cancellation ends none of them: it is raised when all have run.
    """
    cancelled: asyncio.CancelledError | None = None
    loop = asyncio.get_running_loop()
    for step in steps:
        task = asyncio.ensure_future(_acted(step))
        until = loop.time() + step.within
        while not task.done() and (left := until - loop.time()) > 0:
            try:
                await asyncio.wait((task,), timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
        if not task.done():
            _given_up.add(task)
            task.add_done_callback(_forget)
            task.cancel()
            failed(step, TimeoutError(f"it did not end within {step.within:g} s"))
        elif task.cancelled():
            failed(step, asyncio.CancelledError("it was cancelled"))
        elif (raised := task.exception()) is not None:
            failed(step, raised)
    if cancelled is not None:
        raise cancelled


async def _acted(step: EndStep) -> None:
    pending = step.act()
    if pending is not None:
        await pending


def _forget(task: asyncio.Future[None]) -> None:
    """Discard an error that an abandoned step raises later."""
    _given_up.discard(task)
    if not task.cancelled():
        task.exception()


async def in_thread(work: Callable[[], T]) -> T:
    """`asyncio.to_thread` for what may hang: its thread does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # it is T's where there is no error

    def carried() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=carried, daemon=True).start()
    return await done


def words(error: BaseException) -> str:
    """An error in one sentence."""
    if isinstance(error, WgcellError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
