"""A session of a cell's at this process's standard streams: `wgcell exec` and `wgcell attach`.

One loop waits for all of it: the connection, what is typed or piped in, a terminal or a pipe that
takes more, and signals. Nothing is read that the session has no room for, and no credit is given
for what has not gone out; so a slow reader slows its own session, and nothing else.

SIGINT and SIGTERM go to the session's processes; the second of them leaves. SIGHUP and SIGQUIT
leave at once. Leaving closes the connection.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wgcell.cell.control.session import Connection
from wgcell.cli.keys import DetachKeys
from wgcell.cli.raw import MOST_SIDE, RawTerminal, size
from wgcell.guest.frames import Data, Exit, Terminal

__all__ = ["Left", "Output", "converse"]

_PIECE = 1 << 15
_AT_ONCE = select.PIPE_BUF
"""Bytes that a pipe takes without blocking, if it takes any (pipe(7))."""
_REDRAWN_AFTER = 0.1
"""Seconds until a program is taken to have seen another size of its terminal."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM)
_LEAVE = (signal.SIGHUP, signal.SIGQUIT)
_OF_A_TERMINAL = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


class Left(Exception):
    """The session was left while it ran."""

    def __init__(self, number: int = 0) -> None:
        """``number`` is the signal's; 0: the keys were typed."""
        super().__init__(number)
        self.number = number


@dataclass(slots=True)
class Output:
    """Where one stream goes. ``shown`` makes of its bytes what is written."""

    fd: int
    shown: Callable[[bytes], bytes] = bytes
    waiting: deque[tuple[memoryview, int]] = field(default_factory=deque)
    """What is to be written, and for how many bytes there is credit then."""
    at_once: int = _AT_ONCE

    def __post_init__(self) -> None:
        if stat.S_ISREG(os.fstat(self.fd).st_mode):
            self.at_once = _PIECE

    def take(self, data: bytes) -> None:
        """More of the stream."""
        self.waiting.append((memoryview(self.shown(data)), len(data)))

    def write(self) -> int:
        """Write some; for how many bytes of the stream there is credit now. Raises OSError."""
        view, owed = self.waiting.popleft()
        try:
            rest = view[os.write(self.fd, view[: self.at_once]) :] if view else view
        except BlockingIOError:  # somebody else made this open file non-blocking
            rest = view
        if rest:
            self.waiting.appendleft((rest, owed))
            return 0
        return owed


class _Signals:
    """Those that come, in their order, and a socket that can be read when one has."""

    def __init__(self) -> None:
        self.came, self._told = socket.socketpair()
        for end in (self.came, self._told):
            end.setblocking(False)

    @contextmanager
    def heard(self, *numbers: signal.Signals) -> Iterator[None]:
        """Hear these. One that was ignored before stays so."""
        before = {number: signal.getsignal(number) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, lambda number, frame: None)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            self.came.close()
            self._told.close()

    def numbers(self) -> bytes:
        """Those that have come since."""
        try:
            return self.came.recv(256)
        except BlockingIOError:
            return b""


@dataclass(slots=True)
class _Conversation:
    connection: Connection
    stdin: int | None
    outputs: dict[int, Output]
    terminal: RawTerminal | None
    keys: DetachKeys
    signals: _Signals = field(default_factory=_Signals)
    code: int | None = None
    passed_on: bool = False
    redraw_at: float | None = None
    """When the terminal gets its own size back: the program saw another, and draws itself anew."""

    def live(self) -> int:
        """To the session's end, and until all it printed is written; its exit code."""
        self.hear_cell()
        self.resize()
        while self.code is None or any(one.waiting for one in self.outputs.values()):
            ready = self.wait()
            if self.redraw_at is not None and time.monotonic() >= self.redraw_at:
                self.redraw_at = None
                self.resize()
            if self.signals.came.fileno() in ready:
                for number in self.signals.numbers():
                    self.signal(number)
            for stream, output in self.outputs.items():
                if output.waiting and output.fd in ready:
                    self.write(stream, output)
            if self.connection.fileno() in ready and self.code is None:
                self.connection.flush()
                self.hear_cell()
            if self.stdin in ready and self.reads():
                self.read()
        return self.code

    def wait(self) -> set[int]:
        """Wait until something can go on; the descriptors that can."""
        poll = select.poll()
        poll.register(self.signals.came, select.POLLIN)
        if self.code is None:
            wanted = select.POLLOUT if self.connection.wants_to_write else 0
            poll.register(self.connection, select.POLLIN | wanted)
        if self.reads() and self.stdin is not None:
            poll.register(self.stdin, select.POLLIN)
        writing = {one.fd for one in self.outputs.values() if one.waiting}
        for fd in writing:
            poll.register(fd, select.POLLOUT)
        left = None if self.redraw_at is None else max(0.0, self.redraw_at - time.monotonic())
        return {fd for fd, _ in poll.poll(None if left is None else 1000 * left + 1)}

    def reads(self) -> bool:
        """Whether more of standard input is wanted now."""
        return self.stdin is not None and self.code is None and self.connection.room > 0

    def hear_cell(self) -> None:
        for frame in self.connection.receive():
            match frame:
                case Data(_, stream, data):
                    self.outputs[stream].take(data)
                case Exit(_, code):
                    self.code = code

    def write(self, stream: int, output: Output) -> None:
        if (owed := output.write()) and self.code is None:
            self.connection.credit(stream, owed)

    def read(self) -> None:
        try:
            data = os.read(self.stdin or 0, min(_PIECE, self.connection.room))
        except BlockingIOError:
            return  # another reader was quicker
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # the terminal has hung up
        if not data:
            self.connection.write(b"")
            self.stdin = None
            return
        if typed := self.keys.feed(data):
            self.connection.write(typed)
        if self.keys.came:
            raise Left

    def signal(self, number: int) -> None:
        match number:
            case signal.SIGWINCH | signal.SIGCONT:
                if number == signal.SIGCONT and self.terminal is not None:
                    self.terminal.enter()
                self.resize()
            case signal.SIGTSTP:
                self.suspend()
            case _ if number in _PASSED_ON and not self.passed_on:
                self.passed_on = True
                self.connection.signal(number)
            case _:
                raise Left(number)

    def resize(self) -> None:
        if self.terminal is not None and self.code is None:
            now = size(1, 0)
            if self.redraw_at is not None:
                now = Terminal(min(now.rows + 1, MOST_SIDE), now.columns)
            self.connection.resize(now)

    def suspend(self) -> None:
        """Stop, as a shell's user asked; the terminal is the shell's meanwhile."""
        if self.terminal is not None:
            self.terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)


def converse(
    connection: Connection,
    *,
    stdin: int | None,
    outputs: dict[int, Output],
    terminal: RawTerminal | None = None,
    keys: bytes = b"",
    redraw: bool = False,
) -> int:
    """Let the session have standard input, if ``stdin`` names it, and write what it prints.

    ``terminal``: it is made raw, and its sizes are passed on; ``redraw``: another size comes first,
    at which a program draws itself anew. ``keys`` leave. Returns the exit code.

    Raises Left; Lost if the connection breaks off; OSError for an output that can't be written.
    """
    one = _Conversation(connection, stdin, outputs, terminal, DetachKeys(keys))
    heard = (*_PASSED_ON, *_LEAVE, *(_OF_A_TERMINAL if terminal is not None else ()))
    with one.signals.heard(*heard):
        if terminal is None:
            return one.live()
        with terminal:
            one.redraw_at = time.monotonic() + _REDRAWN_AFTER if redraw else None
            return one.live()
