"""Orders to a cell's own gateway, from its control socket to a real gateway process and back.

The cell has no machine: its gateway is started as any cell's, and its life stands still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.supervisors import Finished, closed, supervisor  # noqa: F401
from tests.support.waiting import forever, soon

from wgcell.cell import orders
from wgcell.cell.control import words
from wgcell.cell.control.client import ask
from wgcell.cell.control.place import NAME
from wgcell.cell.core import events as seen
from wgcell.cell.job import GatewayAsked
from wgcell.cell.states import Cause
from wgcell.cell.supervisor import Supervisor
from wgcell.errors import PolicyError, StateError

ME = os.getuid()


class WithGateway(Supervisor):
    """One whose start ends behind its gateway's."""

    async def live(self) -> None:
        await self.launch._tunnel(self)
        self.feed(seen.Caused(Cause.PREPARED))
        await forever()


class Around:
    def __init__(self, one: Supervisor) -> None:
        self.one, self.folder = one, one.host.folder

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.folder.path / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def changes(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "policy_changed"]

    async def asked(self, question: words.Question) -> list[Any]:
        return await asyncio.to_thread(lambda: list(ask(self.folder, question, patience=60)))


@asynccontextmanager
async def living(cells: Path, vet: Callable[[str], str] | None = None) -> AsyncIterator[Around]:
    asked = GatewayAsked(("api.example.com:443",), (("db", "127.0.0.1:5432"),))
    made = supervisor(cells, kind=WithGateway, gateway=asked)
    object.__setattr__(made.host, "gateway_engine", "embedded")
    made.orders._vet = vet
    running = asyncio.create_task(made.run())
    around = Around(made)
    await soon(lambda: made.core.no_orders == "" or running.done())
    try:
        yield around
    finally:
        made.abort("stopped")
        with contextlib.suppress(Exception):
            await running


def test_a_rule_is_allowed_for_a_while_and_all_of_it_is_on_record(tmp_path: Path) -> None:
    async def body() -> None:
        async with living(tmp_path) as cell:
            allow = words.Allow("b.example.com:443", True, 2.0)
            (done,) = await cell.asked(allow)
            assert isinstance(done, words.PolicyChanged)
            assert (done.rule, done.cut) == ("allow b.example.com:443", 0)
            (event,) = cell.changes()
            assert (event["change"], event["by"]) == ("allow", ME)
            assert event["until"] == done.until
            rules = await cell.asked(words.Policy())
            assert [(rule.rule, rule.origin, rule.by) for rule in rules] == [
                ("allow b.example.com:443", "order", ME),
                ("service db.internal:5432 = 127.0.0.1:5432", "service", None),
                ("allow api.example.com:443", "start", None),
            ]
            await soon(lambda: len(cell.changes()) == 2)
            assert cell.changes()[1]["change"] == "expired" and cell.changes()[1]["by"] == ME
            assert len(await cell.asked(words.Policy())) == 2

    asyncio.run(body())


def test_a_deny_and_what_is_no_rule(tmp_path: Path) -> None:
    async def body() -> None:
        async with living(tmp_path) as cell:
            (done,) = await cell.asked(words.Deny("*:*"))
            assert (done.rule, done.until) == ("deny *:*", None)
            with pytest.raises(StateError, match=r"has no port.*for HTTPS write a.example.com:443"):
                await cell.asked(words.Allow("a.example.com", True))
            assert len(cell.changes()) == 1

    asyncio.run(body())


def test_a_strangers_wish_passes_the_providers_limits_and_a_persons_word_does_not(
    tmp_path: Path,
) -> None:
    vetted: list[str] = []

    def vet(rule: str) -> str:
        vetted.append(rule)
        if "=" in rule:
            raise PolicyError("no rule", hint="write one")
        return "it is private" if "192.168" in rule else ""

    async def body() -> None:
        async with living(tmp_path, vet) as cell:
            with pytest.raises(StateError, match=r"it is private.*allow_targets"):
                await cell.asked(words.Allow("192.168.1.9:80", False))
            with pytest.raises(StateError, match=r"no rule.*write one"):
                await cell.asked(words.Allow("a=b", False))
            assert not cell.changes()
            assert await cell.asked(words.Allow("a.example.com:80", False))
            assert len(vetted) == 3
            assert await cell.asked(words.Allow("192.168.1.9:80", True))
            assert len(vetted) == 3 and len(cell.changes()) == 2

    asyncio.run(body())


def test_where_nobody_vets_no_strangers_wish_is_granted(tmp_path: Path) -> None:
    async def body() -> None:
        async with living(tmp_path) as cell:
            with pytest.raises(StateError, match="nobody says what a stranger"):
                await cell.asked(words.Allow("a.example.com:80", False))

    asyncio.run(body())


def test_a_gateway_that_does_not_answer_holds_up_one_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "PATIENCE", 0.2)

    async def body() -> None:
        async with living(tmp_path) as cell:
            gateway = cell.one.launch.gateway
            assert gateway is not None
            with monkeypatch.context() as silent:
                silent.setattr(type(gateway), "send", lambda self, order: None)
                with pytest.raises(StateError, match="has not answered within"):
                    await cell.asked(words.Deny("*:*"))
            assert not cell.one.orders._waiting
            monkeypatch.setattr(orders, "PATIENCE", 60)
            assert await cell.asked(words.Policy())

    asyncio.run(body())


def test_many_callers_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async def body() -> None:
        async with living(tmp_path) as cell:
            rules = [f"n{number}.example.com:443" for number in range(20)]
            asked = [cell.asked(words.Allow(rule, True)) for rule in rules]
            done = [answer for (answer,) in await asyncio.gather(*asked)]
            assert [one.rule for one in done] == [f"allow {rule}" for rule in rules]

    asyncio.run(body())


def test_a_cell_with_somebody_elses_tunnel_has_no_rules_here(tmp_path: Path) -> None:
    class Endless(Finished):
        async def live(self) -> None:
            self.feed(seen.Caused(Cause.PREPARED))
            await forever()

    async def body() -> None:
        cell = Endless(tmp_path)
        running = asyncio.create_task(cell.run())
        await soon((cell.folder.path / NAME).exists)
        await soon(lambda: cell.core.no_orders == "")
        for question in (words.Policy(), words.Deny("*:*"), words.Allow("a.example.com:1", True)):
            with pytest.raises(StateError, match="its tunnel leads to another server"):
                await asyncio.to_thread(lambda question=question: list(ask(cell.folder, question)))
        cell.abort("stopped")
        await running

    asyncio.run(body())
