"""Clients and a guest joined by real sockets: the listener, the hub, and the client's own end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.support.hubs import Cell, joined
from tests.support.programs import command
from tests.support.waiting import GENEROUS, soon

from wgcell.cell.control import words
from wgcell.cell.control.client import ask, begin
from wgcell.cell.control.listener import MOST, Kind
from wgcell.cell.control.session import Connection
from wgcell.cell.control.session_client import Closed, SessionClient
from wgcell.cell.core import events as seen
from wgcell.cell.states import Cause
from wgcell.errors import StateError
from wgcell.guest.channel import MOST_SESSIONS, WINDOW, Channel
from wgcell.guest.frames import (
    STDIN,
    STDOUT,
    Attach,
    Credit,
    Data,
    End,
    Exit,
    Hangup,
    Open,
    Pack,
    Signal,
    Size,
    Terminal,
    encode,
)


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, GENEROUS))


async def open_(cell: Cell, *argv: str) -> tuple[SessionClient, Any]:
    client = await SessionClient.connect(cell.folder)
    return client, await client.open(command(*argv))


def test_what_is_written_comes_back_and_the_exit_code_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            client, session = await open_(cell, "cat")
            whole = os.urandom(3 * WINDOW + 17)
            writing = asyncio.create_task(write_all(session, whole))
            assert await session.stdout.read_all() == whole
            await writing
            assert await session.wait() == 0
            await client.close()
        opened, exited = cell.seen
        assert opened == seen.SessionOpened(1, "command", ("cat",), False, os.getuid())
        assert exited == seen.SessionExited(1, 0, "")

    run(body())


async def write_all(session: Any, data: bytes) -> None:
    await session.stdin.write(data)
    await session.stdin.end()


def test_many_sessions_of_one_connection(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:

            async def one(number: int) -> None:
                session = await client.open(command("count", str(number * 1000), str(number * 500)))
                out, err = await asyncio.gather(
                    session.stdout.read_all(), session.stderr.read_all()
                )
                assert (len(out), len(err)) == (number * 1000, number * 500)
                assert await session.wait() == 0

            await asyncio.gather(*(one(number) for number in range(MOST_SESSIONS)))

    run(body())


def test_a_reader_that_stops_holds_up_nobody_else_and_gets_all(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            slow = await client.open(command("count", str(8 * WINDOW), "0"))
            await soon(lambda: len(slow.stdout._held) == WINDOW)
            quick = await client.open(command("count", str(8 * WINDOW), "0"))
            assert len(await quick.stdout.read_all(0) or b"") == 0
            assert await quick.wait() == 0
            assert len(slow.stdout._held) == WINDOW
            assert len(await slow.stdout.read_all()) == 8 * WINDOW

    run(body())


def test_a_client_that_reads_nothing_of_its_connection(tmp_path: Path) -> None:
    """Another is served meanwhile, and the hub holds no more than the windows."""

    async def body() -> None:
        async with joined(tmp_path) as cell:
            idle = await asyncio.to_thread(begin, cell.folder, words.Sessions(False))
            channel = Channel(opener=True)
            for _ in range(4):
                idle.sendall(channel.send(Open(channel.next_session, command("yes"))))
            await soon(lambda: len(cell.guest.opened) == 4)
            client, session = await open_(cell, "count", "1000000", "0")
            assert len(await session.stdout.read_all()) == 1_000_000
            await client.close()
            idle.close()
            await soon(lambda: len(cell.guest.programs) == 1)

    run(body())


def test_a_client_that_dies_hangs_up_and_the_cell_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            _, session = await open_(cell, "sleep")
            client, other = await open_(cell, "cat")
            session._client._writer.transport.abort()
            await soon(lambda: 1 not in cell.guest.programs)
            await soon(lambda: seen.SessionExited(1, 129, "") in cell.seen)
            await write_all(other, b"still here")
            assert await other.stdout.read_all() == b"still here"
            assert not cell.causes
            await client.close()

    run(body())


def test_a_detached_session_goes_on_and_nobody_sees_what_it_prints(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            client = await SessionClient.connect(cell.folder, detached=True)
            await client.open(command("count", str(9 * WINDOW), str(3 * WINDOW), stdin=False))
            await client.close()
            await soon(lambda: seen.SessionExited(1, 0, "") in cell.seen)
            assert [type(one) for one in cell.guest.opened] == [Open]

    run(body())


VIOLATIONS = {
    "no frame": b"\xff" * 20,
    "a length beyond its bound": b"\1\0\0\0\1\xff\xff\xff\xff",
    "data beyond the credit": encode(Data(1, STDOUT, b"x")),
    "what is the guest's to say": encode(Open(1, Pack("/"))) + encode(Open(1, Pack("/"))),
}


@pytest.mark.parametrize("wrong", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_clients_violation_ends_it_and_nobody_else(tmp_path: Path, wrong: bytes) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            client, session = await open_(cell, "cat")
            bad = await asyncio.to_thread(begin, cell.folder, words.Sessions(False))
            bad.sendall(wrong)
            reader, writer = await asyncio.open_connection(sock=bad)
            await reader.read()
            writer.close()
            await write_all(session, b"x")
            assert await session.stdout.read_all() == b"x"
            assert not cell.causes
            await client.close()

    run(body())


def test_what_a_client_says_with_its_question_counts(tmp_path: Path) -> None:
    """It need not wait for the answer."""

    async def body() -> None:
        async with joined(tmp_path) as cell:
            channel = Channel(opener=True)
            said = [words.Hello(words.VERSION), words.Sessions(False)]
            raw = b"".join(words.QUESTIONS.line(one) for one in said)
            raw += channel.send(Open(1, command("exit", "7")))
            reader, writer = await asyncio.open_unix_connection(cell.folder.path / "control")
            writer.write(raw)
            assert words.ANSWERS.word(await reader.readline()) == words.Hello(words.VERSION)
            assert words.ANSWERS.word(await reader.readline()) == words.Accepted()
            heard: list[Any] = []
            while len(heard) < 2:
                heard += channel.receive(await reader.read(1000))
            assert heard[-1].code == 7
            writer.close()

    run(body())


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xff" * 20,
        encode(Data(1, STDOUT, b"x" * 100)) * (WINDOW // 100 + 1),
        encode(Data(7, STDOUT, b"x")),
        encode(Credit(1, 0, 1)),
    ],
    ids=["no frame", "a flood without credit", "no such session", "too much credit"],
)
def test_the_guests_violation_ends_the_cell(tmp_path: Path, wrong: bytes) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            client, session = await open_(cell, "sleep")
            cell.guest.say_raw(wrong)
            await soon(lambda: cell.causes)
            assert cell.causes[0].cause is Cause.GUEST_FAULTED
            with pytest.raises(Closed, match="has ended"):
                await session.wait()
            await client.close()

    run(body())


def test_sessions_are_bounded_and_one_too_many_is_refused_in_words(tmp_path: Path) -> None:
    many = 200

    async def body() -> None:
        async with joined(tmp_path) as cell:

            async def one() -> object:
                try:
                    client = await SessionClient.connect(cell.folder)
                    clients.append(client)
                    return await client.open(command("sleep"))
                except StateError as error:
                    return error

            clients: list[SessionClient] = []
            found = await asyncio.gather(*(one() for _ in range(many)))
            failed = [str(one) for one in found if isinstance(one, StateError)]
            assert len(failed) == many - MOST_SESSIONS
            assert all("64 sessions" in one or "others have sessions" in one for one in failed)
            # Whoever asks something else is heard all the same.
            assert list(await asyncio.to_thread(lambda: list(ask(cell.folder, words.Stop(False)))))
            for client in clients:
                await client.close()
            await soon(lambda: len(cell.guest.programs) == 1)
            assert len(cell.listener._counts) == len(Kind)
            client, _ = await open_(cell, "exit", "0")
            await client.close()

    run(body())


def test_connections_with_sessions_are_bounded(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            most = MOST[Kind.CLIENT]
            socks = [
                await asyncio.to_thread(begin, cell.folder, words.Sessions(False))
                for _ in range(most)
            ]
            with pytest.raises(StateError, match="try again later"):
                await SessionClient.connect(cell.folder)
            socks.pop().close()
            await soon(lambda: cell.listener._counts[Kind.CLIENT] == most - 1)
            await (await SessionClient.connect(cell.folder)).close()
            for sock in socks:
                sock.close()

    run(body())


REFUSED = {
    "booting": "not running yet",
    "terminating": "is ending",
    "stopping": "is ending",
    "paused": "wgcell unpause",
    "frozen": "frozen",
}


@pytest.mark.parametrize("state", REFUSED)
def test_a_session_in_a_cell_that_can_not_have_one(tmp_path: Path, state: str) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            cell.state = state
            with pytest.raises(StateError, match=REFUSED[state]):
                await client.open(command("cat"))
            cell.state = "running"
            assert await (await client.open(command("exit", "3"))).wait() == 3

    run(body())


def test_what_the_guest_refuses_says_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            with pytest.raises(StateError, match="nothing: not found"):
                await client.open(command("nothing"))
            assert cell.seen[-1] == seen.SessionExited(1, None, "nothing: not found")

    run(body())


@pytest.mark.parametrize("rows, columns", [(0, 0), (24, 80), (1, 10_000), (65535, 65535)])
def test_sizes_and_signals_reach_the_session(tmp_path: Path, rows: int, columns: int) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            session = await client.open(command("sizes", terminal=Terminal(1, 1)))
            await session.resize(rows, columns)
            await session.signal(signal.SIGINT)
            wanted = f"{Size(1, Terminal(rows, columns))}\n{Signal(1, 2)}\n".encode()
            seen = b""
            while len(seen) < len(wanted):
                seen += await session.stdout.read()
            assert seen == wanted
            await session.hang_up()
            assert await session.wait() == 129
            assert cell.guest.opened[0].subject.terminal == Terminal(1, 1)  # type: ignore[union-attr]

    run(body())


# The workload.


def test_an_attached_client_sees_what_comes_and_writes_what_is_read(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path, code=9) as cell:
            cell.taps["stdout"].write(b"before")
            client = await SessionClient.connect(cell.folder)
            session = await client.open(Attach(stdin=True))
            cell.taps["stdout"].write(b"out")
            cell.taps["stderr"].write(b"err")
            assert await session.stdout.read() == b"out"
            assert await session.stderr.read() == b"err"
            await session.stdin.write(b"in")
            assert await cell.guest.workload.read() == b"in"
            await session.resize(5, 6)
            await session.signal(15)
            await soon(lambda: len(cell.guest.workload.heard) == 2)
            cell.taps["stdout"].write(b"last")
        assert await session.stdout.read_all() == b"last"
        assert await session.wait() == 9
        await client.close()
        assert cell.guest.workload.heard == [Size(0, Terminal(5, 6)), Signal(0, 15)]
        assert seen.SessionOpened(0, "attach", ("stdin",), False, os.getuid()) in cell.seen

    run(body())


def test_one_client_at_a_time_holds_the_workloads_input(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell:
            first = await SessionClient.connect(cell.folder)
            second = await SessionClient.connect(cell.folder)
            held = await first.open(Attach(stdin=True))
            with pytest.raises(StateError, match="somebody else holds"):
                await second.open(Attach(stdin=True))
            looking = await second.open(Attach(stdin=False))
            cell.taps["stdout"].write(b"both")
            assert await held.stdout.read() == await looking.stdout.read() == b"both"
            await first.close()
            await soon(lambda: len(cell.listener._answering) == 1)
            again = await second.open(Attach(stdin=True))
            await write_all(again, b"mine")
            assert await cell.guest.workload.read() == b"mine"
            assert await cell.guest.workload.read() == b""
            await second.close()
            third = await SessionClient.connect(cell.folder)
            with pytest.raises(StateError, match="input has ended"):
                await third.open(Attach(stdin=True))
            await third.close()

    run(body())


def test_a_workload_without_an_input(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            cell.reads = False
            with pytest.raises(StateError, match="reads no standard input"):
                await client.open(Attach(stdin=True))
            await client.open(Attach(stdin=False))

    run(body())


def test_holders_that_come_and_go_leave_nothing_to_be_held(tmp_path: Path) -> None:
    """The guest reads nothing: what is on its way is one window, and one more that is held."""

    async def body() -> None:
        async with joined(tmp_path) as cell:
            for _ in range(6):
                client = await SessionClient.connect(cell.folder)
                session = await client.open(Attach(stdin=True))
                writing = asyncio.create_task(session.stdin.write(bytes(4 * WINDOW)))
                await soon(lambda session=session: session.room == 0)
                writing.cancel()
                await client.close()
                await soon(lambda: not cell.sessions._links)
                assert cell.sessions._hub.guest.waits(0, 0) == 0
            sent = sum(len(piece) for piece in cell.guest.workload.input._queue)  # type: ignore[attr-defined]
            assert sent == WINDOW

    run(body())


def test_an_attached_client_that_reads_nothing_holds_up_nobody(tmp_path: Path) -> None:
    """It misses what neither the log nor the memory keeps, and learns how much."""

    async def body() -> None:
        async with joined(tmp_path) as cell:
            tap = cell.taps["stdout"]
            tap._log._left = tap._kept = 3 * WINDOW
            client = await SessionClient.connect(cell.folder)
            slow = await client.open(Attach(stdin=False))
            for _ in range(80):
                await asyncio.to_thread(tap.write, b"A" * (WINDOW // 8))
            tap.write(b"END")
            whole = b""
            while not whole.endswith(b"END"):
                whole += await slow.stdout.read()
            lost = int(whole.partition(b"[wgcell: ")[2].partition(b" bytes of stdout were not")[0])
            assert whole.count(b"A") + lost == 10 * WINDOW
            assert 4 * WINDOW <= whole.count(b"A") <= 5 * WINDOW
            await client.close()

    run(body())


def test_the_starter_holds_the_workloads_input_until_its_end(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            sessions, credits = cell.sessions, list[int]()
            assert sessions.hold_stdin(credits.append) == ""
            assert "somebody else" in sessions.hold_stdin(credits.append)
            with pytest.raises(StateError, match="somebody else"):
                await client.open(Attach(stdin=True))
            sessions.write_stdin(credits.append, b"mine")
            sessions.write_stdin(print, b"another's")
            sessions.write_stdin(credits.append, b"")
            assert await cell.guest.workload.read() == b"mine"
            assert await cell.guest.workload.read() == b""
            assert credits == [4]
            assert "has ended" in sessions.hold_stdin(credits.append)

    run(body())


def test_a_hangup_detaches_and_the_workload_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with joined(tmp_path) as cell, await SessionClient.connect(cell.folder) as client:
            session = await client.open(Attach(stdin=True))
            await session.hang_up()
            assert await session.wait() == 0
            assert Hangup(0) not in cell.guest.workload.heard
            await client.open(Attach(stdin=True))

    run(body())


def test_a_cell_that_ends_without_a_guest_lets_its_clients_go(tmp_path: Path) -> None:
    async def body() -> None:
        cell = Cell(tmp_path)
        await cell.listener.start()
        client = await SessionClient.connect(cell.folder)
        cell.state = "booting"
        with pytest.raises(StateError):
            await client.open(command("cat"))
        for tap in cell.taps.values():
            tap.close()
        cell.sessions.end(125)
        await cell.listener.close()
        with pytest.raises(Closed):
            await client.open(command("cat"))
        await client.close()
        cell.port.close()
        await cell.guest.close()

    run(body())


def test_what_was_sent_before_the_end_is_read_however_late(tmp_path: Path) -> None:
    """A client that gives credit meanwhile, to a cell that has ended, loses nothing."""

    async def body() -> None:
        async with joined(tmp_path, code=4) as cell:
            attached = await asyncio.to_thread(Connection, cell.folder, Attach(stdin=False))
            cell.taps["stdout"].write(bytes(WINDOW // 2))
        with attached:
            left, code = WINDOW // 2, None
            while code is None:
                for frame in attached.receive():
                    if isinstance(frame, Data):
                        left -= len(frame.data)
                        attached.credit(STDOUT, len(frame.data))
                    elif isinstance(frame, Exit):
                        code = frame.code
        assert (left, code) == (0, 4)

    run(body())


def test_credit_for_a_stream_that_has_ended_goes_nowhere(tmp_path: Path) -> None:
    """A guest may say so for ever."""

    async def body() -> None:
        async with joined(tmp_path) as cell:
            sock = await asyncio.to_thread(begin, cell.folder, words.Sessions(False))
            channel = Channel(opener=True)
            sock.sendall(channel.send(Open(1, command("sleep"))) + channel.send(End(1, STDIN)))
            await soon(
                lambda: len(cell.guest.opened) == 1 and not cell.guest.programs[1].input.empty()
            )
            sock.setblocking(False)
            cell.guest.say_raw(encode(Credit(1, STDIN, 1)) * 10_000)
            cell.guest.say(Data(1, STDOUT, b"x"))
            raw = b""
            loop = asyncio.get_running_loop()
            while not raw.endswith(encode(Data(1, STDOUT, b"x"))):
                raw += await loop.sock_recv(sock, 1 << 20)
            assert len(raw) < 100
            sock.close()

    run(body())


def test_no_descriptor_stays(tmp_path: Path) -> None:
    async def body() -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with joined(tmp_path) as cell:
            client, session = await open_(cell, "exit", "0")
            await session.wait()
            await client.close()
        await soon(lambda: len(os.listdir("/proc/self/fd")) == before)

    run(body())
