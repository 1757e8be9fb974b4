"""Where peers come to and the way in, with a socket that answers in WireGuard's place."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from wgcell.gateway import entrance
from wgcell.gateway.entrance import Entrance

MESSAGE = b"\4" + bytes(31)
UDP_SEGMENT = 103


def datagram_socket(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with datagram_socket() as sock:
        monkeypatch.setattr(entrance, "INSIDE", sock.getsockname())
        yield sock


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Entrance]:
    made = Entrance(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.open(("127.0.0.1", 0))
    try:
        yield made
    finally:
        made.close()


def run(body: Callable[[Entrance], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with opened() as made:
            await body(made)

    asyncio.run(asyncio.wait_for(whole(), 10))


async def heard(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    async with asyncio.timeout(2):
        return await asyncio.get_running_loop().sock_recvfrom(sock, 65535)


async def nothing(sock: socket.socket) -> bool:
    try:
        async with asyncio.timeout(0.2):
            await asyncio.get_running_loop().sock_recvfrom(sock, 65535)
    except TimeoutError:
        return True
    return False


def test_each_place_has_a_way_of_its_own_and_its_answers(inside: socket.socket) -> None:
    async def body(made: Entrance) -> None:
        with datagram_socket() as one, datagram_socket() as other:
            ways = []
            for sock, mark in ((one, b"1"), (other, b"2"), (one, b"1")):
                sock.sendto(MESSAGE + mark, made.place)
                data, way = await heard(inside)
                assert data == MESSAGE + mark
                ways.append(way)
            assert ways[0] == ways[2]
            # WireGuard bounds handshakes by the address they come from.
            assert ways[0][0] != ways[1][0]
            for sock, way, mark in ((one, ways[0], b"a"), (other, ways[1], b"b")):
                inside.sendto(mark, way)
                assert await heard(sock) == (mark, made.place)

    run(body)


@pytest.mark.parametrize("data", [b"\4" + bytes(30), bytes(32), b"\5" + bytes(31), b""])
def test_what_is_no_wireguard_opens_no_way(inside: socket.socket, data: bytes) -> None:
    async def body(made: Entrance) -> None:
        with datagram_socket() as sock:
            sock.sendto(data, made.place)
            assert await nothing(inside)

    run(body)


def test_strangers_displace_nobody_who_was_answered(
    inside: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "_MOST_PLACES", 4)

    async def body(made: Entrance) -> None:
        with datagram_socket() as peer:
            peer.sendto(MESSAGE, made.place)
            _, way = await heard(inside)
            inside.sendto(b"welcome", way)
            assert (await heard(peer))[0] == b"welcome"
            for _ in range(50):
                with datagram_socket() as stranger:
                    stranger.sendto(MESSAGE, made.place)
                    await heard(inside)
            peer.sendto(MESSAGE, made.place)
            assert (await heard(inside))[1] == way

    run(body)


def test_new_places_are_bounded_in_time(inside: socket.socket) -> None:
    async def body(made: Entrance) -> None:
        ways = set()
        with contextlib.ExitStack() as strangers:
            for _ in range(400):
                sock = strangers.enter_context(datagram_socket())
                sock.sendto(MESSAGE, made.place)
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        ways.add(inside.recvfrom(100)[1])
            with contextlib.suppress(TimeoutError):
                while True:
                    ways.add((await heard(inside))[1])
        assert 200 < len(ways) < 350

    run(body)


def test_datagrams_in_one_piece_are_cut_as_they_were(inside: socket.socket) -> None:
    """GSO: what the relay sends in one call arrives in one, and each inside on its own."""
    sizes = [200] * 40 + [60]
    datagrams = [MESSAGE + bytes([n]) * (size - 32) for n, size in enumerate(sizes)]

    async def body(made: Entrance) -> None:
        with datagram_socket() as sock:
            segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 200))
            sock.sendmsg([b"".join(datagrams)], [segment], 0, made.place)
            assert [(await heard(inside))[0] for _ in sizes] == datagrams

    run(body)


def test_answers_of_all_sizes_leave_whole_and_in_order(inside: socket.socket) -> None:
    sizes = [100] * 5 + [60, 100, 100, 1400, 1400, 32] + [1400] * 100 + [9000] * 8
    datagrams = [bytes([n % 256]) * size for n, size in enumerate(sizes)]

    async def body(made: Entrance) -> None:
        with datagram_socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.sendto(MESSAGE, made.place)
            _, way = await heard(inside)
            for datagram in datagrams:
                inside.sendto(datagram, way)
            assert [(await heard(sock))[0] for _ in sizes] == datagrams

    run(body)


def test_another_place_takes_the_firsts_place(inside: socket.socket) -> None:
    async def body(made: Entrance) -> None:
        first = made.place
        made.open(("127.0.0.1", 0))
        assert made.place != first
        with datagram_socket() as sock:
            sock.sendto(MESSAGE, first)
            sock.sendto(MESSAGE + b"now", made.place)
            assert (await heard(inside))[0] == MESSAGE + b"now"
            taken = sock.getsockname()
            with pytest.raises(OSError, match=f"UDP port {taken[1]}: Address already in use"):
                made.open(taken)
            sock.sendto(MESSAGE + b"still", made.place)
            assert (await heard(inside))[0] == MESSAGE + b"still"

    run(body)
