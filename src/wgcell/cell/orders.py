"""Orders to a running cell's own gateway: which rules are in force, and others before them.

Whoever types a rule needs no permission for it, as with ``--allow``. A rule that is a stranger's
wish is held to the provider's limits, as a job file's is (`wgcell.cell.permissions`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable

from wgcell.cell.core import Core
from wgcell.cell.core import events as seen
from wgcell.cell.launch import Launch
from wgcell.errors import PolicyError, StateError
from wgcell.gateway import words
from wgcell.home import config_path

__all__ = ["PATIENCE", "Answer", "Orders", "Vet"]

PATIENCE = 20.0
"""Seconds that the gateway has for each answer; it takes some 50 ms."""

Answer = words.PolicyChanged | words.OrderRefused | words.RulesListed
Vet = Callable[[str], str]
"""What a stranger's ``allow`` of that rule would open beyond the provider's limits, in words; empty
if nothing. Raises `PolicyError` for what is no rule."""


class Orders:
    """One cell's. ``vet`` is None where no stranger's wish is granted."""

    def __init__(
        self, core: Core, launch: Launch, feed: Callable[[seen.Event], None], vet: Vet | None
    ) -> None:
        self._core, self._launch, self._feed, self._vet = core, launch, feed, vet
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[Answer]] = {}

    async def allow(
        self, rule: str, uid: int, seconds: float | None, *, typed: bool
    ) -> words.PolicyChanged:
        """Put an ``allow`` before all rules, for that user. Raises StateError with the reason."""
        if not typed:
            await asyncio.to_thread(self._permit, rule)  # it asks the kernel for its networks
        return await self._changed(words.Allow(next(self._numbers), rule, uid, seconds))

    async def deny(self, rule: str, uid: int) -> words.PolicyChanged:
        """Put a ``deny`` before all rules, for that user. Raises StateError with the reason."""
        return await self._changed(words.Deny(next(self._numbers), rule, uid))

    async def rules(self) -> AsyncGenerator[words.RuleInForce, None]:
        """The rules in force, as they are read. Raises StateError with the reason."""
        order = words.ListRules(next(self._numbers))
        async with contextlib.aclosing(self._answers(order)) as answers:
            async for answer in answers:
                if isinstance(answer, words.RulesListed):
                    for rule in answer.rules:
                        yield rule
                    if not answer.more:
                        return

    def answered(self, answer: Answer) -> None:
        """The gateway has answered."""
        waiting = None if answer.number is None else self._waiting.get(answer.number)
        if waiting is not None:
            waiting.put_nowait(answer)

    def _permit(self, rule: str) -> None:
        if self._vet is None:
            raise StateError("nobody says what a stranger may have opened here")
        try:
            refused = self._vet(rule)
        except PolicyError as error:
            raise StateError(error.message, hint=error.hint) from None
        if refused:
            raise StateError(refused, hint=f'allow_targets = ["{rule}"] in {config_path()}')

    async def _changed(self, order: words.Allow | words.Deny) -> words.PolicyChanged:
        async with contextlib.aclosing(self._answers(order)) as answers:
            async for answer in answers:
                if isinstance(answer, words.PolicyChanged):
                    return answer
        raise StateError("its gateway has not answered")

    async def _answers(
        self, order: words.Allow | words.Deny | words.ListRules
    ) -> AsyncGenerator[Answer, None]:
        if self._launch.gateway is None:
            raise StateError(self._no_gateway())
        if why := self._core.no_orders:
            raise StateError(why)
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        self._waiting[order.number] = answers
        try:
            self._feed(seen.OrderAsked(order))
            while True:
                async with asyncio.timeout(PATIENCE):
                    answer = await answers.get()
                if isinstance(answer, words.OrderRefused):
                    raise StateError(answer.reason, hint=answer.hint)
                yield answer
        except TimeoutError:
            raise StateError(
                f"its gateway has not answered within {PATIENCE:g} s",
                hint="wgcell policy CELL says which rules are in force",
            ) from None
        finally:
            del self._waiting[order.number]

    def _no_gateway(self) -> str:
        if self._core.no_orders:
            return self._core.no_orders
        return "its tunnel leads to another server, which decides what may be reached"
