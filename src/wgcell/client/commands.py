"""Commands in a cell, besides its own: started, written to, read from, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from wgcell.cell.control.session_client import (
    OpenSession,
    SessionClient,
    StreamReader,
    StreamWriter,
)
from wgcell.cell.folder import LOG_CAP, Folder
from wgcell.client.completed import Completed, Usage
from wgcell.client.settings import terminal_of
from wgcell.errors import JobError, StateError, TimedOut
from wgcell.guest.frames import Command, Subject, Terminal

__all__ = ["MOST_OUTPUT", "Asked", "Process", "run_to_its_end"]

MOST_OUTPUT = LOG_CAP
"""Bytes of each stream that `run_to_its_end` keeps, unless told otherwise."""
_DIES_WITHIN = 2.0
"""Seconds that a killed command has to report its end."""

Connect = Callable[[], Awaitable[SessionClient]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A command, and how it is to be run."""

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    user: str = ""
    stdin: bool = True
    terminal: Terminal | None = None

    @staticmethod
    def of(
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        stdin: bool = True,
        tty: bool | tuple[int, int] = False,
    ) -> Asked:
        """Raises JobError for a command that can't be one."""
        words, pairs = tuple(command), tuple((env or {}).items())
        every = (*words, *(text for pair in pairs for text in pair), workdir, user)
        if not all(isinstance(text, str) for text in every):
            raise JobError("a command's words, folder, user and variables are texts")
        if not words or not words[0]:
            raise JobError("command: is empty")
        if any("\0" in text for text in every):
            raise JobError("command: holds a NUL character")
        return Asked(words, pairs, workdir, user, stdin, terminal_of(tty))

    def subject(self) -> Subject:
        """It, as the guest is asked for it."""
        return Command(self.command, self.env, self.workdir, self.user, self.terminal, self.stdin)


class Process:
    """A command that runs in a cell. Use it with ``async with``: what still runs at the end gets
    SIGHUP, as from a terminal that closes."""

    def __init__(self, connect: Connect, subject: Subject) -> None:
        self._connect = connect
        self._subject = subject
        self._session: OpenSession | None = None

    async def __aenter__(self) -> Process:
        """Start it. Raises StateError with why it can't: the cell is paused, ending, or full."""
        client = await self._connect()
        self._session = await client.open(self._subject)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, trace)

    @property
    def _open(self) -> OpenSession:
        if self._session is None:
            raise StateError("this command was not started", hint="async with cell.spawn(...)")
        return self._session

    @property
    def stdin(self) -> StreamWriter:
        """Its standard input: `write`, and `end` where it ends."""
        return self._open.stdin

    @property
    def stdout(self) -> StreamReader:
        """What it prints; with a terminal, all of it. ``async for`` gives the pieces."""
        return self._open.stdout

    @property
    def stderr(self) -> StreamReader:
        """Likewise; of a command with a terminal it is empty."""
        return self._open.stderr

    async def wait(self) -> int:
        """Its exit code, once it has ended: 0 to 255; 128 and the signal's number if it was killed.

        Raises StateError if the cell ends before.
        """
        return await self._open.wait()

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size, 0 to 65535 each."""
        await self._open.resize(rows, columns)

    async def signal(self, number: int) -> None:
        """Send its process group a signal, 1 to 64."""
        await self._open.signal(number)

    async def kill(self) -> None:
        """Send its process group SIGKILL."""
        await self._open.signal(signals.SIGKILL)


async def run_to_its_end(
    folder: Folder, process: Process, asked: Asked, data: bytes, timeout: float | None, most: int
) -> Completed:
    """Start ``process``, give it ``data``, and take what it prints until it ends.

    It has ``timeout`` seconds; then it is killed. ``most`` bytes are kept of each stream, the first
    ones. Raises TimedOut, and StateError as `Process` does.
    """
    began = time.monotonic()
    async with process:
        whole = asyncio.gather(
            _kept(process.stdout, most),
            _kept(process.stderr, most),
            _fed(process.stdin, data, asked),
        )
        try:
            (stdout, more), (stderr, more_too), _ = await asyncio.wait_for(whole, timeout)
            code = await process.wait()
        except TimeoutError:
            await _killed(process)
            raise TimedOut(
                f"{folder.id}: {' '.join(asked.command):.200} ran longer than {timeout:g} s",
                cell=folder.id,
                folder=str(folder.path),
                outcome="timeout",
                exit_code=124,
            ) from None
    return Completed(
        cell=folder.id,
        folder=str(folder.path),
        command=asked.command,
        exit_code=code,
        stdout=stdout,
        stderr=stderr,
        usage=Usage(round(time.monotonic() - began, 3)),
        truncated=more or more_too,
    )


async def _kept(reader: StreamReader, most: int) -> tuple[bytes, bool]:
    """A stream's first ``most`` bytes, and whether there were more; it is read to its end."""
    whole, more = bytearray(), False
    async for part in reader:
        more = more or len(whole) + len(part) > most
        whole += part[: most - len(whole)]
    return bytes(whole), more


async def _fed(stdin: StreamWriter, data: bytes, asked: Asked) -> None:
    """Write all of it, to a command that reads it; one that does not read on is none's loss."""
    if asked.stdin:
        with contextlib.suppress(BrokenPipeError):
            await stdin.write(data)
            await stdin.end()


async def _killed(process: Process) -> None:
    """Kill it, and wait until that is reported, but not for a guest that never does."""
    await process.kill()
    with contextlib.suppress(TimeoutError, StateError):
        await asyncio.wait_for(process.wait(), _DIES_WITHIN)
