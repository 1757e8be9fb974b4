"""The unpacking of the outputs, seen from outside: a confined process, fed, bounded and judged.

`wgcell.cell.unpacker`, a process that can write below one folder and do nothing else, parses the
guest's tar. It has an amount of processor time for each MiB that it was given, and a bound on its
memory. It states its result in one word, which is checked strictly, and the folder that it leaves
is inspected (`wgcell.cell.inspection`). So a process that was taken over may lie about the
outputs' contents, as the guest may, and do no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from wgcell import programs
from wgcell.cell.archive import MOST_MEMBERS, Unpacked
from wgcell.cell.confinement import STAGES, Filters
from wgcell.cell.counts import Counted
from wgcell.cell.ending import in_thread
from wgcell.cell.globs import Pattern
from wgcell.cell.inspection import inspect
from wgcell.cell.unpacking_words import (
    LONGEST_WHY,
    STATEMENTS,
    TASKS,
    Confined,
    Failed,
    Link,
    Refused,
    Result,
    Statement,
    Task,
    Unconfined,
)
from wgcell.errors import GuestError, HostError, LaunchError, StateError
from wgcell.processes import die_with_parent
from wgcell.wire.lines import LineError

__all__ = ["Unpacking", "judged", "limit_of_members", "statement_of"]

_BYTES_PER_INODE = 16384
"""mke2fs's: how many files the guest's scratch disk can hold at all."""

SECONDS_AT_FIRST = 20
SECONDS_PER_MIB = 0.5
SECONDS_PER_GLOB = 0.01
"""Processor time: for its start, for each MiB of tar that it was given, and on top of that for each
MiB and each pattern with wildcards, which every member is compared with. A MiB of empty members
takes some 0.15 s."""

_DIES_WITHIN = 10.0
_PIPE = 1 << 20
_MIB = 1 << 20

Take = Callable[[memoryview], None]

# -P: a folder named wgcell where the user happens to stand must never be imported.
_ARGV = (sys.executable, "-P", "-m", "wgcell.cell.unpacker")


def limit_of_members(disk: int) -> int:
    """The most members that a guest with a scratch disk of ``disk`` bytes may send."""
    return min(max(MOST_MEMBERS, disk // _BYTES_PER_INODE), 10 * MOST_MEMBERS)


class Unpacking:
    """One such process: `start` it, then have it all `unpacked`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        tar: int,
        destination: Path,
        task: Task,
        at_first: float,
    ) -> None:
        self._process = process
        self._tar = tar
        self._destination = destination
        self._task = task
        self._at_first = at_first
        self._globs = sum(Pattern.parse(one).is_glob for one in task.asked)
        self._given = 0
        self._budgeted = 0.0
        self.missing: Mapping[str, str] = {}
        """Stages of its confinement that this machine lacks, and why; known with the result."""
        self._afford()

    @classmethod
    async def start(
        cls,
        destination: Path,
        asked: Sequence[str],
        disk: int,
        known_links: frozenset[tuple[str, str]] = frozenset(),
        seconds_at_first: float = SECONDS_AT_FIRST,
    ) -> Unpacking:
        """Start it; ``destination`` is made here if need be (mode 0700).

        ``disk`` are the bytes of the guest's scratch disk, ``seconds_at_first`` the processor time
        that it has before it was given anything. Raises StateError if the folder can't be
        made, LaunchError if the process can't be started, HostError if a line can't hold its task.
        """
        filters, links = Filters.compiled(), tuple(Link(*one) for one in sorted(known_links))
        bounds = disk, limit_of_members(disk)
        task = Task(tuple(asked), *bounds, links, filters.rooted, filters.other)
        try:
            order = TASKS.line(task)
        except LineError as error:
            raise HostError(f"the unpacking can't be given its task: {error}") from None
        with contextlib.ExitStack() as given:
            try:
                destination.mkdir(mode=0o700, exist_ok=True)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                folder = os.open(destination, flags)
            except OSError as error:
                raise StateError(f"can't write {destination}: {error.strerror}") from None
            given.callback(os.close, folder)
            task_fd = os.memfd_create("task")
            given.callback(os.close, task_fd)
            with open(task_fd, "wb", closefd=False) as file:  # a descriptor
                file.write(order)
            os.lseek(task_fd, 0, os.SEEK_SET)
            theirs, ours = os.pipe()
            given.callback(os.close, theirs)
            with contextlib.suppress(OSError):  # beyond the user's sum of them
                fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE)
            argv = (*_ARGV, str(folder), str(task_fd))
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=theirs,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(folder, task_fd),
                    env=programs.environment(*programs.PYTHON, LC_ALL="C.UTF-8"),
                    limit=STATEMENTS.longest,
                    start_new_session=True,
                    preexec_fn=die_with_parent(os.getpid()),
                )
            except BaseException as error:
                os.close(ours)
                if isinstance(error, OSError):
                    raise LaunchError(f"the unpacking: {error.strerror}", argv=argv) from error
                raise
        return cls(process, ours, destination, task, seconds_at_first)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _take(self, piece: memoryview) -> None:
        """Give it the next bytes of the tar; waits until it takes them, or is gone."""
        self._given += len(piece)
        self._afford()
        with contextlib.suppress(BrokenPipeError):  # its own word says why
            while piece:
                piece = piece[os.write(self._tar, piece) :]

    def _afford(self) -> None:
        """Let it have the processor time that is due for what it was given."""
        per_mib = SECONDS_PER_MIB + SECONDS_PER_GLOB * self._globs
        budget = self._at_first + per_mib * self._given / _MIB
        if budget < self._budgeted + self._at_first / 4:
            return
        self._budgeted = budget
        with contextlib.suppress(ProcessLookupError):
            hard = resource.prlimit(self._process.pid, resource.RLIMIT_CPU)[1]
            soft = int(budget) if hard == resource.RLIM_INFINITY else min(int(budget), hard)
            resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (soft, hard))

    async def unpacked(self, carry: Callable[[Take], None], within: float) -> Unpacked:
        """The result for the tar that ``carry``, in a thread, delivers. The process is dead then.

        The folder is inspected. The process has ``within`` seconds after the last byte. Raises
        ``carry``'s errors; StateError if the folder could not be written or the time was over,
        HostError if this machine can't confine the process, GuestError if it broke its bounds or
        lied.
        """
        stated = await self._stated(carry, within)
        await in_thread(partial(inspect, self._destination, self._task.asked, stated))
        return stated

    async def _stated(self, carry: Callable[[Take], None], within: float) -> Unpacked:

        def carried() -> None:
            try:
                carry(self._take)
            finally:
                os.close(self._tar)

        stating = asyncio.ensure_future(self._statement())
        carrying = asyncio.ensure_future(in_thread(carried))
        try:
            await asyncio.wait((stating, carrying), return_when=asyncio.FIRST_COMPLETED)
            if stating.done():
                stating.result()  # if it failed, the rest of the tar is of no use
            await carrying
            async with asyncio.timeout(within):
                return await stating
        except TimeoutError:
            raise StateError(
                f"{self._destination}: the unpacking did not end within {within:g} s"
            ) from None
        finally:
            # The thread may wait for the process to read on: the process's death ends that.
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            carrying.cancel()
            stating.cancel()
            await asyncio.wait((stating, carrying), timeout=_DIES_WITHIN)
            for task in (stating, carrying):
                if task.done() and not task.cancelled():
                    task.exception()  # raised above, or of no interest any more
            async with asyncio.timeout(_DIES_WITHIN):
                await self._process.wait()

    async def _statement(self) -> Unpacked:
        """The process's two lines, once it has ended, as a result."""
        try:
            lines = [await self._line(), await self._line()]
        except ValueError:
            raise GuestError("the unpacking said more than it has to say") from None
        stderr = await self._process.stderr.read(4096) if self._process.stderr else b""
        code = await self._process.wait()
        if code in _KILLED:
            raise GuestError(_KILLED[code])
        first, last = (statement_of(line) for line in lines)
        match first, last:
            case Unconfined(why), _:
                raise HostError(_text(why))
            case _, Failed(why):
                raise StateError(f"can't write {self._destination}: {_text(why)}")
            case Confined(missing), Result() if not code and set(missing) <= set(STAGES):
                self.missing = {stage: _text(why) for stage, why in missing.items()}
                return judged(last, self._task)
        raise GuestError(_broken_off(code, stderr))

    async def _line(self) -> bytes:
        return await self._process.stdout.readline() if self._process.stdout else b""


_KILLED: Mapping[int, str] = MappingProxyType(
    {
        -signal.SIGXCPU: "the outputs take more processor time than a tar of their size may",
        -signal.SIGSYS: "the unpacking tried what no unpacking does",
    }
)
"""The meaning of the signals by which the process's own bounds end it."""


def _broken_off(code: int, stderr: bytes) -> str:
    words = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"the unpacking broke off ({how}) {_text(''.join(words))}".strip()


def statement_of(line: bytes) -> Statement | None:
    """The statement that ``line`` is; None for one without an end: the process broke off in it.

    Raises GuestError for a whole line that is none.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        return STATEMENTS.word(line)
    except LineError as error:
        raise GuestError(f"the unpacking said what can't be: {_text(error)}") from None


def _text(value: object, most: int = LONGEST_WHY) -> str:
    return "".join(one for one in str(value)[:most] if one.isprintable())


def judged(result: Result, task: Task) -> Unpacked:
    """``result`` as that of ``task``. Pure. Raises GuestError if it can't be."""
    members = task.limit_members
    # The folders above an output have no member of their own.
    bounds = {"files": members, "folders": 256 * members, "links": members}
    for name, most in {**bounds, "bytes": task.limit_bytes}.items():
        _check(getattr(result, name) <= most, name)
    places = result.missing
    _check(places == tuple(sorted(set(places))), "missing")
    _check(all(place < len(task.asked) for place in places), "missing")
    _check(result.stopped.isprintable(), "stopped")
    names = (str(Pattern.parse(task.asked[place])) for place in places)
    return Unpacked(
        files=result.files,
        folders=result.folders,
        links=result.links,
        bytes=result.bytes,
        refusals=_counted(result.refusals, members),
        left_out=_counted(result.left_out, members),
        missing=tuple(dict.fromkeys(names)),
        stopped=result.stopped,
    )


def _check(holds: bool, name: str) -> None:
    if not holds:
        raise GuestError(f"the unpacking said what can't be: {name}")


def _counted(refused: Sequence[Refused], most: int) -> tuple[Counted, ...]:
    for one in refused:
        _check(one.count <= most, one.reason)
        _check(all(example.isprintable() for example in one.examples), "an example")
    return tuple(Counted(one.reason, one.count, one.examples) for one in refused)
