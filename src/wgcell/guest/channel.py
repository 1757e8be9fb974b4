"""Sessions over one pair of byte streams: bytes in, frames out, as h11 has it; no I/O.

One end, the *opener*, begins sessions, writes their standard input and reads what they print. The
other, the *server*, runs them. The host is the opener towards the guest; a client of a cell is the
opener towards the cell's supervisor, which passes frames on. So the same rules hold three times.

::

    opener                              server
    Open ----------------------------->
          <-------------------------- Opened | SessionRefused (over)
    Data stdin, End stdin, Size, Signal ->
          <------- Data stdout or stderr, End
    Credit <--------------------------> Credit
    Hangup --------------------------->
          <---------------------------- Exit (over)

A stream begins with a credit of `WINDOW` bytes, and each `Credit` says that its reader has room for
more. So an end never holds more than `WINDOW` bytes of a stream, and a reader that stops holds up
nobody else.

Session 0 is the workload itself, open from the beginning. It has standard input, a size and
signals; what it prints goes another way.

A session's end crosses with what its opener still sends: the server drops frames for sessions that
are over. Everything else that does not fit is a violation: `Channel.receive` raises GuestError.
"""

from __future__ import annotations

from wgcell.errors import GuestError
from wgcell.guest.frames import (
    STDERR,
    STDIN,
    STDOUT,
    Credit,
    Data,
    Decoder,
    End,
    Exit,
    Hangup,
    Open,
    Opened,
    SessionRefused,
    Signal,
    Size,
    encode,
)

__all__ = ["MOST_SESSIONS", "WINDOW", "WORKLOAD", "Channel"]

WINDOW = 256 * 1024
"""Bytes of one stream that may be on their way or unread."""
MOST_SESSIONS = 64
"""Sessions at once on one channel, the workload's aside."""
WORKLOAD = 0
"""The session that is the workload."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.frames import Frame

_FROM_OPENER = (STDIN,)
_FROM_SERVER = (STDOUT, STDERR)
_ONLY_OPENER = (Open, Size, Signal, Hangup)
_ONLY_SERVER = (Opened, SessionRefused, Exit)
_BEFORE_OPENED = (Opened, SessionRefused)


class _Session:
    """Where one session stands. ``room``: bytes of credit of each stream that is open."""

    __slots__ = ("hung_up", "room", "runs")

    def __init__(self, streams: tuple[int, ...], runs: bool) -> None:
        self.runs = runs
        self.hung_up = False
        self.room = dict.fromkeys(streams, WINDOW)


class Channel:
    """One end. ``opener``: whether this end begins the sessions."""

    def __init__(self, *, opener: bool, workload: bool = False) -> None:
        self._opener = opener
        self._decoder = Decoder()
        self._sessions: dict[int, _Session] = {}
        self._latest = WORKLOAD
        if workload:
            self._sessions[WORKLOAD] = _Session(_FROM_OPENER, runs=True)

    def receive(self, data: bytes) -> list[Frame]:
        """What the other end says, frame by frame. Raises GuestError at its first violation."""
        return [
            frame
            for frame in self._decoder.frames(data)
            if self._is_current(frame) and self._follow(frame, by_opener=not self._opener)
        ]

    def send(self, frame: Frame) -> bytes:
        """``frame`` as bytes, to be sent. Raises ValueError if it may not be sent now."""
        raw = encode(frame)
        try:
            self._follow(frame, by_opener=self._opener)
        except GuestError as error:
            raise ValueError(str(error)) from None
        return raw

    def room(self, session: int, stream: int) -> int:
        """Bytes of ``stream`` that may be sent now; 0 if it has ended, or the session has."""
        found = self._sessions.get(session)
        return 0 if found is None else found.room.get(stream, 0)

    def is_open(self, session: int) -> bool:
        """Whether the session is neither over nor still to come."""
        return session in self._sessions

    def close(self, session: int) -> None:
        """The session is over without an `Exit`: the workload's. Its frames are dropped now."""
        self._sessions.pop(session, None)

    @property
    def is_full(self) -> bool:
        """Whether no further session can be opened."""
        return len(self._sessions) - (WORKLOAD in self._sessions) >= MOST_SESSIONS

    @property
    def next_session(self) -> int:
        """A number for the next session."""
        return self._latest + 1

    def _is_current(self, frame: Frame) -> bool:
        """Whether the frame is for a session that is not over, as far as its sender may know."""
        over = frame.session not in self._sessions and frame.session <= self._latest
        return self._opener or not over or type(frame) is Open

    def _follow(self, frame: Frame, by_opener: bool) -> bool:
        """Go one step. Raises GuestError if ``frame`` may not come from that end now."""
        kind = type(frame)
        if kind in (_ONLY_SERVER if by_opener else _ONLY_OPENER):
            raise _violation(frame, "is the other end's to say")
        if kind is Open:
            self._begin(frame)
            return True
        session = self._sessions.get(frame.session)
        if session is None:
            raise _violation(frame, "is for a session that is not open")
        if by_opener:
            if session.hung_up:
                raise _violation(frame, "comes after the hangup")
        elif session.runs == (kind in _BEFORE_OPENED):
            raise _violation(frame, "comes at a wrong time")
        match frame:
            case Data(_, stream, data):
                self._spend(frame, session, stream, len(data), by_opener)
            case End(_, stream):
                self._spend(frame, session, stream, 0, by_opener)
                del session.room[stream]
            case Credit(_, stream, amount):
                _grant(frame, session, stream, amount, by_opener)
            case Opened():
                session.runs = True
            case Hangup():
                session.hung_up = True
            case SessionRefused() | Exit():
                if frame.session == WORKLOAD:
                    raise _violation(frame, "is not for the workload")
                del self._sessions[frame.session]
        return True

    def _begin(self, frame: Frame) -> None:
        if frame.session <= self._latest:
            raise _violation(frame, "has a number that was used before")
        if self.is_full:
            raise _violation(frame, f"is one more than {MOST_SESSIONS} at once")
        self._latest = frame.session
        self._sessions[frame.session] = _Session(_FROM_OPENER + _FROM_SERVER, runs=False)

    def _spend(
        self, frame: Frame, session: _Session, stream: int, amount: int, by_opener: bool
    ) -> None:
        if stream not in (_FROM_OPENER if by_opener else _FROM_SERVER):
            raise _violation(frame, "is on a stream of the other end's")
        room = session.room.get(stream)
        if room is None:
            raise _violation(frame, "comes after the stream's end")
        if amount > room:
            raise _violation(frame, f"has {amount} bytes where {room} may come")
        session.room[stream] = room - amount


def _grant(frame: Frame, session: _Session, stream: int, amount: int, by_opener: bool) -> None:
    if stream not in (_FROM_SERVER if by_opener else _FROM_OPENER):
        raise _violation(frame, "is for a stream of its own")
    room = session.room.get(stream)
    if room is None:
        # The stream's end was on its way.
        return
    if amount < 1 or room + amount > WINDOW:
        raise _violation(frame, f"grants {amount} bytes to a stream that has {room}")
    session.room[stream] = room + amount


def _violation(frame: Frame, why: str) -> GuestError:
    return GuestError(f"{type(frame).__name__} in session {frame.session} {why}")
