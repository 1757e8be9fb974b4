"""Proxies an allowed TCP flow: connects to its target and splices it, the same in each engine.

The first bytes of a client are compared with the names that allow its flow (see `hostcheck`) before
any byte is forwarded. The engine has decided; here the bytes are moved, counted and throttled,
until either side ends, no byte moves for too long, or the flow is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.policy import LEARNED, Decision
from wgcell.gateway.proxy import hostcheck
from wgcell.gateway.proxy.splice import (
    CHUNK,
    Connection,
    FlowRefused,
    LocalAddress,
    Stream,
    Unreachable,
    cancel,
    until_done,
)

__all__ = ["Splice", "connect"]

CONNECT_TIMEOUT = 10.0
"""Seconds that a target may take to accept."""
HEAD_TIMEOUT = 10.0
"""Seconds from a client's first byte to the end of its ClientHello or HTTP head."""
TCP_IDLE = 3600.0
"""Seconds without a byte after which a flow is over."""
_QUICK_READS = 16
_SLOW_READS = 0.25
"""Seconds between two reads of a head that comes in more pieces than that: with each piece, all of
it is parsed again."""


async def connect(flow: Flow, decision: Decision, may_be_local: bool) -> Connection:
    """Connect to the target of ``flow``; ``may_be_local`` says whether it may be this very machine.

    Raises `Unreachable`, also after `CONNECT_TIMEOUT`, and `LocalAddress`.
    """
    what = "service" if decision.target else "target"
    host, port = decision.target or (str(flow.address), flow.port)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:  # TimeoutError is one
        raise Unreachable(what, host, port, error) from None
    here, there = (writer.get_extra_info(end) for end in ("sockname", "peername"))
    # A connection whose ends have one address stays on this machine, whatever addresses the machine
    # has by now. A target that has ended already has no peername.
    if there and here[0] == there[0] and not may_be_local:
        writer.transport.abort()
        raise LocalAddress
    return reader, writer


@dataclass(slots=True)
class Splice:
    """One flow between the peer's ``stream`` and its target.

    ``throttle`` is awaited before that many bytes are moved. ``soonest_end`` is the least time, in
    seconds from the start of the flow, after which the end of a target is passed on.
    """

    stream: Stream
    flow: Flow
    throttle: Callable[[int], Awaitable[None]] | None = None
    soonest_end: float = 0.0
    head_timeout: float = HEAD_TIMEOUT
    _half_ended: bool = False
    _moved: list[float] = field(default_factory=lambda: [time.monotonic()])

    async def run(self, target: Connection) -> str:
        """Move bytes until the flow ends. Returns the reason, ``closed`` or ``idle``.

        ``target`` comes from `connect`. Raises `FlowRefused` and OSError.
        """
        reader, writer = target
        self._moved[0] = time.monotonic()
        tasks = [
            asyncio.create_task(self._outward(writer)),
            asyncio.create_task(self._inward(reader)),
        ]
        try:
            return await until_done(tasks, self._moved, TCP_IDLE)
        except ConnectionError:
            # After one side's end, the other may reset bytes that it does not wait for: TLS's
            # close_notify often reaches a side that has closed already (RFC 8446, 6.1).
            if self._half_ended:
                return "closed"
            raise
        finally:
            writer.transport.abort()
            await cancel(tasks)

    async def _count(self, raw: bytes) -> None:
        self._moved[0] = time.monotonic()
        if self.throttle is not None:
            await self.throttle(len(raw))

    async def _outward(self, writer: asyncio.StreamWriter) -> None:
        raw = await self.stream.read(CHUNK)
        if raw and self.flow.names and self.flow.checked and self.flow.rule != LEARNED:
            raw = await self.checked_head(raw)
        while raw:
            self.flow.bytes_out += len(raw)
            await self._count(raw)
            writer.write(raw)
            await writer.drain()
            raw = await self.stream.read(CHUNK)
        self._half_ended = True
        if writer.can_write_eof():
            writer.write_eof()

    async def checked_head(self, raw: bytes) -> bytes:
        """``raw`` and what follows, once these bytes ask for one of the flow's names.

        Raises `FlowRefused` if they do not, and after ``head_timeout`` seconds.
        """
        try:
            async with asyncio.timeout(self.head_timeout):
                reads = 0
                while (seen := hostcheck.check(raw, self.flow.names, self.flow.port)) is None:
                    reads += 1
                    if reads > _QUICK_READS:
                        await asyncio.sleep(_SLOW_READS)
                    more = await self.stream.read(CHUNK)
                    if not more:
                        raise FlowRefused("it ended within its TLS hello or HTTP head", "")
                    raw += more
        except TimeoutError:
            why = f"no whole TLS hello or HTTP head within {self.head_timeout:.0f} s"
            raise FlowRefused(why, "") from None
        if seen.refusal:
            raise FlowRefused(seen.refusal, seen.host, unchecked=seen.unchecked)
        if seen.host:
            self.flow.names = (seen.host,)
        return raw

    async def _inward(self, reader: asyncio.StreamReader) -> None:
        while raw := await reader.read(CHUNK):
            self.flow.bytes_in += len(raw)
            await self._count(raw)
            self.stream.write(raw)
            await self.stream.drain()
        self._half_ended = True
        early = self.flow.started + self.soonest_end - time.monotonic()
        if early > 0 and not self.flow.bytes_out:
            await asyncio.sleep(early)
        self.stream.write_eof()
