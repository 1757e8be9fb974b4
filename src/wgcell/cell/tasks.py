"""The supervisor's tasks and timers. An error in a task is a cause and not a lost traceback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar, overload

from wgcell.cell.states import Cause
from wgcell.errors import ConsentError, GuestError, WgcellError

__all__ = ["Tasks", "together"]

_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")


class Tasks:
    """Every task and timer of one cell. ``failed`` is called with the cause that an error is."""

    def __init__(self, failed: Callable[[Cause, str], None]) -> None:
        self.drains: list[asyncio.Task[None]] = []
        """Those that read what a dying machine says last."""
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def spawn(self, work: Coroutine[object, None, None], what: str) -> asyncio.Task[None]:
        """Run ``work``, called ``what``."""
        task = asyncio.create_task(self._watched(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def drain(self, work: Coroutine[object, None, None]) -> None:
        """Run ``work``, which ends by itself when the machine is dead."""
        self.drains.append(self.spawn(work, "the cell's output"))

    def call_at(self, at: float, act: Callable[[], None]) -> None:
        """Call ``act`` at that time of the loop's clock, unless the cell has ended by then."""

        def due() -> None:
            self._timers.discard(timer)
            act()

        timer = asyncio.get_running_loop().call_at(at, due)
        self._timers.add(timer)

    async def end(self) -> None:
        """Cancel all timers, and the tasks that still run, and wait for these."""
        while self._timers:
            self._timers.pop().cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watched(self, work: Coroutine[object, None, None], what: str) -> None:
        try:
            await work
        except ConsentError as error:
            self._failed(Cause.NO_CONSENT, str(error))
        except GuestError as error:
            self._failed(Cause.GUEST_FAULTED, error.message)
        except WgcellError as error:
            self._failed(Cause.HOST_FAULTED, str(error))
        except Exception as error:
            self._failed(Cause.HOST_FAULTED, f"{what}: {type(error).__name__}: {error}")


@overload
async def together(
    one: Coroutine[object, None, _A], two: Coroutine[object, None, _B], /
) -> tuple[_A, _B]: ...
@overload
async def together(
    one: Coroutine[object, None, _A],
    two: Coroutine[object, None, _B],
    three: Coroutine[object, None, _C],
    /,
) -> tuple[_A, _B, _C]: ...
async def together(*works: Coroutine[object, None, object]) -> tuple[object, ...]:
    """All of ``works`` at once. When one fails, the others end before its error goes on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return tuple(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
