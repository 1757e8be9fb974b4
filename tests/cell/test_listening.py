"""The bounds on what others can make the supervisor do, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from wgcell.cell.listening import RATE_OF_OTHERS, RATES, Admission, Ceiling, fair


@pytest.mark.parametrize("kind", ["flow", "handshake"])
def test_a_kind_is_told_at_a_rate(kind: str) -> None:
    rate = RATES.get(kind, RATE_OF_OTHERS)
    ceiling = Ceiling()
    told = [ceiling.admit(kind, 100, 1.0) for _ in range(1000)]
    assert told.count(Admission.WRITTEN) == rate.at_once and Admission.FULL not in told
    later = [ceiling.admit(kind, 100, 1.0 + 10) for _ in range(1000)]
    assert later.count(Admission.WRITTEN) == 10 * rate.a_second
    # One kind's flood is not another's loss.
    assert ceiling.admit("path_mtu", 100, 1.0) is Admission.WRITTEN


def test_beyond_the_ceiling_that_is_said_once_and_only_firsts_are_told() -> None:
    ceiling = Ceiling(most=1000)
    told = [ceiling.admit("flow", 300, float(now)) for now in range(100)]
    # The first of its kind is not counted against it.
    assert [told.count(one) for one in (Admission.WRITTEN, Admission.FULL)] == [4, 1]
    assert told[4] is Admission.FULL
    assert ceiling.admit("handshake", 10_000, 100.0) is Admission.WRITTEN
    assert ceiling.admit("handshake", 1, 200.0) is Admission.COUNTED


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
