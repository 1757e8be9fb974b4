"""Obeys the orders that a running gateway gets, and ends each rule when its time is over.

A change is applied as a whole before it is reported: from then on new flows are decided by it, and
open flows that it does not allow have ended. A change that can't be applied is refused, and all is
as it was. One that ends and can't be taken back ends the gateway: nothing that is over stays open.

Times are those of a clock that goes on while the machine sleeps (CLOCK_BOOTTIME). An event loop's
own clock stands still meanwhile, so the clock is looked at twice a second while a rule has an end.
If whoever has given the orders dies, the gateway dies, and everything closes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from wgcell.errors import WgcellError
from wgcell.gateway import words
from wgcell.gateway.engines.engine import Engine
from wgcell.gateway.model.changes import Change, Changes
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.parsing import configured
from wgcell.gateway.model.rules import Action, parse_rule
from wgcell.gateway.peer.events import Report
from wgcell.net import addresses

__all__ = ["Orders"]

_LOOK_EVERY = 0.5
"""Seconds between two looks at the clock."""
_WORDS = {Action.ALLOW: "allow", Action.REFUSE: "deny"}


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Orders:
    """The orders of one gateway, whose ``engine`` serves ``config``.

    ``give_up`` ends the gateway. ``clock`` gives seconds.
    """

    def __init__(
        self,
        engine: Engine,
        config: GatewayConfig,
        report: Report,
        give_up: Callable[[], None],
        clock: Callable[[], float] = _since_boot,
    ) -> None:
        self._engine = engine
        self._config = config
        """Without the changes."""
        self._report = report
        self._give_up = give_up
        self._clock = clock
        self._changes = Changes()
        self._changing = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None

    async def obey(self, order: words.Order) -> None:
        """Do what ``order`` says, and report it.

        Raises WgcellError, ValueError and OSError for a `words.Configure` that can't be followed;
        any other order is then answered by a `words.OrderRefused`.
        """
        match order:
            case words.Configure():
                await self._configure(configured(order))
            case words.Allow() | words.Deny():
                await self._change(order)
            case words.ListRules(number):
                for event in self._listed(number):
                    self._report(event)

    async def close(self) -> None:
        """End no rule any more."""
        if self._ending is not None:
            self._ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ending

    async def _configure(self, config: GatewayConfig) -> None:
        async with self._changing:
            await self._engine.apply(self._changes.over(config))
            self._config = config
        self._report(words.Applied())

    async def _change(self, order: words.Allow | words.Deny) -> None:
        action = Action.ALLOW if isinstance(order, words.Allow) else Action.REFUSE
        seconds = order.seconds if isinstance(order, words.Allow) else None
        try:
            rule = parse_rule(order.rule, action)
            async with self._changing:
                until = None if seconds is None else self._clock() + seconds
                change = Change(rule, until, order.who)
                cut = await self._apply(self._changes.added(change))
        except WgcellError as error:
            self._report(words.OrderRefused(order.number, error.message, error.hint))
            return
        except OSError as error:
            self._report(words.OrderRefused(order.number, str(error)))
            return
        self._report(self._changed(change, _WORDS[action], cut, order.number))
        if until is not None and (self._ending is None or self._ending.done()):
            self._ending = asyncio.create_task(self._end_in_time())

    async def _apply(self, changes: Changes) -> int:
        """Bring ``changes`` into force. Returns how many open flows that has ended."""
        cut = await self._engine.apply(changes.over(self._config))
        self._changes = changes
        return cut

    async def _end_in_time(self) -> None:
        """Take back each rule whose time is over, until none has an end."""
        while (end := self._changes.next_end) is not None:
            if (left := end - self._clock()) > 0:
                await asyncio.sleep(min(left, _LOOK_EVERY))
                continue
            async with self._changing:
                changes, over = self._changes.without_ended(self._clock())
                try:
                    cut = await self._apply(changes)
                except (WgcellError, OSError) as error:
                    what = ", ".join(one.rule.text for one in over)
                    self._report(words.Fault(f"{what}: over, and can't be taken back: {error}"))
                    self._give_up()
                    return
            for one in over:
                self._report(self._changed(one, "expired", cut))
                cut = 0

    def _changed(
        self, change: Change, what: str, cut: int, number: int | None = None
    ) -> words.PolicyChanged:
        now = round(time.time(), 3)
        until = self._wall_time(change) if what == "allow" else None
        rule = change.rule.text
        return words.PolicyChanged(now, what, rule, change.who, cut, number, until)

    def _wall_time(self, change: Change) -> float | None:
        """When ``change`` is over, in Unix seconds; None: with the gateway."""
        if change.until is None:
            return None
        return round(time.time() + change.until - self._clock(), 3)

    def _listed(self, number: int) -> Iterator[words.RulesListed]:
        every = list(self._rules())
        parts = [
            tuple(every[begin : begin + words.RULES_AT_ONCE])
            for begin in range(0, len(every), words.RULES_AT_ONCE)
        ]
        for part, behind in itertools.zip_longest(parts or [()], parts[1:]):
            yield words.RulesListed(number, part, behind is not None)

    def _rules(self) -> Iterator[words.RuleInForce]:
        """All that is in force, of all peers, in the order in which it is read."""
        for one in self._changes.latest_first:
            until = self._wall_time(one)
            yield words.RuleInForce(one.rule.text, "order", one.who, until)
        config = self._changes.over(self._config)
        for service in config.services:
            inside = addresses.written(service.name or str(service.address), service.port)
            target = addresses.written(service.target_host, service.target_port)
            yield words.RuleInForce(f"service {inside} = {target}", "service")
        yield from (words.RuleInForce(text, "start") for text in _once(self._config))
        for peer in config.peers:
            for port in peer.published:
                yield words.RuleInForce(f"publish {port.text}", "published")


def _once(config: GatewayConfig) -> Iterable[str]:
    """The rules that ``config`` has for any of its peers, each once."""
    texts = [rule.text for peer in config.peers for rule in peer.policy.rules]
    if any(peer.policy.learn for peer in config.peers):
        texts.append("learn")
    return dict.fromkeys(texts)
