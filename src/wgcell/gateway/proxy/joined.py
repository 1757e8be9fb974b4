"""Joins two connections: what one end sends, the other gets, each way to its end.

Nothing is queued beyond the two sockets' buffers and a chunk each way: while one end does not read,
the other is not read either. An end that closes one direction still gets the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from wgcell.gateway.proxy.splice import CHUNK, Connection, abort, cancel, reset, until_done

__all__ = ["TAKES_REST", "join"]

IDLE = 3600.0
"""Seconds without a byte after which two connections are joined no longer."""
TAKES_REST = 30.0
"""Seconds in which an end must take some of its last bytes, once nothing more comes."""

Count = Callable[[int], None]
"""Is called with the number of bytes that have moved."""


async def join(
    one: Connection, other: Connection, *, sent: Count, received: Count, idle: float = IDLE
) -> str:
    """Move bytes until both directions have ended. Returns the reason, ``closed`` or ``idle``.

    ``sent`` hears of bytes from ``one`` to ``other``, ``received`` of the others. Neither
    connection is open when it returns. Raises OSError if an end has failed.
    """
    moved = [time.monotonic()]
    tasks = [
        asyncio.create_task(_carry(one[0], other[1], sent, moved)),
        asyncio.create_task(_carry(other[0], one[1], received, moved)),
    ]
    ended = ""
    try:
        ended = await until_done(tasks, moved, idle)
        if ended == "closed":
            await asyncio.gather(_taken(one[1]), _taken(other[1]))
    finally:
        await cancel(tasks)
        for _, writer in (one, other):
            if ended == "closed":
                abort(writer)
            else:
                reset(writer)
    return ended


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Count, moved: list[float]
) -> None:
    while raw := await reader.read(CHUNK):
        moved[0] = time.monotonic()
        count(len(raw))
        writer.write(raw)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _taken(writer: asyncio.StreamWriter) -> None:
    """Wait until the end has taken its last bytes, or takes none for `TAKES_REST`."""
    writer.close()
    closed = asyncio.ensure_future(writer.wait_closed())
    waiting = writer.transport.get_write_buffer_size()
    try:
        while not (await asyncio.wait({closed}, timeout=TAKES_REST))[0]:
            before, waiting = waiting, writer.transport.get_write_buffer_size()
            if waiting >= before:
                return
    finally:
        await cancel([closed])
