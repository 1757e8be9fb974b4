"""The process around an engine."""

from __future__ import annotations

import asyncio

from wgcell.gateway import __main__ as process


def test_what_nothing_has_caught_is_told_but_not_without_end() -> None:
    told: list[dict[str, object]] = []
    stumbles = process.UncaughtErrors(told.append)

    async def many() -> None:
        for _ in range(1000):
            stumbles(asyncio.get_running_loop(), {"message": "m", "exception": OSError("e")})

    asyncio.run(many())
    assert 1 <= len(told) <= 10 and told[0] == {"event": "stumble", "detail": "m: OSError('e')"}
