"""The port's demultiplexer, with a socket that answers in WireGuard's place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

import pytest
from tests.support import messages
from tests.support.waiting import GENEROUS, lulled, soon

from wgcell.gateway.ingress.backpressure import Backpressure
from wgcell.gateway.ingress.demultiplexer import Bounds, Demultiplexer

UDP_SEGMENT = 103
BOUNDS = Bounds()
KEY = bytes(range(32))
initiation = partial(messages.initiation, to=KEY)
INDEX = 0x01020304
"""What WireGuard knows a session by, once it has answered a first message with it."""


def transport(index: int = INDEX, length: int = 32) -> bytes:
    return struct.pack("<II", 4, index) + bytes(length - 8)


RESPONSE = struct.pack("<III", 2, INDEX, 0) + bytes(80)


def datagram_socket(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def inside() -> Iterator[socket.socket]:
    """A socket in the place of WireGuard's."""
    with datagram_socket() as sock:
        yield sock


@contextlib.asynccontextmanager
async def opened(inside: socket.socket, bounds: Bounds = BOUNDS) -> AsyncIterator[Demultiplexer]:
    made = Demultiplexer(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        inside=inside.getsockname(),
        bounds=bounds,
    )
    made.open(("127.0.0.1", 0))
    made.admit(KEY)
    try:
        yield made
    finally:
        made.close()


def run(
    inside: socket.socket,
    body: Callable[[Demultiplexer], Awaitable[None]],
    bounds: Bounds = BOUNDS,
) -> None:
    async def whole() -> None:
        async with opened(inside, bounds) as made:
            await body(made)

    asyncio.run(asyncio.wait_for(whole(), GENEROUS))


async def heard(sock: socket.socket, within: float = GENEROUS) -> tuple[bytes, tuple[str, int]]:
    async with asyncio.timeout(within):
        return await asyncio.get_running_loop().sock_recvfrom(sock, 65535)


async def nothing(sock: socket.socket) -> bool:
    try:
        async with asyncio.timeout(0.2):
            await asyncio.get_running_loop().sock_recvfrom(sock, 65535)
    except TimeoutError:
        return True
    return False


async def welcomed(
    made: Demultiplexer, inside: socket.socket, sock: socket.socket
) -> tuple[str, int]:
    """``sock`` has come in and was answered; its path."""
    sock.sendto(initiation(), made.place)
    data, path = await heard(inside)
    assert data == initiation()
    inside.sendto(RESPONSE, path)
    assert await heard(sock) == (RESPONSE, made.place)
    return path


def test_each_place_has_a_way_of_its_own_and_its_answers(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as one, datagram_socket() as other:
            paths = []
            for sock, mark in ((one, 1), (other, 2), (one, 3)):
                sock.sendto(initiation(mark), made.place)
                data, path = await heard(inside)
                assert data == initiation(mark)
                paths.append(path)
            assert paths[0] == paths[2]
            # WireGuard bounds handshakes by the address they come from.
            assert paths[0][0] != paths[1][0]
            for sock, path, mark in ((one, paths[0], b"4a"), (other, paths[1], b"4b")):
                inside.sendto(mark, path)
                assert await heard(sock) == (mark, made.place)

    run(inside, body)


@pytest.mark.parametrize(
    "data",
    [
        initiation(to=bytes(32)),
        initiation()[:-1],
        b"\1\0\0\1" + initiation()[4:],
        transport(INDEX + 1),
        transport()[:31],
        b"\5" + transport()[1:],
        struct.pack("<III", 2, 7, 7) + bytes(80),
        b"",
    ],
)
def test_who_knows_nothing_opens_no_way(inside: socket.socket, data: bytes) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as peer, datagram_socket() as sock:
            await welcomed(made, inside, peer)
            sock.sendto(data, made.place)
            assert await nothing(inside)
            sock.sendto(transport(), made.place)  # the control: who has moved, and knows
            assert (await heard(inside))[0] == transport()

    run(inside, body)


def test_an_empty_datagram_is_no_trouble(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as peer:
            await welcomed(made, inside, peer)
            for data in (b"", b"4", transport()):
                peer.sendto(data, made.place)
            assert (await heard(inside))[0] == transport()

    run(inside, body)


def test_strangers_displace_nobody_who_was_answered(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as peer:
            path = await welcomed(made, inside, peer)
            for _ in range(50):
                with datagram_socket() as stranger:
                    stranger.sendto(initiation(), made.place)
                    await heard(inside)
            peer.sendto(transport(), made.place)
            assert (await heard(inside))[1] == path

    run(inside, body, Bounds(paths=4))


def test_places_long_gone_make_room_before_who_is_new(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        with contextlib.ExitStack() as opened:
            for _ in range(4):
                await welcomed(made, inside, opened.enter_context(datagram_socket()))
            await lulled(0.3)
            new = [opened.enter_context(datagram_socket()) for _ in range(4)]
            paths = []
            for sock in new:
                sock.sendto(initiation(), made.place)
                paths.append((await heard(inside))[1])
            for sock, path in zip(new, paths, strict=True):
                inside.sendto(RESPONSE, path)
                assert (await heard(sock))[0] == RESPONSE

    run(inside, body, Bounds(paths=4, session=0.2))


def test_who_is_not_answered_soon_makes_room_first(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as peer, datagram_socket() as stranger, datagram_socket() as new:
            path = await welcomed(made, inside, peer)
            stranger.sendto(initiation(1), made.place)
            await heard(inside)
            await lulled(0.2)
            await welcomed(made, inside, new)
            peer.sendto(transport(), made.place)
            assert (await heard(inside))[1] == path

    run(inside, body, Bounds(paths=2, session=0.1, first_answer=0.1))


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "::"])
def test_the_answer_comes_from_where_it_was_asked(inside: socket.socket, anywhere: str) -> None:
    """Whoever accepts one endpoint alone, as a cell does, takes no other's; and this machine may
    get another address at any moment."""

    async def body(made: Demultiplexer) -> None:
        made.open((anywhere, 0))
        port = made.place[1]
        with datagram_socket() as sock:
            for last in (2, 3, 2):
                sock.sendto(initiation(last), (f"127.0.0.{last}", port))
                data, path = await heard(inside)
                assert data == initiation(last)
                inside.sendto(RESPONSE, path)
                assert await heard(sock) == (RESPONSE, (f"127.0.0.{last}", port))

    run(inside, body)


def test_an_error_of_the_path_is_not_taken_for_a_small_path(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        sock = datagram_socket()
        place = sock.getsockname()
        path = await welcomed(made, inside, sock)
        sock.close()
        for length in (100, 100, 200, 200):  # in two pieces: the first is "port unreachable"
            inside.sendto(transport(length=length), path)
        await lulled(0.1)
        assert made.paths[place].segments

    run(inside, body)


def test_a_peer_that_shakes_hands_without_end_is_known_by_its_latest(
    inside: socket.socket,
) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as peer, datagram_socket() as moved:
            path = await welcomed(made, inside, peer)
            for index in range(100, 120):
                inside.sendto(struct.pack("<III", 2, index, 0) + bytes(80), path)
            for _ in range(100, 120):  # what it has passed on, it knows
                await heard(peer)
            moved.sendto(transport(100), made.place)
            assert await nothing(inside)
            moved.sendto(transport(119), made.place)
            assert (await heard(inside))[0] == transport(119)

    run(inside, body)


def test_a_host_of_ipv6_is_a_64(inside: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)  # nothing is filled up meanwhile
    made = Demultiplexer(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.admit(KEY)
    hosts = [f"2001:db8::{n:x}" for n in range(1000)]
    assert sum(made.admits((host, 1, 0, 0), initiation()) for host in hosts) == 64
    assert made.admits(("2001:db8:0:1::1", 1, 0, 0), initiation())
    mapped = [f"::ffff:192.0.2.{n}" for n in range(200)]
    assert sum(made.admits((host, 1, 0, 0), initiation()) for host in mapped) == 200


@pytest.mark.parametrize(("message", "most"), [(initiation(), 64), (transport(), 7)])
def test_new_places_are_bounded_in_time(inside: socket.socket, message: bytes, most: int) -> None:
    """Of a host, and of a session; another host's are none the fewer."""

    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as peer:
            await welcomed(made, inside, peer)
        paths = set()
        with contextlib.ExitStack() as strangers:
            for _ in range(200):
                sock = strangers.enter_context(datagram_socket("127.0.0.2"))
                sock.sendto(message, made.place)
                await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                while True:
                    paths.add((await heard(inside, 2))[1])
        assert most <= len(paths) < most + 30
        with datagram_socket("127.0.0.3") as other:
            await welcomed(made, inside, other)

    run(inside, body)


def test_a_flood_takes_nothing_from_the_others(inside: socket.socket) -> None:
    """The kernel keeps each place's datagrams apart: the flood's own are lost."""

    async def body(made: Demultiplexer) -> None:
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        with datagram_socket() as greedy, datagram_socket() as peer:
            for sock in (greedy, peer):
                await welcomed(made, inside, sock)
            # All of it before the ingress has its turn: more than any socket's buffer holds.
            for _ in range(20_000):
                greedy.sendto(transport(length=1400), made.place)
            with datagram_socket() as stranger:
                for _ in range(20_000):
                    stranger.sendto(transport(9, 1400), made.place)
            last = transport(length=1399) + b"!"
            peer.sendto(last, made.place)
            while (await heard(inside))[0] != last:
                pass

    run(inside, body)


def test_datagrams_in_one_piece_are_cut_as_they_were(inside: socket.socket) -> None:
    """GSO: what the relay sends in one call arrives in one, and each inside on its own."""
    sizes = [200] * 40 + [60]
    datagrams = [transport(INDEX + n, size) for n, size in enumerate(sizes)]

    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as sock:
            await welcomed(made, inside, sock)
            segment = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 200))
            sock.sendmsg([b"".join(datagrams)], [segment], 0, made.place)
            assert [(await heard(inside))[0] for _ in sizes] == datagrams

    run(inside, body)


def test_answers_of_all_sizes_leave_whole_and_in_order(inside: socket.socket) -> None:
    sizes = [100] * 5 + [60, 100, 100, 1400, 1400, 32] + [1400] * 100 + [9000] * 8
    datagrams = [b"4" + bytes([n % 256]) * (size - 1) for n, size in enumerate(sizes)]

    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            path = await welcomed(made, inside, sock)
            for datagram in datagrams:
                inside.sendto(datagram, path)
            assert [(await heard(sock))[0] for _ in sizes] == datagrams

    run(inside, body)


def test_another_place_takes_the_firsts_place(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        first = made.place
        made.open(("127.0.0.1", 0))
        assert made.place != first
        with datagram_socket() as sock:
            sock.sendto(initiation(1), first)
            sock.sendto(initiation(2), made.place)
            assert (await heard(inside))[0] == initiation(2)
            taken = sock.getsockname()
            with pytest.raises(OSError, match=f"UDP port {taken[1]}: Address already in use"):
                made.open(taken)
            sock.sendto(initiation(3), made.place)
            assert (await heard(inside))[0] == initiation(3)
            # Of one port, another address; and back, if it is somebody's.
            port = made.place[1]
            made.open(("127.0.0.2", port))
            sock.sendto(initiation(4), ("127.0.0.2", port))
            assert (await heard(inside))[0] == initiation(4)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("127.0.0.3", port))
                with pytest.raises(OSError, match="Address already in use"):
                    made.open(("127.0.0.3", port))
            sock.sendto(initiation(5), ("127.0.0.2", port))
            assert (await heard(inside))[0] == initiation(5)

    run(inside, body)


def test_a_port_has_one_gateway(inside: socket.socket) -> None:
    async def body(made: Demultiplexer) -> None:
        with datagram_socket() as sock:
            await welcomed(made, inside, sock)
            other = Demultiplexer(lambda: sock)
            with pytest.raises(OSError, match="Address already in use"):
                other.open(made.place)

    run(inside, body)


@contextlib.asynccontextmanager
async def crowded(
    inside: socket.socket,
    at_first: Callable[[int], bool] = lambda size: True,
    bounds: Bounds = BOUNDS,
) -> AsyncIterator[tuple[Demultiplexer, list[Callable[[int], bool]]]]:
    """An ingress, and whether there is room behind it for a datagram of so many bytes."""
    room = [at_first]
    made = Demultiplexer(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        lambda _, size: room[0](size),
        inside=inside.getsockname(),
        bounds=bounds,
    )
    made.open(("127.0.0.1", 0))
    made.admit(KEY)
    try:
        yield made, room
    finally:
        made.close()


def test_without_room_what_comes_waits_and_the_places_take_turns(inside: socket.socket) -> None:
    async def body() -> None:
        async with crowded(inside) as (made, room):
            with datagram_socket() as greedy, datagram_socket() as peer:
                for sock in (greedy, peer):
                    await welcomed(made, inside, sock)
                asked: list[int] = []
                room[0] = lambda size: bool(asked.append(size))
                for _ in range(100):
                    greedy.sendto(transport(length=100), made.place)
                await soon(lambda: asked)
                peer.sendto(transport(length=64), made.place)
                assert await nothing(inside)
                room[0] = lambda size: True
                lengths = [len((await heard(inside))[0]) for _ in range(101)]
                assert lengths.count(100) == 100
                assert lengths.index(64) == 1, "behind who waited longer, before who takes more"

    asyncio.run(asyncio.wait_for(body(), GENEROUS))


def test_who_needs_less_room_does_not_overtake(inside: socket.socket) -> None:
    async def body() -> None:
        asked: list[int] = []
        async with crowded(inside, lambda size: not asked.append(size) and size < 1000) as (
            made,
            room,
        ):
            with datagram_socket() as greedy, datagram_socket() as peer:
                for sock in (greedy, peer):
                    await welcomed(made, inside, sock)
                peer.sendto(transport(length=1400), made.place)
                await soon(lambda: 1400 in asked)
                greedy.sendto(transport(length=64), made.place)
                assert await nothing(inside)
                room[0] = lambda size: True
                assert [len((await heard(inside))[0]) for _ in range(2)] == [1400, 64]

    asyncio.run(asyncio.wait_for(body(), GENEROUS))


def test_who_is_displaced_while_it_waits_is_no_trouble(inside: socket.socket) -> None:
    async def body() -> None:
        async with crowded(inside, bounds=Bounds(paths=1)) as (made, room):
            with datagram_socket() as peer, datagram_socket() as other:
                await welcomed(made, inside, peer)
                asked: list[int] = []
                room[0] = lambda size: bool(asked.append(size))
                peer.sendto(transport(), made.place)
                await soon(lambda: asked)
                other.sendto(initiation(7), made.place)  # takes the one place there is
                await soon(lambda: list(made.paths) == [other.getsockname()])
                room[0] = lambda size: True
                assert (await heard(inside))[0] == initiation(7)
                peer.sendto(transport(), made.place)
                assert (await heard(inside))[0] == transport()

    asyncio.run(asyncio.wait_for(body(), GENEROUS))


def test_the_backlog_of_a_processs_socket_is_seen() -> None:
    level = Backpressure()
    assert level.has_room(64, 1500)  # nobody's: always
    with datagram_socket() as sock, datagram_socket() as sender:
        place = sock.getsockname()
        level.borrow(os.getpid(), place[1])
        try:
            sent = 0
            while level.has_room(1, 1400):
                sender.sendto(bytes(1400), place)
                sent += 1
            assert sent > 10
            for _ in range(sent):  # none was lost: there was room for each
                assert len(sock.recv(2000)) == 1400
            assert level.has_room(1, 1400)
            assert level.has_room(64, 60_000), "what is empty takes anything"
        finally:
            level.give_back()
    level.borrow(os.getpid(), 1)
    assert level.has_room(64, 1500)
