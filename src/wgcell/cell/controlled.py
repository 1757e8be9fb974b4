"""A running cell as its control socket sees it: its state, its end, and everything it can be asked.

Questions are answered here from the cell's parts; `wgcell.cell.control.listener` speaks with the
callers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from wgcell.cell.conclusion import Conclusion
from wgcell.cell.control import words
from wgcell.cell.core import Core
from wgcell.cell.machine_end import MachineEnd
from wgcell.cell.orders import Orders
from wgcell.cell.pausing import Pauses
from wgcell.cell.sessions.links import Sessions

__all__ = ["ControlledCell"]


class ControlledCell:
    """One cell: a `wgcell.cell.control.listener.Controlled`."""

    def __init__(
        self,
        core: Core,
        sessions: Sessions,
        pauses: Pauses,
        machine_end: MachineEnd,
        conclusion: Conclusion,
        orders: Orders,
        *,
        cancel: Callable[[str], None],
        abort: Callable[[str], None],
    ) -> None:
        self._core, self._sessions = core, sessions
        self._pauses, self._machine_end, self._conclusion = pauses, machine_end, conclusion
        self._orders = orders
        self._cancel, self._abort = cancel, abort

    @property
    def state(self) -> str:
        """The cell's state, in a word."""
        if self._machine_end.is_frozen:
            return "frozen"
        return "paused" if self._core.is_paused else self._core.state.value

    @property
    def end(self) -> words.Ended:
        """How the cell has ended, as far as it is known."""
        result = self._conclusion.result()
        return words.Ended(result.outcome.value, result.exit_code, result.reason)

    def stop(self, *, now: bool) -> None:
        """End the cell in order, or at once."""
        (self._abort if now else self._cancel)("stopped")

    async def serve(
        self, transport: asyncio.Transport, first: bytes, uid: int, *, detached: bool
    ) -> None:
        """Speak frames with a client until it is gone; see `Sessions.serve`."""
        await self._sessions.serve(transport, first, uid, detached=detached)

    async def pause(self, uid: int) -> None:
        """See `Pauses.pause`."""
        await self._pauses.pause(uid)

    async def unpause(self, uid: int) -> None:
        """See `Pauses.unpause`."""
        await self._pauses.unpause(uid)

    async def change_policy(
        self, question: words.Allow | words.Deny, uid: int
    ) -> words.PolicyChanged:
        """See `Orders.allow` and `Orders.deny`."""
        if isinstance(question, words.Deny):
            done = await self._orders.deny(question.rule, uid)
        else:
            seconds, typed = question.seconds, question.typed
            done = await self._orders.allow(question.rule, uid, seconds, typed=typed)
        return words.PolicyChanged(done.rule, done.cut, done.until)

    async def policy(self) -> AsyncGenerator[words.Rule, None]:
        """See `Orders.rules`."""
        async with contextlib.aclosing(self._orders.rules()) as rules:
            async for one in rules:
                yield words.Rule(one.rule, one.origin, one.who, one.until)
