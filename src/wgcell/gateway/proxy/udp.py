"""Proxies an allowed UDP flow between the peer and a socket of this process."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

from wgcell.gateway.model.flow import Flow
from wgcell.gateway.proxy.splice import CHUNK, LocalAddress, Stream, Unreachable, cancel, until_done

__all__ = ["UDP_IDLE", "splice_datagrams"]

UDP_IDLE = 60.0
"""Seconds without a datagram after which a flow is over."""


async def splice_datagrams(
    stream: Stream,
    flow: Flow,
    may_be_local: bool,
    throttle: Callable[[int], Awaitable[None]] | None = None,
    *,
    endless: bool = False,
) -> str:
    """Move datagrams until the flow ends. Returns the reason, ``closed`` or ``idle``.

    Each `Stream.read` returns one datagram. With ``endless``, one without bytes is an empty
    datagram, not the end.

    Raises `Unreachable`, `LocalAddress`, and OSError for an ICMP error of the target.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET if flow.address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect((str(flow.address), flow.port))
        except OSError as error:  # no packet is sent: there is no route, or it is not permitted
            raise Unreachable("target", str(flow.address), flow.port, error) from None
        if sock.getsockname()[0] == str(flow.address) and not may_be_local:
            raise LocalAddress
        moved = [time.monotonic()]

        async def outward() -> None:
            while (raw := await stream.read(CHUNK)) or endless:
                moved[0] = time.monotonic()
                flow.bytes_out += len(raw)
                if throttle is not None:
                    await throttle(len(raw))
                await loop.sock_sendall(sock, raw)

        async def inward() -> None:
            while True:
                raw = await loop.sock_recv(sock, CHUNK)
                moved[0] = time.monotonic()
                flow.bytes_in += len(raw)
                if throttle is not None:
                    await throttle(len(raw))
                stream.write(raw)
                await stream.drain()
                # A socket that always has more to read must not hold up the others.
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(outward()), asyncio.create_task(inward())]
        try:
            return await until_done(tasks[:1], moved, UDP_IDLE, tasks[1:])
        finally:
            await cancel(tasks)
