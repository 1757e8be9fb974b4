"""The control socket: who may ask, what is answered, and that no caller holds up a cell."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.support.waiting import GENEROUS, lulled, pace, soon

from wgcell.cell.control import client, listener, words
from wgcell.cell.control.client import Unreachable, ask, begin
from wgcell.cell.control.listener import MOST, PATIENCE, Kind, Listener
from wgcell.cell.control.place import NAME
from wgcell.cell.events import EventLog
from wgcell.cell.folder import Folder, create
from wgcell.errors import StateError

LONG_PATH = "a" * 120


class Cell:
    """What a socket can ask of a cell; and a folder with a record."""

    def __init__(self, cells: Path, patience: float) -> None:
        self.folder = create(cells, "x")
        self.state = "running"
        self.stopped: list[bool] = []
        self.served: list[tuple[bytes, int, bool]] = []
        self.asked: list[tuple[str, int]] = []
        self.refuses = ""
        self.end = words.Ended("completed", 3, "")
        self.listener = Listener(self.folder, self, patience)
        self.log = EventLog(self.folder.path / "events.jsonl", lambda event: self.listener.wake())

    def stop(self, *, now: bool) -> None:
        self.stopped.append(now)

    async def serve(
        self, transport: asyncio.Transport, first: bytes, uid: int, *, detached: bool
    ) -> None:
        self.served.append((first, uid, detached))
        transport.close()

    async def pause(self, uid: int) -> None:
        if self.refuses:
            raise StateError(self.refuses)
        self.asked.append(("paused", uid))

    async def unpause(self, uid: int) -> None:
        self.asked.append(("unpaused", uid))

    async def change_policy(
        self, question: words.Allow | words.Deny, uid: int
    ) -> words.PolicyChanged:
        if self.refuses:
            raise StateError(self.refuses)
        self.asked.append((question.rule, uid))
        return words.PolicyChanged(question.rule, 2)

    async def policy(self) -> AsyncGenerator[words.Rule, None]:
        yield words.Rule("allow a.example.com:443", "start")


@asynccontextmanager
async def listening(cells: Path, patience: float = PATIENCE) -> AsyncIterator[Cell]:
    cells.mkdir(parents=True, exist_ok=True)
    cell = Cell(cells, patience)
    await cell.listener.start()
    try:
        yield cell
    finally:
        cell.log.close()
        await cell.listener.close()


async def asked(cell: Cell, question: words.Question, **how: Any) -> list[words.Answer]:
    return await asyncio.to_thread(lambda: list(ask(cell.folder, question, **how)))


ANSWERED: dict[type, tuple[words.Question, type]] = {
    words.State: (words.State(), words.Status),
    words.Events: (words.Events(0, False), words.Event),
    words.Outputs: (words.Outputs(0, 0, 0, "workload", False), words.Output),
    words.Stop: (words.Stop(False), words.Stopping),
    words.Pause: (words.Pause(), words.Status),
    words.Unpause: (words.Unpause(), words.Status),
    words.Allow: (words.Allow("a.example.com:443", True, 60.0), words.PolicyChanged),
    words.Deny: (words.Deny("a.example.com:443"), words.PolicyChanged),
    words.Policy: (words.Policy(), words.Rule),
}


ANSWERED_IN_WORDS = set(get_args(words.Question)) - {words.Hello, words.End, words.Sessions}


@pytest.mark.parametrize("kind", sorted(ANSWERED_IN_WORDS, key=str))
def test_each_question_has_its_answer(tmp_path: Path, kind: type) -> None:
    question, answer = ANSWERED[kind]

    async def body() -> None:
        async with listening(tmp_path / LONG_PATH) as cell:
            cell.log.append("state", state="running")
            (cell.folder.path / "stdout.log").write_bytes(b"x")
            (said,) = await asked(cell, question)
            assert type(said) is answer
            assert cell.stopped == ([False] if kind is words.Stop else [])
            wanted = {words.Pause: ["paused"], words.Unpause: ["unpaused"]}.get(kind, [])
            wanted += [question.rule] if isinstance(question, words.Allow | words.Deny) else []
            assert cell.asked == [(word, os.getuid()) for word in wanted]
            assert kind is not words.State or said == words.Status("running", os.getpid())

    asyncio.run(body())


@pytest.mark.parametrize("detached", [False, True])
def test_a_client_with_sessions_is_handed_over(tmp_path: Path, detached: bool) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            sock = await asyncio.to_thread(begin, cell.folder, words.Sessions(detached))
            await soon(lambda: cell.served)
            assert cell.served == [(b"", os.getuid(), detached)]
            sock.close()

    asyncio.run(body())


def test_an_end_is_answered_when_it_has_come_and_not_before(tmp_path: Path) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            heard: list[words.Answer] = []

            def wait() -> None:
                heard.extend(ask(cell.folder, words.End(), follow=True))

            waiting = asyncio.create_task(asyncio.to_thread(wait))
            await soon(lambda: cell.listener._answering)
            cell.listener.wake()  # something else has happened
            await lulled(0.1)
            assert not heard
        await waiting
        assert heard == [cell.end]

    asyncio.run(body())


def test_what_a_cell_cannot_do_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            cell.refuses = "it is paused already"
            with pytest.raises(StateError, match=r"x-[0-9a-f]{6}: it is paused already"):
                await asked(cell, words.Pause())

    asyncio.run(body())


def test_the_socket_is_its_owners_alone_and_goes_with_the_cell(tmp_path: Path) -> None:
    async def body() -> None:
        before = os.listdir("/proc/self/fd")
        async with listening(tmp_path) as cell:
            place = cell.folder.path / NAME
            found = place.stat(follow_symlinks=False)
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
            assert len(os.listdir("/proc/self/fd")) > len(before)
        assert not place.exists()
        assert os.listdir("/proc/self/fd") == before
        with pytest.raises(Unreachable):
            await asked(cell, words.State())

    asyncio.run(body())


def test_events_from_any_number_on_and_as_they_come(tmp_path: Path) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            for number in range(5):
                cell.log.append("state", state=f"s{number}")
            on_disk = (cell.folder.path / "events.jsonl").read_bytes().splitlines()
            found = await asked(cell, words.Events(3, False))
            assert found == [words.Event(line) for line in on_disk[3:]]
            assert await asked(cell, words.Events(9, False)) == []
            heard: list[words.Answer] = []

            def follow() -> None:
                for word in ask(cell.folder, words.Events(4, True), follow=True):
                    heard.append(word)

            following = asyncio.create_task(asyncio.to_thread(follow))
            await soon(lambda: heard)
            cell.log.append("ended", outcome="completed")
        await following
        assert [b'"s4"' in heard[0].line, b'"completed"' in heard[1].line] == [True, True]  # type: ignore[union-attr]
        assert len(heard) == 2

    asyncio.run(body())


def test_half_a_line_is_not_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            cell.log.append("state", state="s")
            with (cell.folder.path / "events.jsonl").open("ab") as file:
                file.write(b'{"half')
            assert len(await asked(cell, words.Events(0, False))) == 1

    asyncio.run(body())


def test_output_from_any_place_on_and_as_it_comes(tmp_path: Path) -> None:
    whole = bytes(range(256)) * 4096

    async def body() -> None:
        heard: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

        def follow(cell: Cell) -> None:
            question = words.Outputs(100, 0, 0, "workload", True)
            for word in ask(cell.folder, question, follow=True):
                assert isinstance(word, words.Output)
                heard[word.stream] += word.data

        async with listening(tmp_path) as cell:
            (cell.folder.path / "stdout.log").write_bytes(whole)
            following = asyncio.create_task(asyncio.to_thread(follow, cell))
            await soon(lambda: len(heard["stdout"]) == len(whole) - 100)
            (cell.folder.path / "stderr.log").write_bytes(b"late")
        await following
        assert heard == {"stdout": whole[100:], "stderr": b"late"}

    asyncio.run(body())


NO_QUESTIONS = (
    *(b"\n", b"{}\n", b"[]\n", b"x\n", b"\xff\n", b'{"ask":"x"}\n', b'{"ask":"stop"}\n'),
    *(b'{"ask":"state","x":1}\n', b'{"ask":"events","since":-1,"follow":false}\n'),
    *(b'{"ask":"hello","version":1}\n', b"[" * 4000 + b"\n", b"x" * 100_000 + b"\n"),
)
HELLO = words.QUESTIONS.line(words.Hello(words.VERSION))


@pytest.mark.parametrize("begin", [b"", HELLO])
@pytest.mark.parametrize("line", NO_QUESTIONS, ids=range(len(NO_QUESTIONS)))
def test_what_is_no_question_is_refused_in_words(tmp_path: Path, line: bytes, begin: bytes) -> None:
    if not begin and line == b'{"ask":"hello","version":1}\n':
        begin = HELLO

    async def body() -> None:
        async with listening(tmp_path) as cell:
            reader, writer = await asyncio.open_unix_connection(cell.folder.path / NAME)
            writer.write(begin + line)
            with closing(writer):
                said = [words.ANSWERS.word(one) async for one in reader]
            assert isinstance(said[-1], words.QuestionRefused) and said[-1].reason
            assert len(said) <= 2 and not cell.stopped

    asyncio.run(body())


@pytest.mark.parametrize("version", [0, 2, 65536])
def test_another_version_is_told_so(tmp_path: Path, version: int) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            reader, writer = await asyncio.open_unix_connection(cell.folder.path / NAME)
            with closing(writer):
                writer.write(words.QUESTIONS.line(words.Hello(version)))
                hello, refused = [words.ANSWERS.word(line) async for line in reader]
            assert hello == words.Hello(words.VERSION)
            assert "wgcell that has started it" in getattr(refused, "reason", "")

    asyncio.run(body())


def test_the_first_words_of_every_version() -> None:
    """An older wgcell must understand them: they may never change."""
    assert HELLO == b'{"ask":"hello","version":1}\n'
    assert words.ANSWERS.line(words.Hello(1)) == b'{"say":"hello","version":1}\n'
    assert words.ANSWERS.line(words.QuestionRefused("why")) == b'{"say":"refused","reason":"why"}\n'


def test_whoever_says_nothing_is_left(tmp_path: Path) -> None:
    async def body() -> None:
        async with listening(tmp_path, patience=0.1) as cell:
            reader, writer = await asyncio.open_unix_connection(cell.folder.path / NAME)
            with closing(writer):
                said = words.ANSWERS.word(await asyncio.wait_for(reader.read(), GENEROUS))
            assert isinstance(said, words.QuestionRefused)

    asyncio.run(body())


def test_no_caller_holds_up_another_nor_the_cells_end(tmp_path: Path) -> None:
    """Some follow and read nothing, one after another; the last is told that there is no place."""
    most = MOST[Kind.CALLER]

    async def body() -> None:
        async with listening(tmp_path) as cell:
            (cell.folder.path / "stdout.log").write_bytes(bytes(8 << 20))
            idle = []
            question = words.QUESTIONS.line(words.Outputs(0, 0, 0, "workload", True))
            for _ in range(most - 1):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(cell.folder.path / NAME))
                sock.sendall(HELLO + question)
                idle.append(sock)
            await soon(lambda: cell.listener._counts[Kind.CALLER] == most - 1)
            assert len(await asked(cell, words.State())) == 1
            await soon(lambda: cell.listener._counts[Kind.CALLER] == most - 1)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(cell.folder.path / NAME))
            sock.sendall(HELLO + question)
            idle.append(sock)
            await soon(lambda: cell.listener._counts[Kind.CALLER] == most)
            with pytest.raises(StateError, match="64 others are being answered"):
                await asked(cell, words.State())
        for sock in idle:
            sock.close()

    asyncio.run(asyncio.wait_for(body(), GENEROUS))


def test_however_many_say_nothing_there_is_a_bound(tmp_path: Path) -> None:
    most = MOST[Kind.WAITING]

    async def body() -> None:
        # None is left for its silence before the last has come.
        async with listening(tmp_path, GENEROUS) as cell:
            with ExitStack() as callers:
                for _ in range(most + 9):
                    caller = callers.enter_context(socket.socket(socket.AF_UNIX))
                    await asyncio.to_thread(caller.connect, str(cell.folder.path / NAME))
                await soon(lambda: len(cell.listener._answering) == most)
                with pytest.raises(StateError, match="have yet to ask"):
                    await asked(cell, words.State())
            await soon(lambda: not cell.listener._answering)
            assert len(await asked(cell, words.State())) == 1

    asyncio.run(asyncio.wait_for(body(), GENEROUS))


def test_a_caller_that_takes_no_answer_counts_until_it_is_gone(tmp_path: Path) -> None:
    """What its socket does not take leaves no connection behind that nobody counts."""
    many = 24

    def sockets() -> int:
        fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(fd).rpartition("/")[2].startswith("socket:") for fd in fds)

    async def body() -> None:
        before = os.listdir("/proc/self/fd")
        with ExitStack() as callers:
            async with listening(tmp_path) as cell:
                for _ in range(many):
                    cell.log.append("state", state="x" * (16 << 10))
                hello = words.QUESTIONS.line(words.Hello(words.VERSION))
                without = sockets()
                for since in range(many):  # some answers fit into the socket, others just don't
                    caller = callers.enter_context(socket.socket(socket.AF_UNIX))
                    caller.connect(str(cell.folder.path / NAME))
                    caller.sendall(hello + words.QUESTIONS.line(words.Events(since, False)))
                await soon(lambda: 0 < len(cell.listener._answering) < many)
                await lulled(0.5)
                assert 0 < len(cell.listener._answering) < many
                assert sockets() - without - many == len(cell.listener._answering)
        assert os.listdir("/proc/self/fd") == before

    asyncio.run(asyncio.wait_for(body(), GENEROUS))


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be others")
def test_another_user_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with listening(tmp_path) as cell:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            assert len(await asked(cell, words.State())) == 1  # root may
            monkeypatch.setattr(listener, "caller_uid", lambda sock: 12346)
            with pytest.raises(Unreachable):
                await asked(cell, words.State())
            monkeypatch.setattr(listener, "caller_uid", lambda sock: 12345)
            assert len(await asked(cell, words.State())) == 1

    asyncio.run(body())


# The client's side: the folder may be a stranger's.


def test_a_refusal_that_comes_before_the_question_is_heard() -> None:
    """A cell that is full closes at once, and what is then said to it meets nobody."""
    said = words.ANSWERS.line(words.QuestionRefused("full"))
    here, there = socket.socketpair()
    with here:
        there.sendall(said)
        there.close()
        client._ask(here, words.State())
        assert here.recv(1000) == said


@contextmanager
def answering(folder: Folder, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody else's program where a cell's socket would be."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder.path / NAME))
        server.listen()

        def serve() -> None:
            try:
                client, _ = server.accept()
                with client:
                    answer(client)
            except OSError:
                pass  # who asked is gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join(GENEROUS)


def saying(words: bytes) -> Callable[[socket.socket], None]:
    def say(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(words)

    return say


SENSELESS = (
    *(b"\n", b"{}\n", b"\x1b[2J\n", b'{"say":"over"}\n', b'{"say":"status","state":"x"}\n'),
    *(b"[" * 100_000 + b"\n", b"x" * 3_000_000),
)


@pytest.mark.parametrize("line", SENSELESS, ids=range(len(SENSELESS)))
@pytest.mark.parametrize("hello", [b"", words.ANSWERS.line(words.Hello(1))], ids=["", "hello"])
def test_an_answer_that_makes_no_sense(tmp_path: Path, line: bytes, hello: bytes) -> None:
    if hello and line == b'{"say":"over"}\n':
        line = b""
    folder = create(tmp_path, "x")

    with (
        answering(folder, saying(hello + line)),
        pytest.raises((StateError, Unreachable)) as caught,
    ):
        list(ask(folder, words.State()))
    assert str(caught.value).replace("\n", "").isprintable()


def test_an_answer_without_its_hello_and_one_without_end(tmp_path: Path) -> None:
    silent, endless = create(tmp_path, "a"), create(tmp_path, "b")
    status = words.ANSWERS.line(words.Status("running", 1))
    with (
        answering(silent, saying(status)),
        pytest.raises(StateError, match="no cell"),
    ):
        list(ask(silent, words.State()))
    left: list[int] = []

    def pour(client: socket.socket) -> None:
        client.recv(1000)
        for piece in range(64):
            left.append(63 - piece)
            client.sendall(bytes(1 << 20))

    with answering(endless, pour), pytest.raises(StateError):
        list(ask(endless, words.State()))
    assert left[-1] > 50


def test_a_refusal_is_printed_and_a_death_is_noticed(tmp_path: Path) -> None:
    refused, died = create(tmp_path, "a"), create(tmp_path, "b")
    hello = words.ANSWERS.line(words.Hello(7))
    reason = words.ANSWERS.line(words.QuestionRefused("this cell speaks version 7"))
    with (
        answering(refused, saying(hello + reason)),
        pytest.raises(StateError, match="speaks version 7"),
    ):
        list(ask(refused, words.State()))
    event = words.ANSWERS.line(words.Event(b"{}"))
    heard: list[words.Answer] = []
    with (
        answering(died, saying(hello + event)),
        pytest.raises(Unreachable),
    ):
        for word in ask(died, words.Events(0, True), follow=True):
            heard.append(word)
    assert heard == [words.Event(b"{}")]


def test_whoever_never_answers_is_left(tmp_path: Path) -> None:
    folder = create(tmp_path, "x")
    ended = threading.Event()

    def nothing(client: socket.socket) -> None:
        ended.wait(GENEROUS)

    with answering(folder, nothing):
        with pytest.raises(Unreachable):
            list(ask(folder, words.State(), patience=0.1))
        ended.set()


def test_whoever_answers_a_byte_now_and_then_is_left(tmp_path: Path) -> None:
    """Root asks the cells of others, one after the other."""
    folder = create(tmp_path, "x")

    def drip(client: socket.socket) -> None:
        with suppress(OSError):
            for _ in range(200):
                client.sendall(b" ")
                pace(0.02)

    with answering(folder, drip), pytest.raises(Unreachable, match="time"):
        list(ask(folder, words.State(), patience=0.2))


@pytest.mark.parametrize("question", [words.State(), words.Stop(False)])
@pytest.mark.parametrize("right", [True, False], ids=["the same again", "another"])
def test_an_answer_of_one_word_ends_behind_it(
    tmp_path: Path, question: words.Question, right: bool
) -> None:
    folder = create(tmp_path, "x")
    stop = isinstance(question, words.Stop)
    word: words.Answer = words.Stopping() if stop == right else words.Status("running", 1)
    most = 1000
    said = words.ANSWERS.line(words.Hello(1)) + words.ANSWERS.line(word) * most
    with (
        answering(folder, saying(said)),
        pytest.raises(StateError, match="does not end" if right else "no answer to what"),
    ):
        list(ask(folder, question))


@pytest.mark.parametrize("kind", ["none", "file", "fifo", "link"])
def test_where_no_cell_listens(tmp_path: Path, kind: str) -> None:
    folder = create(tmp_path, "x")
    place = folder.path / NAME
    match kind:
        case "file":
            place.write_text("")
        case "fifo":
            os.mkfifo(place)
        case "link":
            place.symlink_to(tmp_path / "nothing")
    with pytest.raises(Unreachable):
        list(ask(folder, words.State()))


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be others")
def test_root_is_not_led_to_another_users_socket(tmp_path: Path) -> None:
    theirs, folder = create(tmp_path, "theirs"), create(tmp_path, "x")
    heard: list[bytes] = []
    with answering(theirs, lambda client: heard.append(client.recv(100))):
        (folder.path / NAME).symlink_to(theirs.path / NAME)
        os.chown(folder.path, 12345, 12345)
        with pytest.raises(Unreachable):
            list(ask(folder, words.Stop(True)))
    assert heard == [b""]
