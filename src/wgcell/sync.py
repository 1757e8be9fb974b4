"""Cells for a program without an event loop: `wgcell.Cell` and all it gives, blocking.

::

    with wgcell.sync.Cell(allow=["packages.example.com:443"]) as cell:
        cell.files.write("a.py", b"print(6 * 7)")
        assert cell.exec("python3", "a.py").stdout == b"42\\n"

Each name here is the same name of the asynchronous classes, which do the work, in an event loop
that runs in a thread as long as a cell is used (anyio's blocking portal). A cell may be used from
several threads.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from wgcell.cell.control.session_client import StreamReader as AsyncReader
from wgcell.cell.control.session_client import StreamWriter as AsyncWriter
from wgcell.client import cell as asynchronous
from wgcell.client.commands import MOST_OUTPUT
from wgcell.client.commands import Process as AsyncProcess
from wgcell.client.completed import Completed, Refusal, checked
from wgcell.client.files import MOST_READ, Entry
from wgcell.client.files import Files as AsyncFiles
from wgcell.client.record import Event
from wgcell.client.rules import Change, Rule
from wgcell.client.settings import CellSettings, StrPath
from wgcell.errors import StateError

__all__ = ["Cell", "Files", "Process", "StreamReader", "StreamWriter", "connect", "run"]

T = TypeVar("T")


class _Loop:
    """The event loop of all cells that are used here, in a thread, while there is one in use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases = 0
        self._portal: BlockingPortal | None = None
        self._running = contextlib.ExitStack()

    def acquire(self) -> BlockingPortal:
        """The way into the loop, which runs until each that has acquired it has let it go."""
        with self._lock:
            if self._portal is None:
                self._portal = self._running.enter_context(start_blocking_portal())
            self._leases += 1
            return self._portal

    def release(self) -> None:
        """Let it go."""
        with self._lock:
            self._leases -= 1
            if not self._leases:
                self._end()

    def end(self) -> None:
        """End it, whoever uses it: the program does. Its thread would be waited for without end
        once the interpreter is taken apart."""
        with self._lock:
            if self._portal is not None:
                self._portal.call(self._portal.stop, True)
                self._end()

    def _end(self) -> None:
        self._portal, self._leases = None, 0
        self._running.close()


_LOOP = _Loop()
atexit.register(_LOOP.end)


class _Lease:
    """The event loop, from the first use of a cell to its last."""

    def __init__(self) -> None:
        self._portal: BlockingPortal | None = None

    def call(self, work: Callable[..., Awaitable[T]], *words: Any, **named: Any) -> T:
        """What ``work`` returns; interrupted (Ctrl-C), it is cancelled."""
        if self._portal is None:
            self._portal = _LOOP.acquire()

        async def done() -> T:
            return await work(*words, **named)

        future = self._portal.start_task_soon(done)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def end(self) -> None:
        """Let the loop go; it may be used again."""
        if self._portal is not None:
            self._portal = None
            _LOOP.release()


class StreamReader:
    """What a command prints to one stream."""

    def __init__(self, lease: _Lease, reader: AsyncReader) -> None:
        self._lease, self._reader = lease, reader

    def read(self, most: int = -1) -> bytes:
        """The next bytes, at most ``most`` unless it is negative; none at the stream's end."""
        return self._lease.call(self._reader.read, most)

    def read_all(self, most: int | None = None) -> bytes:
        """All that comes until the stream's end; of more than ``most`` bytes the first ones."""
        return self._lease.call(self._reader.read_all, most)

    def __iter__(self) -> Iterator[bytes]:
        while part := self.read():
            yield part


class StreamWriter:
    """A command's standard input."""

    def __init__(self, lease: _Lease, writer: AsyncWriter) -> None:
        self._lease, self._writer = lease, writer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it, as the command reads. Raises BrokenPipeError if nobody reads it any
        more."""
        self._lease.call(self._writer.write, data)

    def end(self) -> None:
        """The standard input ends here; more than once does no harm."""
        self._lease.call(self._writer.end)


class Process:
    """A command that runs in a cell. Use it with ``with``: what still runs at the end gets SIGHUP,
    as from a terminal that closes."""

    def __init__(self, lease: _Lease, process: AsyncProcess) -> None:
        self._lease, self._process = lease, process

    def __enter__(self) -> Process:
        """Start it. Raises StateError with why it can't: the cell is paused, ending, or full."""
        self._lease.call(self._process.__aenter__)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lease.call(self._process.__aexit__, kind, error, trace)

    @property
    def stdin(self) -> StreamWriter:
        """Its standard input: `write`, and `end` where it ends."""
        return StreamWriter(self._lease, self._process.stdin)

    @property
    def stdout(self) -> StreamReader:
        """What it prints; with a terminal, all of it. ``for`` gives the pieces."""
        return StreamReader(self._lease, self._process.stdout)

    @property
    def stderr(self) -> StreamReader:
        """Likewise; of a command with a terminal it is empty."""
        return StreamReader(self._lease, self._process.stderr)

    def wait(self) -> int:
        """Its exit code, once it has ended: 0 to 255; 128 and the signal's number if it was killed.

        Raises StateError if the cell ends before.
        """
        return self._lease.call(self._process.wait)

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size, 0 to 65535 each."""
        self._lease.call(self._process.resize, rows, columns)

    def signal(self, number: int) -> None:
        """Send its process group a signal, 1 to 64."""
        self._lease.call(self._process.signal, number)

    def kill(self) -> None:
        """Send its process group SIGKILL."""
        self._lease.call(self._process.kill)


class Files:
    """The files of one cell, with its workload's rights. Relative paths begin at /work."""

    def __init__(self, lease: _Lease, files: AsyncFiles) -> None:
        self._lease, self._files = lease, files

    def read(self, path: str, *, most: int = MOST_READ) -> bytes:
        """A file's content, up to ``most`` bytes: see `wgcell.client.files.Files.read`."""
        return self._lease.call(self._files.read, path, most=most)

    def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Make or replace a file: see `wgcell.client.files.Files.write`."""
        self._lease.call(self._files.write, path, data, mode=mode)

    def list(self, path: str = ".") -> tuple[Entry, ...]:
        """What stands in a folder: see `wgcell.client.files.Files.list`."""
        return self._lease.call(self._files.list, path)


class Cell:
    """One cell. A context manager: the cell is started at its beginning and ended at its end.

    Every method is that of `wgcell.Cell`, which says more.
    """

    def __init__(
        self,
        *command: str,
        detach: bool = False,
        remove: bool = False,
        stdin: bool = False,
        tty: bool | tuple[int, int] = False,
        remark: Callable[[str], None] = lambda sentence: None,
        **settings: Unpack[CellSettings],
    ) -> None:
        """A cell that runs ``command``; without one, a cell that waits for `exec` and `spawn`."""
        more = {"detach": detach, "remove": remove, "stdin": stdin}
        self._hold(asynchronous.Cell(*command, tty=tty, remark=remark, **more, **settings))

    def _hold(self, cell: asynchronous.Cell) -> None:
        self._cell = cell
        self._lease = _Lease()
        self.files = Files(self._lease, cell.files)
        """Its files: `read`, `write`, `list`."""

    @classmethod
    def _of(cls, cell: asynchronous.Cell) -> Cell:
        held = cls.__new__(cls)
        held._hold(cell)
        return held

    def start(self) -> None:
        """Start the cell, and wait until its tunnel is verified."""
        self._lease.call(self._cell.start)

    def __enter__(self) -> Cell:
        try:
            self._lease.call(self._cell.__aenter__)
        except BaseException:
            self._lease.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the cell go: one that was started here, and not detached, ends in order."""
        try:
            self._lease.call(self._cell.close)
        finally:
            self._lease.end()

    def detach(self) -> None:
        """Let the cell live on when the context, or this program, ends."""
        self._cell.detach()

    def stop(self, *, now: bool = False) -> None:
        """End the cell, and wait until it has ended; ``now``: at once, without its outputs."""
        self._lease.call(self._cell.stop, now=now)

    def wait(self) -> Completed:
        """Wait until the cell has ended; what its own command has come to."""
        return self._lease.call(self._cell.wait)

    def exec(
        self,
        *command: str,
        input: bytes | str = b"",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        check: bool = False,
        most: int = MOST_OUTPUT,
    ) -> Completed:
        """Run a command in the cell, to its end."""
        return self._lease.call(
            self._cell.exec,
            *command,
            input=input,
            timeout=timeout,
            env=env,
            workdir=workdir,
            user=user,
            check=check,
            most=most,
        )

    def spawn(
        self,
        *command: str,
        tty: bool | tuple[int, int] = False,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
    ) -> Process:
        """A command to write to and read from while it runs; started by ``with``."""
        process = self._cell.spawn(*command, tty=tty, env=env, workdir=workdir, user=user)
        return Process(self._lease, process)

    def attach(self, *, stdin: bool = False) -> Process:
        """The cell's own command, from now on: what it prints and, with ``stdin``, its input."""
        return Process(self._lease, self._cell.attach(stdin=stdin))

    @property
    def id(self) -> str:
        """What ``wgcell ps`` calls it."""
        return self._cell.id

    @property
    def folder(self) -> Path:
        """Where its records are: ``events.jsonl``, ``result.json``, the logs of its command."""
        return self._cell.folder

    def state(self) -> str:
        """In a word: ``running``, ``paused``, ``stopping``; the outcome of one that has ended."""
        return self._lease.call(self._cell.state)

    def pause(self) -> None:
        """Let the machine stand still. Raises StateError with why it can't."""
        self._lease.call(self._cell.pause)

    def unpause(self) -> None:
        """Let the machine go on. Raises StateError with why it can't."""
        self._lease.call(self._cell.unpause)

    def events(self, since: int = 0, *, follow: bool = True) -> Iterator[Event]:
        """The events from the sequence number ``since`` on; with ``follow`` until the cell ends."""
        events = self._cell.events(since, follow=follow)
        try:
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    yield self._lease.call(events.__anext__)
        finally:
            self._lease.call(events.aclose)

    def allow(self, rule: str, *, seconds: float | None = None, typed: bool = True) -> Change:
        """`wgcell.Cell.allow`."""
        return self._lease.call(self._cell.allow, rule, seconds=seconds, typed=typed)

    def deny(self, rule: str) -> Change:
        """`wgcell.Cell.deny`."""
        return self._lease.call(self._cell.deny, rule)

    def policy(self) -> tuple[Rule, ...]:
        """`wgcell.Cell.policy`."""
        return self._lease.call(self._cell.policy)

    def refusals(self, since: float = 0.0) -> tuple[Refusal, ...]:
        """What its gateway has refused since then (seconds since the epoch), each kind once."""
        return self._lease.call(self._cell.refusals, since)


def connect(cell: str, *, state_dir: StrPath | None = None) -> Cell:
    """A cell that runs, or has run: by its id, its name, or how its id begins.

    Raises StateError if there is none, and if there are several, which it lists. Use it with
    ``with``, or `Cell.close` it: the cell goes on.
    """
    return Cell._of(asynchronous.connect(cell, state_dir=state_dir))


def run(
    *command: str,
    input: bytes | str = b"",
    check: bool = False,
    remove: bool = False,
    remark: Callable[[str], None] = lambda sentence: None,
    **settings: Unpack[CellSettings],
) -> Completed:
    """Run a command in a cell of its own, to its end; blocks.

    ``input`` is its standard input. ``check``: an exit code other than 0 raises CommandFailed, or
    Refused if the cell's gateway has refused something. ``remove``: its folder is deleted at the
    end. ``settings`` are those of `CellSettings`.

    Raises as `Cell.start` and `Cell.wait`: NeverRan and Unverified are safe to try again.
    """
    data = input.encode() if isinstance(input, str) else input
    with Cell(*command, stdin=bool(data), remove=remove, remark=remark, **settings) as cell:
        if data:
            _give(cell, data)
        done = cell.wait()
        return checked(done, cell.refusals()) if check and done.exit_code else done


def _give(cell: Cell, data: bytes) -> None:
    """All of it to the cell's own command; one that does not read on, or has ended, is no error."""
    with contextlib.suppress(BrokenPipeError, StateError), cell.attach(stdin=True) as process:
        process.stdin.write(data)
        process.stdin.end()
