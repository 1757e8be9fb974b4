"""A guest's end of the session port that does what a session's command says, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from wgcell.guest.channel import WORKLOAD, Channel
from wgcell.guest.frames import (
    MOST_DATA,
    STDERR,
    STDIN,
    STDOUT,
    Command,
    Credit,
    Data,
    End,
    Exit,
    Frame,
    Hangup,
    Open,
    Opened,
    SessionRefused,
    Signal,
    Size,
    Subject,
)

__all__ = ["FakeGuest", "Program", "command"]


def command(*argv: str, **changed: Any) -> Command:
    """A session's command that reads its standard input."""
    given: dict[str, Any] = {"env": (), "folder": "", "user": "", "terminal": None, "stdin": True}
    return Command(argv, **{**given, **changed})


@dataclass(eq=False)
class Program:
    """A session as its program sees it."""

    guest: FakeGuest
    number: int
    subject: Subject
    input: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    """Pieces; an empty one is the end."""
    heard: list[Frame] = field(default_factory=list)
    """Sizes, signals, and a hangup."""
    news: asyncio.Queue[Frame] = field(default_factory=asyncio.Queue)
    """The same, as they come."""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> bytes:
        """The next piece of its standard input."""
        data = await self.input.get()
        if data:
            self.guest.say(Credit(self.number, STDIN, len(data)))
        return data

    async def write(self, data: bytes, stream: int = STDOUT) -> None:
        """All of it, as there is credit."""
        while data:
            while not (room := self.guest.channel.room(self.number, stream)):
                self.room.clear()
                await self.room.wait()
            part, data = data[: min(room, MOST_DATA)], data[min(room, MOST_DATA) :]
            self.guest.say(Data(self.number, stream, part))


async def _cat(program: Program) -> int:
    while data := await program.read():
        await program.write(data)
    return 0


async def _yes(program: Program) -> int:
    while not program.hung_up.is_set():
        await program.write(b"y\n" * 1000)
    return 0


async def _count(program: Program) -> int:
    """So many bytes on stdout, and then so many on stderr."""
    _, out, err = program.subject.argv  # type: ignore[union-attr]
    await program.write(b"x" * int(out))
    await program.write(b"e" * int(err), STDERR)
    return 0


async def _sleep(program: Program) -> int:
    await program.hung_up.wait()
    return 129


async def _exit(program: Program) -> int:
    return int(program.subject.argv[1])  # type: ignore[union-attr]


async def _sizes(program: Program) -> int:
    """Each size and signal as a line, until a hangup."""
    while True:
        await program.write(f"{await program.news.get()}\n".encode())


async def _env(program: Program) -> int:
    """What it was asked to be."""
    asked = program.subject
    assert isinstance(asked, Command)
    shown = (dict(asked.env), asked.folder, asked.user, asked.terminal, asked.stdin)
    await program.write(repr(shown).encode())
    return 0


async def _echo(program: Program) -> int:
    await program.write("".join(program.subject.argv[1:]).encode())  # type: ignore[union-attr]
    return 0


async def _pack(program: Program) -> int:
    path = program.subject.path  # type: ignore[union-attr]
    if path not in program.guest.tars:
        await program.write(f"tar: {path}: No such file or directory\n".encode(), STDERR)
        await program.write(bytes(1024))
        return 1
    await program.write(program.guest.tars[path])
    return 0


async def _unpack(program: Program) -> int:
    path = program.subject.path  # type: ignore[union-attr]
    if path not in program.guest.folders:
        await program.write(f"wgcell: {path}: No such file or directory\n".encode(), STDERR)
        return 126
    whole = b""
    while data := await program.read():
        whole += data
    if whole.strip(b"\0"):
        program.guest.folders[path] = whole
    return 0


PROGRAMS: dict[str, Callable[[Program], Coroutine[Any, Any, int]]] = {
    "cat": _cat,
    "yes": _yes,
    "count": _count,
    "sleep": _sleep,
    "exit": _exit,
    "sizes": _sizes,
    "env": _env,
    "echo": _echo,
    "Pack": _pack,
    "Unpack": _unpack,
}


class FakeGuest:
    """The guest's end of ``port``. Needs a running loop."""

    def __init__(self, port: socket.socket) -> None:
        self.channel = Channel(opener=False, workload=True)
        self.programs: dict[int, Program] = {WORKLOAD: Program(self, WORKLOAD, command("workload"))}
        self.opened: list[Open] = []
        self.tars: dict[str, bytes] = {}
        """What a session that packs a path sends."""
        self.folders: dict[str, bytes] = {}
        """What was unpacked into each folder that is there."""
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._spawn(self._live())

    @property
    def workload(self) -> Program:
        """Session 0."""
        return self.programs[WORKLOAD]

    def say(self, frame: Frame) -> None:
        """Send it, as the rules have it."""
        self.say_raw(self.channel.send(frame))

    def say_raw(self, data: bytes) -> None:
        """Send whatever it is."""
        assert self._writer is not None
        self._writer.write(data)

    async def close(self) -> None:
        """The machine is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _live(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._port)
        while data := await reader.read(65536):
            for frame in self.channel.receive(data):
                self._hear(frame)

    def _hear(self, frame: Frame) -> None:
        if isinstance(frame, Open):
            self.opened.append(frame)
            subject = frame.subject
            name = subject.argv[0] if isinstance(subject, Command) else type(subject).__name__
            if name not in PROGRAMS:
                self.say(SessionRefused(frame.session, f"{name}: not found"))
                return
            program = self.programs[frame.session] = Program(self, frame.session, subject)
            self.say(Opened(frame.session))
            self._spawn(self._run(program, PROGRAMS[name](program)))
            return
        program = self.programs[frame.session]
        match frame:
            case Data(_, _, data):
                program.input.put_nowait(data)
            case End():
                program.input.put_nowait(b"")
            case Credit():
                program.room.set()
            case Size() | Signal():
                program.heard.append(frame)
                program.news.put_nowait(frame)
            case Hangup():
                program.heard.append(frame)
                program.hung_up.set()
                program.input.put_nowait(b"")

    async def _run(self, program: Program, work: Coroutine[Any, Any, int]) -> None:
        ending = asyncio.ensure_future(work)
        hung_up = asyncio.ensure_future(program.hung_up.wait())
        await asyncio.wait((ending, hung_up), return_when=asyncio.FIRST_COMPLETED)
        hung_up.cancel()
        code = ending.result() if ending.done() else 129
        ending.cancel()
        del self.programs[program.number]
        self.say(Exit(program.number, code))
