"""The cell's end of its control socket.

The socket lies in the cell's folder, which is its owner's alone (0700), and is 0600 itself. Each
caller's user is checked all the same: the owner's, or root. The socket disappears with the cell or
its folder.

A caller costs little, and holds up nobody. It must send its question within `PATIENCE` seconds, and
no more is read from it. Each `Kind` of caller has a bound, so however many have sessions, `stop`
and `ps` are heard. Output that a caller does not take waits in the files, not in memory; for a
client with sessions, see `wgcell.cell.sessions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import BinaryIO, Protocol, cast

from wgcell.cell.control import words
from wgcell.cell.control.place import NAME, address, caller_uid
from wgcell.cell.folder import Folder
from wgcell.errors import StateError
from wgcell.wire.lines import LineError

__all__ = ["MOST", "PATIENCE", "Kind", "Listener"]


class Kind(Enum):
    """The purpose of a caller."""

    WAITING = "have yet to ask"
    CALLER = "are being answered"
    CLIENT = "have sessions"


MOST: Mapping[Kind, int] = MappingProxyType({Kind.WAITING: 256, Kind.CALLER: 64, Kind.CLIENT: 128})
"""Callers at once."""
PATIENCE = 5.0
"""Seconds."""
LAST_WORDS = 1.0
"""Seconds that callers get, once the cell has ended, to take what there is left to say."""
_LOOK_EVERY = 0.1
"""Seconds between two looks for more output. An event is sent at once."""
_PIECE = 1 << 16
"""Bytes of output in one word."""


class Controlled(Protocol):
    """The cell, as its control socket uses it."""

    @property
    def state(self) -> str:
        """In a word."""

    @property
    def end(self) -> words.Ended:
        """How it has ended."""

    def stop(self, *, now: bool) -> None:
        """Begin to end it."""

    def serve(
        self, transport: asyncio.Transport, first: bytes, uid: int, *, detached: bool
    ) -> Coroutine[object, None, None]:
        """Speak frames with a client of that user until it is gone; see `Sessions.serve`."""

    async def pause(self, uid: int) -> None:
        """Let its machine stand still, for that user. Raises StateError with why it can't."""

    async def unpause(self, uid: int) -> None:
        """Let its machine go on, for that user. Raises StateError with why it can't."""

    async def change_policy(
        self, question: words.Allow | words.Deny, uid: int
    ) -> words.PolicyChanged:
        """Change its own gateway's rules, for that user. Raises StateError with why it can't."""

    def policy(self) -> AsyncGenerator[words.Rule, None]:
        """The rules of its own gateway. Raises StateError with why there are none."""


class _Unanswerable(Exception):
    """No answer can be given; the reason is for the caller."""


@dataclass(frozen=True, slots=True)
class _Caller:
    """One connection, and what has been said on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    uid: int

    async def heard(self, patience: float) -> words.Question:
        """The next word. Raises _Unanswerable, also if none comes within ``patience`` seconds."""
        try:
            async with asyncio.timeout(patience):
                line = await self.reader.readline()
            return words.QUESTIONS.word(line)
        except TimeoutError:
            raise _Unanswerable(f"no question within {patience:g} s") from None
        except ValueError as error:  # a line that is too long, too
            raise _Unanswerable(
                f"this is no question of version {words.VERSION}: {error}"
            ) from None

    async def say(self, word: words.Answer) -> None:
        """Say it, once what was said before is on its way. Raises OSError if the caller is gone."""
        self.writer.write(words.ANSWERS.line(word))
        await self.writer.drain()

    async def finish(self) -> None:
        """Close the connection, once the caller has taken all that was said."""
        self.writer.close()
        await self.writer.wait_closed()

    async def hand_over(self) -> tuple[asyncio.Transport, bytes]:
        """The connection, for whoever is to speak on it, and what was read of it by now."""
        transport = cast(asyncio.Transport, self.writer.transport)
        transport.pause_reading()
        self.reader.feed_eof()
        return transport, await self.reader.read()


class Listener:
    """Answers callers for as long as a cell lives."""

    def __init__(self, folder: Folder, cell: Controlled, patience: float = PATIENCE) -> None:
        """``patience``: the seconds in which a caller must say each of its words."""
        self._patience = patience
        self._folder = folder
        self._cell = cell
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._counts: Counter[Kind] = Counter()
        self._changed = asyncio.Event()
        self._over = False
        self._ending = contextlib.ExitStack()

    async def start(self) -> str:
        """Listen. Returns why that can't be, as on a file system without sockets; else nothing."""
        try:
            await self._listen()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    async def _listen(self) -> None:
        with contextlib.ExitStack() as ending:
            place = os.open(self._folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            # Open to the end: it is part of the socket's own name.
            ending.callback(os.close, place)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            ending.enter_context(sock)
            sock.bind(address(place))
            os.chmod(NAME, 0o600, dir_fd=place)
            self._server = await asyncio.start_unix_server(
                self._come, sock=sock, limit=words.QUESTIONS.longest, backlog=MOST[Kind.WAITING]
            )
            self._ending = ending.pop_all()

    def wake(self) -> None:
        """Something was written that callers may wait for."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """Send the end to all callers that wait for it, once all is written, and hear no more."""
        self._over = True
        self.wake()
        if self._server is not None:
            self._server.close()
        if self._answering:
            await asyncio.wait(self._answering, timeout=LAST_WORDS)
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        self._ending.close()
        self._folder.discard(NAME)

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = caller_uid(writer.get_extra_info("socket"))
        if uid not in (os.geteuid(), 0):
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(_Caller(reader, writer, uid)))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    @contextlib.contextmanager
    def _counted(self, kind: Kind) -> Iterator[None]:
        """Count a caller. Raises _Unanswerable for one too many."""
        if self._counts[kind] >= MOST[kind]:
            raise _Unanswerable(f"{MOST[kind]} others {kind.value} here: try again later")
        self._counts[kind] += 1
        try:
            yield
        finally:
            self._counts[kind] -= 1

    async def _serve(self, caller: _Caller) -> None:
        try:
            with contextlib.suppress(OSError):  # the caller is gone
                await self._answer(caller)
        except asyncio.CancelledError:
            caller.writer.transport.abort()
        finally:
            caller.writer.close()

    async def _answer(self, caller: _Caller) -> None:
        try:
            with self._counted(Kind.WAITING):
                question = await self._question(caller)
            if isinstance(question, words.Sessions):
                with self._counted(Kind.CLIENT):
                    await self._serve_sessions(caller, question)
            else:
                with self._counted(Kind.CALLER):
                    await self._reply(caller, question)
        except _Unanswerable as error:
            await caller.say(words.QuestionRefused(str(error)))
            await caller.finish()

    async def _question(self, caller: _Caller) -> words.Question:
        said = await caller.heard(self._patience)
        await caller.say(words.Hello(words.VERSION))
        if not isinstance(said, words.Hello) or said.version != words.VERSION:
            version = said.version if isinstance(said, words.Hello) else 0
            raise _Unanswerable(
                f"this cell speaks version {words.VERSION}, and you {version or 'none'}: use "
                "the wgcell that has started it"
            )
        question = await caller.heard(self._patience)
        if isinstance(question, words.Hello):
            raise _Unanswerable("hello was said before")
        return question

    async def _serve_sessions(self, caller: _Caller, question: words.Sessions) -> None:
        await caller.say(words.Accepted())
        transport, first = await caller.hand_over()
        await self._cell.serve(transport, first, caller.uid, detached=question.detached)

    async def _reply(self, caller: _Caller, question: words.Question) -> None:
        try:
            async with contextlib.aclosing(self._words(question, caller.uid)) as answer:
                async for word in answer:
                    await caller.say(word)
            await caller.say(words.Over())
        except (_Unanswerable, LineError, StateError) as error:
            await caller.say(words.QuestionRefused(str(error)))
        # It counts as a caller until it has taken the rest, or the cell has ended.
        await caller.finish()

    async def _words(
        self, question: words.Question, uid: int
    ) -> AsyncGenerator[words.Answer, None]:
        match question:
            case words.State():
                yield words.Status(self._cell.state, os.getpid())
            case words.Events():
                async with contextlib.aclosing(self._events(question)) as answer:
                    async for word in answer:
                        yield word
            case words.Outputs():
                async with contextlib.aclosing(self._outputs(question)) as answer:
                    async for word in answer:
                        yield word
            case words.Stop():
                self._cell.stop(now=question.now)
                yield words.Stopping()
            case words.Pause():
                await self._cell.pause(uid)
                yield words.Status(self._cell.state, os.getpid())
            case words.Unpause():
                await self._cell.unpause(uid)
                yield words.Status(self._cell.state, os.getpid())
            case words.Allow() | words.Deny():
                yield await self._cell.change_policy(question, uid)
            case words.Policy():
                async with contextlib.aclosing(self._cell.policy()) as rules:
                    async for rule in rules:
                        yield rule
            case words.End():
                while not self._over:
                    await self._changed.wait()
                yield self._cell.end

    async def _events(self, question: words.Events) -> AsyncGenerator[words.Answer, None]:
        number = 0
        growing = self._growing(("events.jsonl",), question.follow, _line)
        async with contextlib.aclosing(growing):
            async for _, line in growing:
                if number >= question.since:
                    yield words.Event(line.removesuffix(b"\n"))
                number += 1

    async def _outputs(self, question: words.Outputs) -> AsyncGenerator[words.Answer, None]:
        wanted = ("console",) if question.which == "console" else ("stdout", "stderr")
        begins = {f"{name}.log": getattr(question, name) for name in wanted}
        growing = self._growing(tuple(begins), question.follow, _piece, begins)
        async with contextlib.aclosing(growing):
            async for file, data in growing:
                yield words.Output(file.removesuffix(".log"), data)

    async def _growing(
        self,
        names: tuple[str, ...],
        follow: bool,
        read: Callable[[BinaryIO], bytes],
        begins: dict[str, int] | None = None,
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """What ``read`` takes of these files; with ``follow``, until the cell has ended."""
        with contextlib.ExitStack() as opened:
            files: dict[str, BinaryIO] = {}
            while True:
                changed, last = self._changed, self._over or not follow
                for name in names:
                    if name not in files:
                        try:
                            files[name] = opened.enter_context(self._folder.open(name))
                        except FileNotFoundError:
                            continue
                        files[name].seek((begins or {}).get(name, 0))
                    while data := read(files[name]):
                        yield name, data
                        await asyncio.sleep(0)  # every other task in the loop runs
                if last:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY):
                        await changed.wait()


def _piece(file: BinaryIO) -> bytes:
    return file.read(_PIECE)


def _line(file: BinaryIO) -> bytes:
    """The next line, if it is whole by now. Raises _Unanswerable for one without end."""
    at = file.tell()
    line = file.readline(words.MOST_BYTES + 1)
    if line.endswith(b"\n"):
        return line
    if len(line) > words.MOST_BYTES:
        raise _Unanswerable("an event is too long to be sent")
    file.seek(at)
    return b""
