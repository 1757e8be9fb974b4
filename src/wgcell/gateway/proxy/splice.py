"""What the proxies of TCP and of UDP have in common: a stream's form, and why a flow fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from typing import Protocol

from wgcell.net import addresses

__all__ = [
    "CHUNK",
    "Connection",
    "FlowRefused",
    "LocalAddress",
    "Stream",
    "Unreachable",
    "abort",
    "cancel",
    "reset",
    "until_done",
]

CHUNK = 65536
"""Bytes of one read."""

_RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which a close resets the connection (socket(7))."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""One end of a TCP flow."""


class FlowRefused(Exception):
    """A flow is refused after it has begun; the reason, and the host that it asked for."""

    def __init__(self, reason: str, host: str, *, unchecked: bool = False) -> None:
        super().__init__(reason)
        self.host = host
        self.unchecked = unchecked
        """Whether only a rule with ``/unchecked`` would let the flow pass."""


class LocalAddress(FlowRefused):
    """The target is this very machine, and no rule names its address. No byte was read yet."""

    def __init__(self) -> None:
        super().__init__("it is this machine's own address, and no rule is that address", "")


class Unreachable(Exception):
    """The target did not accept. ``reset`` says whether it answered with a reset."""

    def __init__(self, what: str, host: str, port: int, error: OSError) -> None:
        number = error.errno or 0  # negative: an error number of getaddrinfo
        why = os.strerror(number) if number > 0 else str(error)
        super().__init__(f"{what} {addresses.written(host, port)}: {why or 'timed out'}")
        self.reset = isinstance(error, ConnectionRefusedError)


class Stream(Protocol):
    """The peer's end of a flow."""

    async def read(self, n: int, /) -> bytes:
        """At most ``n`` bytes; none at the end."""

    def write(self, data: bytes, /) -> object:
        """Queue bytes."""

    async def drain(self) -> None:
        """Wait until there is room for more."""

    def write_eof(self) -> object:
        """End this direction."""


async def until_done(
    tasks: list[asyncio.Task[None]],
    moved: list[float],
    idle: float,
    others: list[asyncio.Task[None]] | None = None,
) -> str:
    """Wait until all of ``tasks`` are done (``closed``) or no byte moves (``idle``).

    ``moved`` holds the time of the last byte, ``idle`` the seconds without one. Raises the error of
    the first task that fails, also of one of ``others``.
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


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection now, whatever was not sent yet; nothing if it is closed.

    asyncio's own abort() fails on a transport that has sent its last bytes and closed itself.
    """
    if writer.get_extra_info("socket").fileno() >= 0:
        writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that its other end gets a reset."""
    with contextlib.suppress(OSError):  # it may have ended by itself
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    abort(writer)
