"""A session of a cell's, for a program that waits by itself: no event loop, and quick to load.

`Connection` holds one session. Its socket never blocks: whoever uses it waits until it can be read,
or written while `wants_to_write`, and then calls `receive` or `flush`. What came of a stream must
be given credit for (`credit`) once it has gone on, or no more of it comes.
"""

from __future__ import annotations

import select
import time
from types import TracebackType

from wgcell.cell.control import words
from wgcell.cell.control.client import PATIENCE, Unreachable, begin
from wgcell.cell.folder import Folder
from wgcell.errors import GuestError, StateError
from wgcell.guest.channel import Channel
from wgcell.guest.frames import (
    MOST_DATA,
    STDIN,
    Credit,
    Data,
    End,
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

__all__ = ["BEGUN_WITHIN", "Connection", "Lost"]

BEGUN_WITHIN = 60.0
"""Seconds that a guest has to begin a session: under emulation, with all its processors busy."""
_PIECE = 1 << 18
_MOST_WAITING = 1 << 16
"""Bytes that wait here to be sent while the cell takes none; then no more is written."""
SESSION = 1


class Lost(StateError):
    """The connection is gone: the cell has ended, or died."""


class Connection:
    """One session, begun. A context manager: at its end the connection closes, which hangs up."""

    def __init__(self, folder: Folder, subject: Subject, *, detached: bool = False) -> None:
        """Begin a session and wait until it runs. Raises StateError, with why, if it can't."""
        self.folder = folder
        self._channel = Channel(opener=True)
        self._waiting = bytearray()
        self._early: list[Frame] = []
        try:
            self._sock = begin(folder, words.Sessions(detached), PATIENCE)
        except Unreachable as error:
            raise Lost(f"{folder.id}: the cell can't be reached: {error}") from None
        try:
            self._sock.setblocking(False)
            self._begin(subject)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def fileno(self) -> int:
        """The socket, to wait for."""
        return self._sock.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits to be sent: `flush` when the socket takes it."""
        return bool(self._waiting)

    @property
    def room(self) -> int:
        """Bytes that may be written to the standard input now."""
        if len(self._waiting) >= _MOST_WAITING:
            return 0
        return min(MOST_DATA, self._channel.room(SESSION, STDIN))

    def write(self, data: bytes) -> None:
        """Standard input, at most `room` bytes; none is its end. Nothing if the session is over."""
        self._send(Data(SESSION, STDIN, data) if data else End(SESSION, STDIN))

    def credit(self, stream: int, amount: int) -> None:
        """So many bytes of a stream have gone on."""
        self._send(Credit(SESSION, stream, amount))

    def resize(self, terminal: Terminal) -> None:
        """The terminal has another size."""
        self._send(Size(SESSION, terminal))

    def signal(self, number: int) -> None:
        """Send the session's process group a signal."""
        self._send(Signal(SESSION, number))

    def hang_up(self) -> None:
        """Nobody is there any more."""
        self._send(Hangup(SESSION))

    def receive(self) -> list[Frame]:
        """What the cell says, as far as it came. Raises Lost at the connection's end."""
        if self._early:
            early, self._early = self._early, []
            return early
        try:
            data = self._sock.recv(_PIECE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from None
        if not data:
            raise self._lost("it has ended")
        try:
            return self._channel.receive(data)
        except GuestError as error:
            raise self._lost(error.message) from None

    def flush(self) -> None:
        """Send what the socket takes. If nobody reads it any more, `receive` has the rest."""
        try:
            while self._waiting:
                del self._waiting[: self._sock.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()

    def _send(self, frame: Frame) -> None:
        if self._channel.is_open(SESSION):
            self._waiting += self._channel.send(frame)
            self.flush()

    def _begin(self, subject: Subject) -> None:
        try:
            self._waiting += self._channel.send(Open(SESSION, subject))
        except ValueError as error:
            raise StateError(f"no session can be begun like that: {error}") from None
        until = time.monotonic() + BEGUN_WITHIN
        while not self._early:
            self.flush()
            writing = (self,) if self._waiting else ()
            ready = select.select((self,), writing, (), max(0.0, until - time.monotonic()))
            if not any(ready):
                raise StateError(
                    f"{self.folder.id}: the session did not begin within {BEGUN_WITHIN:g} s"
                )
            self._early = self.receive()
        first = self._early.pop(0)
        if isinstance(first, SessionRefused):
            raise StateError(f"{self.folder.id}: {first.text}")
        if not isinstance(first, Opened):  # the channel lets nothing else come first
            raise self._lost("this is no session")

    def _lost(self, why: str) -> Lost:
        return Lost(f"{self.folder.id}: the connection to the cell is gone: {why}")
