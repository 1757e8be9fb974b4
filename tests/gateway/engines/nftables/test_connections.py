"""How a proxied TCP connection ends."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from tests.support.waiting import forever

from wgcell.gateway.engines.nftables.connections import finish


def test_what_a_peer_does_not_take_keeps_its_flow_open() -> None:
    """The target has ended, and the peer; but it reads nothing of what is left."""

    class Ended:
        async def run(self, target: object) -> str:
            return "closed"

    class Unread:
        closed = False

        @property
        def transport(self) -> Unread:
            return self

        def get_extra_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(fileno=lambda: 3)

        def abort(self) -> None:
            assert self.closed

        def close(self) -> None:
            self.closed = True

        async def wait_closed(self) -> None:
            await forever()

    async def to_its_end() -> tuple[str, bool, float]:
        begun, unread = time.monotonic(), Unread()
        connection = None, unread
        ended = await finish(Ended(), None, connection, takes_rest=0.2)  # type: ignore[arg-type]
        return ended, unread.closed, time.monotonic() - begun

    ended, closed, taken = asyncio.run(to_its_end())
    assert ended == "closed" and closed and 0.2 <= taken < 5
