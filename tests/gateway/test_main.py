"""The process around an engine."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.errors import HostError
from wgcell.gateway import __main__ as process
from wgcell.gateway import words


def test_what_nothing_has_caught_is_told_but_not_without_end() -> None:
    told: list[words.Event] = []
    stumbles = process.UncaughtErrors(told.append)

    async def many() -> None:
        for _ in range(1000):
            stumbles(asyncio.get_running_loop(), {"message": "m", "exception": OSError("e")})

    asyncio.run(many())
    assert 1 <= len(told) <= 10 and told[0] == words.Stumble("m: OSError('e')")


@given(st.binary(max_size=300))
def test_what_is_no_order_is_an_error_of_ours(line: bytes) -> None:
    with pytest.raises(HostError, match="an order that is none"):
        process._order(line)
