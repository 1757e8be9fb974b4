"""Two joined connections: every byte, each direction to its own end, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.support.waiting import paced, soon

from wgcell.gateway.proxy import joined
from wgcell.gateway.proxy.joined import join
from wgcell.gateway.proxy.splice import Connection

LIMIT = 1 << 15


class Joined:
    """Two sockets whose other ends are joined, with what was counted."""

    def __init__(self, one: socket.socket, other: socket.socket, task: asyncio.Task[str]) -> None:
        self.one, self.other, self.task = one, other, task
        self.sent = self.received = 0

    def count_sent(self, count: int) -> None:
        self.sent += count

    def count_received(self, count: int) -> None:
        self.received += count


async def _pair() -> tuple[socket.socket, Connection]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    # Little fits into the kernel's buffers: what is left is in those of the process.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return ours, await asyncio.open_connection(sock=theirs, limit=LIMIT)


@asynccontextmanager
async def made(idle: float = 60.0) -> AsyncIterator[Joined]:
    (one, here), (other, there) = await _pair(), await _pair()
    with one, other:
        both = Joined(one, other, None)  # type: ignore[arg-type]
        both.task = asyncio.create_task(
            join(here, there, sent=both.count_sent, received=both.count_received, idle=idle)
        )
        yield both
        both.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await both.task


async def whole(sock: socket.socket, pause: float = 0.0) -> bytes:
    loop, found = asyncio.get_running_loop(), bytearray()
    while piece := await loop.sock_recv(sock, 1 << 16):
        found += piece
        if pause:
            await paced(pause)
    return bytes(found)


def test_each_direction_ends_by_itself_and_nothing_is_lost() -> None:
    question, answer = bytes(range(256)) * 1000, b"answer" * 50_000

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with made() as both:
            await loop.sock_sendall(both.one, question)
            both.one.shutdown(socket.SHUT_WR)
            assert await whole(both.other) == question
            # The other direction is open still: half closed, as `nc -N` does it.
            sending = asyncio.create_task(loop.sock_sendall(both.other, answer))
            reading = asyncio.create_task(whole(both.one, pause=0.001))
            await sending
            both.other.close()
            assert await reading == answer
            assert await both.task == "closed"
            assert (both.sent, both.received) == (len(question), len(answer))

    asyncio.run(body())


def test_a_reader_that_stops_stops_the_other_end_and_gets_all_in_the_end() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with made() as both:
            for sock in (both.one, both.other):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.5):
                        await loop.sock_sendall(both.one, bytes(1 << 16))
                    sent += 1 << 16
            # What was taken lies in the kernel's buffers, and little of it here.
            assert sent < 64 << 20
            both.one.shutdown(socket.SHUT_WR)
            assert len(await whole(both.other)) >= sent

    asyncio.run(body())


def test_the_last_bytes_go_to_a_slow_reader_after_both_ends() -> None:
    """Both directions have ended, and a reader takes its last bytes in its own time."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with made() as both:
            both.other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            both.other.shutdown(socket.SHUT_WR)
            data = bytes(1 << 18)
            sending = asyncio.create_task(loop.sock_sendall(both.one, data))
            got = asyncio.create_task(whole(both.other, pause=0.002))
            await sending
            both.one.close()
            assert len(await got) == len(data)
            assert await both.task == "closed"

    asyncio.run(body())


def test_a_reader_that_takes_no_last_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "TAKES_REST", 0.2)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with made() as both:
            both.other.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                while True:  # until it is full
                    async with asyncio.timeout(0.3):
                        await loop.sock_sendall(both.one, bytes(1 << 16))
            both.one.shutdown(socket.SHUT_WR)
            # The first two chunks are on their way for good; then nothing moves.
            for _ in range(8):
                with contextlib.suppress(BlockingIOError):
                    both.other.recv(1 << 22)
                await paced(0.05)
            assert await both.task == "closed"

    asyncio.run(body())


def test_no_byte_for_too_long_ends_it_with_a_reset() -> None:
    async def body() -> None:
        async with made(idle=0.2) as both:
            assert await both.task == "idle"
            for sock in (both.one, both.other):
                with pytest.raises(ConnectionResetError):
                    await asyncio.get_running_loop().sock_recv(sock, 1)

    asyncio.run(body())


def test_a_reset_of_one_end_resets_the_other() -> None:
    async def body() -> None:
        async with made() as both:
            both.one.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # a close is a reset: socket(7)
            both.one.close()
            with pytest.raises(ConnectionResetError):
                await both.task
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(both.other, 1)

    asyncio.run(body())


def test_cancelled_it_resets_both() -> None:
    async def body() -> None:
        async with made() as both:
            await asyncio.get_running_loop().sock_sendall(both.one, b"x")
            await soon(lambda: both.sent)
            both.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await both.task
            for sock in (both.one, both.other):
                with pytest.raises(ConnectionResetError):
                    await whole(sock)

    asyncio.run(body())
