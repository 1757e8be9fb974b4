"""The bounds on what others can make the supervisor do, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from wgcell.cell.listening import RATE_OF_OTHERS, RATES, Causes, Ceiling, Told, fair
from wgcell.cell.states import Cause


def test_a_cause_waits_once_with_its_first_reason_and_in_order() -> None:
    causes = Causes()
    for number in range(1000):
        causes.put(Cause.GUEST_FAULTED, f"fault {number}")
        causes.put(Cause.CANCEL, "Ctrl-C")
    assert len(causes) == 2
    assert causes.take() == (Cause.GUEST_FAULTED, "fault 0")
    causes.put(Cause.GUEST_FAULTED, "another")
    assert [causes.take()[0] for _ in range(2)] == [Cause.CANCEL, Cause.GUEST_FAULTED]
    assert causes.empty()


def test_who_waits_for_a_cause_gets_it() -> None:
    async def body() -> None:
        causes = Causes()
        waiting = asyncio.create_task(causes.get())
        await asyncio.sleep(0)
        assert not waiting.done()
        causes.put(Cause.CANCEL, "why")
        assert await waiting == (Cause.CANCEL, "why")

    asyncio.run(body())


@pytest.mark.parametrize("kind", ["flow", "handshake"])
def test_a_kind_is_told_at_a_rate(kind: str) -> None:
    rate = RATES.get(kind, RATE_OF_OTHERS)
    ceiling = Ceiling()
    told = [ceiling.admit(kind, 100, 1.0) for _ in range(1000)]
    assert told.count(Told.YES) == rate.at_once and Told.FULL not in told
    later = [ceiling.admit(kind, 100, 1.0 + 10) for _ in range(1000)]
    assert later.count(Told.YES) == 10 * rate.a_second
    # One kind's flood is not another's loss.
    assert ceiling.admit("path_mtu", 100, 1.0) is Told.YES


def test_beyond_the_ceiling_that_is_said_once_and_only_firsts_are_told() -> None:
    ceiling = Ceiling(most=1000)
    told = [ceiling.admit("flow", 300, float(now)) for now in range(100)]
    # The first of its kind is not counted against it.
    assert [told.count(one) for one in (Told.YES, Told.FULL)] == [4, 1]
    assert told[4] is Told.FULL
    assert ceiling.admit("handshake", 10_000, 100.0) is Told.YES
    assert ceiling.admit("handshake", 1, 200.0) is Told.COUNTED


def test_between_two_words_others_have_a_turn() -> None:
    async def words() -> AsyncIterator[int]:
        for number in range(10):
            yield number

    async def body() -> None:
        heard: list[int] = []

        async def other() -> None:
            while len(heard) < 10:
                turns.append(len(heard))
                await asyncio.sleep(0)

        turns: list[int] = []
        beside = asyncio.create_task(other())
        async for number in fair(words()):
            heard.append(number)
        await beside
        assert turns == list(range(1, 10))

    asyncio.run(body())
