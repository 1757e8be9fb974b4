"""One session: a program besides the workload, and its streams to and from the host."""

from __future__ import annotations

import os
import select

from wgcell.guest.agent import streams, terminals
from wgcell.guest.agent.loop import READABLE
from wgcell.guest.agent.process import Process
from wgcell.guest.channel import WINDOW
from wgcell.guest.frames import MOST_DATA, STDERR, STDIN, STDOUT, Credit, Data, End, Exit, Opened

__all__ = ["KILLED", "Granted", "Session"]

_SIGHUP, _SIGCONT, _SIGKILL = 1, 18, 9
_HUNG_UP = 128 + _SIGHUP
KILLED = 128 + _SIGKILL
_MOST_HELD = 1 << 20
"""Bytes that a pipe may hold (fs.pipe-max-size; for more the workload lacks a capability)."""
_GRANT = WINDOW // 4
"""Bytes of credit that are granted at once."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.line import Line
    from wgcell.guest.agent.loop import Loop
    from wgcell.guest.agent.wires import Wires
    from wgcell.guest.frames import Terminal


class Granted:
    """Credit for a session's standard input, as it is taken."""

    def __init__(self, line: Line, session: int) -> None:
        self._line, self._session = line, session
        self._owed = 0

    def taken(self, size: int) -> None:
        """So many bytes more have gone in."""
        self._owed += size
        if self._owed >= _GRANT:
            self._line.send(Credit(self._session, STDIN, self._owed))
            self._owed = 0


class _Source:
    """One stream of the program's, on its way to the host as far as credit and the port allow.

    ``closed`` is called once, when no more of it will be sent. A terminal's master stays open: its
    program may have closed the terminal, and is not hung up for that.
    """

    def __init__(
        self,
        loop: Loop,
        line: Line,
        stream: tuple[int, int],
        source: int,
        closed: Callable[[], None],
        is_terminal: bool,
    ) -> None:
        self.is_closed = False
        self._is_terminal = is_terminal
        self._loop, self._line, self._source, self._closed = loop, line, source, closed
        self._session, self._stream = stream
        self._left: int | None = None
        """Bytes that may still come, once the program has ended."""
        self._watched = False
        os.set_blocking(source, False)
        self._watch()

    def go_on(self) -> None:
        """There is credit again, or the port takes more."""
        if self.is_closed:
            return
        if self._left is None:
            self._watch()
        else:
            self._drain()

    def drain(self) -> None:
        """The program has ended: send what is there. Others may have the stream open, and write
        on: they are not waited for.
        """
        if not self.is_closed:
            self._pause()
            self._left = _MOST_HELD
            self._drain()

    def close(self) -> None:
        """Send no more. A program that writes to a pipe is ended by SIGPIPE then."""
        if not self.is_closed:
            self._pause()
            self.is_closed = True
            if not self._is_terminal:
                os.close(self._source)
            self._closed()

    def _read(self) -> None:
        self._step()

    def _drain(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Send a frame of it; whether another may follow at once."""
        room = self._line.channel.room(self._session, self._stream)
        if self._line.is_full:
            self._pause()
            self._line.when_free(self._source, self.go_on)
            return False
        if not room:
            self._pause()
            if self._left is not None and not _holds_any(self._source):
                self.close()
            return False
        most = min(room, MOST_DATA) if self._left is None else min(room, MOST_DATA, self._left)
        data = streams.read(self._source, most) if most else None
        if data:
            self._line.send(Data(self._session, self._stream, data))
            if self._left is not None:
                self._left -= len(data)
            return True
        if data is not None:
            self._line.send(End(self._session, self._stream))
        if data is not None or self._left is not None:
            self.close()
        return False

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._loop.watch(self._source, READABLE, self._read)

    def _pause(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.forget(self._source)


def _holds_any(source: int) -> bool:
    """Whether there is something to be read at once."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


class Session:
    """A program that runs. ``over`` is called once, when the session is; its process may live on
    if it was hung up.
    """

    def __init__(
        self, loop: Loop, line: Line, number: int, pid: int, wires: Wires, over: Callable[[], None]
    ) -> None:
        self._line, self._number, self._over = line, number, over
        self._code: int | None = None
        self._is_over = False
        self._terminal = wires.stdout if wires.is_terminal else None
        self._process = Process(loop, pid, self._exited)
        line.send(Opened(number))
        self._feed = wires.feed(loop, Granted(line, number).taken)
        self._sources = {
            stream: _Source(loop, line, (number, stream), source, self._look, wires.is_terminal)
            for stream, source in ((STDOUT, wires.stdout), (STDERR, wires.stderr))
            if source is not None
        }

    def give(self, data: bytes) -> None:
        """Standard input. Dropped, and no credit given for it, where the program has none."""
        if self._feed is not None:
            self._feed.give(data)

    def end_input(self) -> None:
        """No more of it."""
        if self._feed is not None:
            self._feed.end()

    def go_on(self, stream: int) -> None:
        """The host has given credit for a stream."""
        if stream in self._sources:
            self._sources[stream].go_on()

    def resize(self, size: Terminal) -> None:
        """Its terminal, if it has one, has another size."""
        if self._terminal is not None:
            terminals.resize(self._terminal, size)

    def signal(self, number: int) -> None:
        """To the program's process group."""
        self._process.signal(number)

    def kill(self) -> None:
        """End the program's process group at once."""
        self._process.signal(_SIGKILL)

    def hang_up(self) -> None:
        """Nobody is there any more: SIGHUP, and the session is over, whatever the program does."""
        self._process.signal(_SIGHUP)
        self._process.signal(_SIGCONT)  # as Linux has it for a terminal's: a stopped one hears it
        self.cut(_HUNG_UP)

    def cut(self, code: int) -> None:
        """The session is over; what was not sent is dropped. ``code``: if it has none yet."""
        if self._code is None:
            self._code = code
        for source in self._sources.values():
            source.close()
        self._look()

    def _exited(self, code: int) -> None:
        if self._is_over:
            return  # it was hung up, and has gone at last
        self._code = code
        for source in self._sources.values():
            source.drain()
        self._look()

    def _look(self) -> None:
        """Whether the session is over: the program has ended, and all it left was sent."""
        done = self._code is not None and all(one.is_closed for one in self._sources.values())
        if done and not self._is_over and self._code is not None:
            self._is_over = True
            if self._feed is not None:
                self._feed.close()
            if self._terminal is not None:
                os.close(self._terminal)
            self._line.send(Exit(self._number, self._code))
            self._over()
