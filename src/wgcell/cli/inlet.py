"""Standard input for the workload of a cell that this process supervises.

A thread reads, for the supervisor's loop must not block, and it reads no more than the workload has
room for. With a terminal, the terminal is the workload's, raw, from its start to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import stat
import threading
from collections.abc import Callable

from wgcell import api
from wgcell.cli.raw import RawTerminal, size
from wgcell.cli.terminal import is_raw
from wgcell.guest.channel import WINDOW

__all__ = ["Inlet", "passes_stdin"]

_PIECE = 1 << 15
_NULL = os.makedev(1, 3)
"""/dev/null (null(4))."""


def passes_stdin(asked: bool | None, *, tty: bool, detach: bool, fd: int = 0) -> bool:
    """Whether standard input goes to the workload, if ``asked`` is what -i or --no-stdin says.

    By itself it does if it is a file, a pipe or a socket: whoever pipes something in means it.
    """
    if asked is not None:
        return asked
    if tty or detach:
        return False
    status = os.fstat(fd)
    is_null = stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL
    return not (is_null or os.isatty(fd))


class Inlet:
    """Standard input of a running cell's workload; ``terminal`` is made raw meanwhile.

    `start` and `stop` are called in the cell's loop.
    """

    def __init__(self, cell: api.Cell, terminal: RawTerminal | None, fd: int = 0) -> None:
        self._cell = cell
        self._fd = fd
        self._terminal = terminal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._room = WINDOW
        self._stopped = False
        self._wakes, self._wake = os.pipe()

    def start(self) -> None:
        """Begin: the workload runs."""
        self._loop = asyncio.get_running_loop()
        if self._terminal is not None:
            self._enter()
            for number, act in self._handlers():
                self._loop.add_signal_handler(number, act)
        if not self._cell.hold_stdin(self._credited):
            threading.Thread(target=self._carry, name="stdin", daemon=True).start()

    def stop(self) -> None:
        """Read nothing more; the terminal is what it was before. Again does no harm."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            self._changed.notify()
        os.write(self._wake, b"x")
        if self._terminal is not None:
            self._leave()
            for number, _ in self._handlers():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    if self._loop is not None:
                        self._loop.remove_signal_handler(number)

    def _handlers(self) -> tuple[tuple[signal.Signals, Callable[[], None]], ...]:
        return (
            (signal.SIGWINCH, self._resize),
            (signal.SIGTSTP, self._suspend),
            (signal.SIGCONT, self._enter),
        )

    def _enter(self) -> None:
        if self._terminal is not None and not self._stopped:
            self._terminal.enter()
            is_raw(on=True)
            self._resize()

    def _leave(self) -> None:
        if self._terminal is not None:
            is_raw(on=False)
            self._terminal.restore()

    def _resize(self) -> None:
        self._cell.resize(size(1, 0))

    def _suspend(self) -> None:
        """Stop, as a shell's user asked; the terminal is the shell's meanwhile."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _credited(self, amount: int) -> None:
        with self._changed:
            self._room += amount
            self._changed.notify()

    def _carry(self) -> None:
        """Read as there is room, until the end or `stop`."""
        poll = select.poll()
        for fd in (self._fd, self._wakes):
            poll.register(fd, select.POLLIN)
        while room := self._roomy():
            if self._wakes in (fd for fd, _ in poll.poll()):
                return
            try:
                data = os.read(self._fd, min(room, _PIECE))
            except BlockingIOError:
                continue  # another reader was quicker
            except OSError:
                data = b""  # a terminal that has hung up
            with self._changed:
                self._room -= len(data)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._write, data)
            if not data:
                return

    def _roomy(self) -> int:
        """Wait for room; how much there is, 0 if nothing more is to be read."""
        with self._changed:
            self._changed.wait_for(lambda: self._room or self._stopped)
            return 0 if self._stopped else self._room

    def _write(self, data: bytes) -> None:
        self._cell.write_stdin(self._credited, data)
