"""A cell's sessions for a program with an event loop: commands, files, the workload's own streams.

::

    async with await SessionClient.connect(folder) as client:
        async with await client.open(Command(("cat",), (), "", "", None, True)) as session:
            await session.stdin.write(b"hello")
            await session.stdin.end()
            print(await session.stdout.read_all(), await session.wait())

One connection carries up to 64 sessions. Each stream is read as fast as its reader reads it, and no
faster: what was not read yet is at most `WINDOW` bytes here. A session that is left, or whose
connection closes, is hung up: its processes get SIGHUP. With ``detached`` they go on instead, and
nobody sees what they print.

Every error is a StateError. `Closed` is one: the cell has ended, or died; its folder says how.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, begin
from wgcell.cell.folder import Folder
from wgcell.errors import GuestError, StateError
from wgcell.guest.channel import Channel
from wgcell.guest.frames import (
    MOST_DATA,
    STDERR,
    STDIN,
    STDOUT,
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
    Terminal,
)

__all__ = ["Closed", "OpenSession", "SessionClient", "StreamReader", "StreamWriter"]

_MOST_WAITING = 64 * 1024
"""Bytes that wait in the connection before a writer waits."""


class Closed(StateError):
    """The connection is gone: the cell has ended, or died."""


class StreamReader:
    """What a session prints to one stream."""

    def __init__(self, session: OpenSession, stream: int) -> None:
        self._session = session
        self._stream = stream
        self._held = bytearray()
        self._ended = False
        self._changed = asyncio.Event()

    async def read(self, most: int = -1) -> bytes:
        """The next bytes, ``most`` of them unless it is negative; none at the stream's end.

        Raises Closed if the connection broke off before it.
        """
        while not (self._held or self._ended):
            self._changed.clear()
            await self._changed.wait()
        if not self._held and self._session.lost:
            raise self._session.lost
        part = bytes(self._held) if most < 0 else bytes(self._held[:most])
        del self._held[: len(part)]
        self._session.credit(self._stream, len(part))
        return part

    async def read_all(self, most: int | None = None) -> bytes:
        """All that comes until the stream's end; of more than ``most`` bytes the first ones."""
        whole = bytearray()
        async for part in self:
            whole += part if most is None else part[: most - len(whole)]
        return bytes(whole)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while part := await self.read():
            yield part

    def feed(self, data: bytes) -> None:
        """More came."""
        self._held += data
        self._changed.set()

    def end(self) -> None:
        """No more comes."""
        self._ended = True
        self._changed.set()


class StreamWriter:
    """A session's standard input."""

    def __init__(self, session: OpenSession) -> None:
        self._session = session
        self._changed = asyncio.Event()
        self._ended = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it, as the session reads. Raises BrokenPipeError if nobody reads it any
        more, Closed if the connection is gone."""
        view = memoryview(data)
        while view:
            part = view[: min(MOST_DATA, await self._room())]
            await self._session.send(Data(self._session.number, STDIN, bytes(part)))
            view = view[len(part) :]

    async def end(self) -> None:
        """The standard input ends here; more than once does no harm."""
        if not self._ended and self._session.is_open:
            self._ended = True
            await self._session.send(End(self._session.number, STDIN))

    async def _room(self) -> int:
        while True:
            if self._session.lost:
                raise self._session.lost
            if self._ended or not self._session.is_open:
                raise BrokenPipeError("nobody reads the session's standard input any more")
            if room := self._session.room:
                return room
            self._changed.clear()
            await self._changed.wait()

    def changed(self) -> None:
        """There is room, or there will never be."""
        self._changed.set()


class OpenSession:
    """One session. Use it with ``async with``: it is hung up at the end if it still runs."""

    def __init__(self, client: SessionClient, number: int) -> None:
        self.number = number
        self.stdin = StreamWriter(self)
        self.stdout = StreamReader(self, STDOUT)
        self.stderr = StreamReader(self, STDERR)
        self.lost: Closed | None = None
        """Why the session will never end in order."""
        self._client = client
        self._began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hung_up = False

    async def wait(self) -> int:
        """Its exit code, 0 to 255, once it is over; what it printed can still be read then.

        A program that was killed by a signal has 128 and that signal's number. Raises Closed.
        """
        return await asyncio.shield(self._exit)

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size, 0 to 65535 each."""
        if self.is_open:
            await self.send(Size(self.number, Terminal(rows, columns)))

    async def signal(self, number: int) -> None:
        """Send its process group a signal, 1 to 64."""
        if self.is_open:
            await self.send(Signal(self.number, number))

    async def hang_up(self) -> None:
        """Send its processes SIGHUP; it may still print, and exit."""
        if self.is_open:
            await self.send(Hangup(self.number))
            self._hung_up = True
            self.stdin.changed()

    async def __aenter__(self) -> OpenSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Closed):
            await self.hang_up()

    @property
    def is_open(self) -> bool:
        """Whether anything can still be sent to it."""
        return not (self._hung_up or self._exit.done())

    @property
    def room(self) -> int:
        """Bytes that its standard input takes now."""
        return self._client.room(self.number)

    async def send(self, frame: Frame) -> None:
        """For its streams: send ``frame``."""
        await self._client.send(frame)

    def credit(self, stream: int, amount: int) -> None:
        """For its streams: so much was read."""
        if amount and self.is_open:
            self._client.send_soon(Credit(self.number, stream, amount))

    async def begun(self) -> None:
        """For `SessionClient.open`: wait until it runs. Raises StateError if it can't."""
        await asyncio.shield(self._began)

    def hear(self, frame: Frame) -> None:
        """For its client: what the cell says."""
        match frame:
            case Opened():
                self._began.set_result(None)
            case SessionRefused(_, text):
                self._fail(StateError(text))
            case Data(_, stream, data):
                (self.stdout if stream == STDOUT else self.stderr).feed(data)
            case End(_, stream):
                (self.stdout if stream == STDOUT else self.stderr).end()
            case Credit():
                self.stdin.changed()
            case Exit(_, code):
                self._exit.set_result(code)
                self._settle()

    def lose(self, error: Closed) -> None:
        """For its client: the connection is gone."""
        if not self._exit.done():
            self.lost = error
            self._fail(error)

    def _fail(self, error: StateError) -> None:
        for future in (self._began, self._exit):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody need ask
        self._settle()

    def _settle(self) -> None:
        self.stdout.end()
        self.stderr.end()
        self.stdin.changed()


class SessionClient:
    """One connection to a cell, for sessions."""

    def __init__(
        self, cell: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._cell = cell
        self._reader, self._writer = reader, writer
        self._channel = Channel(opener=True)
        self._sessions: dict[int, OpenSession] = {}
        self._lost: Closed | None = None
        self._hearing = asyncio.create_task(self._hear())

    @classmethod
    async def connect(cls, folder: Folder, *, detached: bool = False) -> SessionClient:
        """A connection to the cell of that folder. Raises StateError: there is no such cell, or it
        refuses."""
        try:
            sock = await asyncio.to_thread(begin, folder, words.Sessions(detached))
            reader, writer = await asyncio.open_connection(sock=sock, limit=_MOST_WAITING)
        except (Unreachable, OSError) as error:
            raise Closed(f"{folder.id}: the cell can't be reached: {error}") from None
        writer.transport.set_write_buffer_limits(_MOST_WAITING)
        return cls(folder.id, reader, writer)

    async def open(self, subject: Subject) -> OpenSession:
        """Begin a session, and wait until it runs. Raises StateError, with why, if it can't."""
        if self._lost is not None:
            raise self._lost
        if self._channel.is_full:
            raise StateError("this connection has as many sessions as it can have")
        session = OpenSession(self, self._channel.next_session)
        try:
            self.send_soon(Open(session.number, subject))
        except ValueError as error:
            raise StateError(f"no session can be begun like that: {error}") from None
        self._sessions[session.number] = session
        try:
            await session.begun()
        except asyncio.CancelledError:
            with contextlib.suppress(Closed):
                self.send_soon(Hangup(session.number))
            raise
        return session

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone: nothing can be begun on it any more."""
        return self._lost is not None

    async def close(self) -> None:
        """Close the connection: what still runs is hung up."""
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> SessionClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # For the sessions.

    def room(self, session: int) -> int:
        """Bytes that the standard input of a session takes now."""
        return self._channel.room(session, STDIN)

    def send_soon(self, frame: Frame) -> None:
        """Send a small frame. Raises ValueError for one that can't be."""
        if self._lost is None:
            self._writer.write(self._channel.send(frame))

    async def send(self, frame: Frame) -> None:
        """Send a frame, and wait until it is nearly gone. Raises Closed."""
        if self._lost is None:
            self._writer.write(self._channel.send(frame))
            with contextlib.suppress(OSError):  # whoever hears finds out
                await self._writer.drain()
        if self._lost is not None:
            raise self._lost

    async def _hear(self) -> None:
        why = "the cell has ended"
        try:
            while data := await self._reader.read(_MOST_WAITING):
                for frame in self._channel.receive(data):
                    self._sessions[frame.session].hear(frame)
                    if isinstance(frame, Exit | SessionRefused):
                        del self._sessions[frame.session]
        except OSError as error:
            why = error.strerror or str(error)
        except GuestError as error:
            why = error.message
        finally:
            self._lose(Closed(f"{self._cell}: the connection to the cell is gone: {why}"))

    def _lose(self, error: Closed) -> None:
        self._lost = error
        for session in self._sessions.values():
            session.lose(error)
        self._sessions = {}
        self._writer.close()
