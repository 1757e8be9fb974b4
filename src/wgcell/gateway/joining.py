"""An allowed flow, joined to its target by a socket of this process's: the same in each engine.

What a TCP client says first is compared with the name that its flow is allowed by (see
`wgcell.gateway.hello`) before a byte of it goes on. The engine has decided; here the bytes move,
are counted and paced, until either side has ended, has been silent too long, or is cut off.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from wgcell.gateway import hello
from wgcell.gateway.flows import Flow
from wgcell.gateway.policy import LEARNED, Decision
from wgcell.net import addresses

__all__ = [
    "CHUNK",
    "UDP_IDLE",
    "Joining",
    "NotReached",
    "OwnAddress",
    "Refused",
    "Stream",
    "Target",
    "join_datagrams",
    "reach",
]

CONNECT_TIMEOUT = 10.0
"""Seconds an allowed flow may take to reach its target."""
HELLO_TIMEOUT = 10.0
"""Seconds from a client's first byte to the end of its TLS hello or HTTP head."""
TCP_IDLE = 3600.0
"""Seconds without a byte after which a flow is over."""
UDP_IDLE = 60.0
"""The same of a UDP flow."""
_QUICK_READS = 16
_SLOW_READS = 0.25
"""Seconds between two readings of a head that has come in more pieces than that: each piece has
all of it read again."""
CHUNK = 65536


class Refused(Exception):
    """A flow that is refused after it has begun, with the reason and the host it asked for."""

    def __init__(self, reason: str, host: str, *, unchecked: bool = False) -> None:
        super().__init__(reason)
        self.host = host
        self.unchecked = unchecked
        """Whether only a rule that has no host checked would let it through."""


class OwnAddress(Refused):
    """The target is this very machine, and no rule is its address. Found before a byte is read."""

    def __init__(self) -> None:
        super().__init__("it is this machine's own address, and no rule is that address", "")


class NotReached(Exception):
    """The target did not answer; why. ``refused``: it did, by a reset."""

    def __init__(self, what: str, host: str, port: int, error: OSError) -> None:
        number = error.errno or 0  # negative: getaddrinfo's
        why = os.strerror(number) if number > 0 else str(error)
        super().__init__(f"{what} {addresses.written(host, port)}: {why or 'timed out'}")
        self.refused = isinstance(error, ConnectionRefusedError)


Target = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""A target's end of a flow."""


class Stream(Protocol):
    """The peer's end of a flow."""

    async def read(self, n: int, /) -> bytes:
        """At most so many bytes; none at the end."""

    def write(self, data: bytes, /) -> Any:
        """Queue bytes."""

    async def drain(self) -> None:
        """Wait until there is room for more."""

    def write_eof(self) -> Any:
        """End this direction."""


async def reach(flow: Flow, decision: Decision, own: bool) -> Target:
    """Connect to a flow's target; ``own`` is whether that may be this very machine.

    Raises NotReached and OwnAddress.
    """
    what = "service" if decision.target else "target"
    host, port = decision.target or (str(flow.address), flow.port)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:  # TimeoutError is one
        raise NotReached(what, host, port, error) from None
    here, there = (writer.get_extra_info(end) for end in ("sockname", "peername"))
    # A target that has ended already has no name.
    if there and here[0] == there[0] and not own:
        # Whatever addresses this machine has by now.
        writer.transport.abort()
        raise OwnAddress
    return reader, writer


@dataclass(slots=True)
class Joining:
    """One flow between the peer's ``stream`` and its target.

    ``pace`` is awaited before so many bytes are moved; ``soonest_end`` is the least time, in
    seconds from the flow's start, after which the target's end is passed on.
    """

    stream: Stream
    flow: Flow
    pace: Callable[[int], Awaitable[None]] | None = None
    soonest_end: float = 0.0
    _half_ended: bool = False
    _moved: list[float] = field(default_factory=lambda: [time.monotonic()])

    async def run(self, target: Target) -> str:
        """Why it ended; ``target`` is what `reach` returned. Raises Refused and OSError."""
        reader, writer = target
        self._moved[0] = time.monotonic()
        tasks = [
            asyncio.create_task(self._outward(writer)),
            asyncio.create_task(self._inward(reader)),
        ]
        try:
            return await _until_done(tasks, self._moved, TCP_IDLE)
        except ConnectionError:
            # After one side's end the other may reset what it does not wait for: TLS's farewell
            # often comes to who has closed already (RFC 8446, 6.1).
            if self._half_ended:
                return "closed"
            raise
        finally:
            writer.transport.abort()
            await _cancel(tasks)

    async def _count(self, raw: bytes) -> None:
        self._moved[0] = time.monotonic()
        if self.pace is not None:
            await self.pace(len(raw))

    async def _outward(self, writer: asyncio.StreamWriter) -> None:
        raw = await self.stream.read(CHUNK)
        if raw and self.flow.names and self.flow.checked and self.flow.rule != LEARNED:
            raw = await self._greeted(raw)
        while raw:
            self.flow.bytes_out += len(raw)
            await self._count(raw)
            writer.write(raw)
            await writer.drain()
            raw = await self.stream.read(CHUNK)
        self._half_ended = True
        if writer.can_write_eof():
            writer.write_eof()

    async def _greeted(self, raw: bytes) -> bytes:
        """The first bytes, once they are seen to ask for one of the names. Raises `Refused`."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                reads = 0
                while (seen := hello.judge(raw, self.flow.names, self.flow.port)) is None:
                    reads += 1
                    if reads > _QUICK_READS:
                        await asyncio.sleep(_SLOW_READS)
                    more = await self.stream.read(CHUNK)
                    if not more:
                        raise Refused("it ended within its TLS hello or HTTP head", "")
                    raw += more
        except TimeoutError:
            why = f"no whole TLS hello or HTTP head within {HELLO_TIMEOUT:.0f} s"
            raise Refused(why, "") from None
        if seen.refusal:
            raise Refused(seen.refusal, seen.host, unchecked=seen.unchecked)
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


async def join_datagrams(
    stream: Stream,
    flow: Flow,
    own: bool,
    pace: Callable[[int], Awaitable[None]] | None = None,
    *,
    endless: bool = False,
) -> str:
    """A UDP flow; why it ended. Raises NotReached, OwnAddress and OSError: ICMP's errors end it.

    ``endless``: what is read and holds no byte is an empty datagram, not the end.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET if flow.address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect((str(flow.address), flow.port))
        except OSError as error:  # no packet is sent: there is no way, or none is permitted
            raise NotReached("target", str(flow.address), flow.port, error) from None
        if sock.getsockname()[0] == str(flow.address) and not own:
            raise OwnAddress
        moved = [time.monotonic()]

        async def outward() -> None:
            while (raw := await stream.read(CHUNK)) or endless:
                moved[0] = time.monotonic()
                flow.bytes_out += len(raw)
                if pace is not None:
                    await pace(len(raw))
                await loop.sock_sendall(sock, raw)

        async def inward() -> None:
            while True:
                raw = await loop.sock_recv(sock, CHUNK)
                moved[0] = time.monotonic()
                flow.bytes_in += len(raw)
                if pace is not None:
                    await pace(len(raw))
                stream.write(raw)
                await stream.drain()
                await asyncio.sleep(0)  # a socket with more to read holds up nobody else

        tasks = [asyncio.create_task(outward()), asyncio.create_task(inward())]
        try:
            return await _until_done(tasks[:1], moved, UDP_IDLE, tasks[1:])
        finally:
            await _cancel(tasks)


async def _until_done(
    tasks: list[asyncio.Task[None]],
    moved: list[float],
    idle: float,
    others: list[asyncio.Task[None]] | None = None,
) -> str:
    """Until all of ``tasks`` are done, one of any fails (raises its error), or nothing moves.

    ``moved`` holds the moment of the last byte, ``idle`` the seconds without one.
    """
    every = {*tasks, *(others or ())}
    while True:
        left = moved[0] + idle - time.monotonic()
        if left <= 0:
            return "idle"
        done, _ = await asyncio.wait(every, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            every.discard(task)
            task.result()
        if all(task.done() for task in tasks):
            return "closed"


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
