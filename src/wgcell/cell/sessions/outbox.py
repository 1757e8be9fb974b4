"""What is still to be sent over one channel, for an end that may read slowly or never.

Frames of a kind that can be repeated at will become one: data of a stream is joined into whole
frames, credit is added up, of sizes the last counts, a signal waits once. So what waits for a
session is bounded by its windows, whatever sizes its frames came in; and no session waits behind
another's bulk, for they take turns, a frame each.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from wgcell.guest.channel import Channel
from wgcell.guest.frames import (
    MOST_DATA,
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
)

__all__ = ["Outbox"]


class _Chunks:
    """A stream's bytes, joined so that there are few pieces of them."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        last = self._pieces[-1] if self._pieces else b""
        if not last or len(last) + len(data) > MOST_DATA:
            self._pieces.append(data)
            return
        if not isinstance(last, bytearray):  # bytes would be copied each time
            last = self._pieces[-1] = bytearray(last)
        last += data

    def take(self, most: int) -> bytes:
        piece = self._pieces.popleft()
        if len(piece) > most:
            self._pieces.appendleft(piece[most:])
            piece = piece[:most]
        self.size -= len(piece)
        return bytes(piece)


@dataclass(slots=True)
class _Waiting:
    """What waits for one session."""

    begin: Open | Opened | None = None
    size: Size | None = None
    signals: dict[int, Signal] = field(default_factory=dict)
    credit: dict[int, int] = field(default_factory=dict)
    data: dict[int, _Chunks] = field(default_factory=dict)
    ends: dict[int, End] = field(default_factory=dict)
    last: Exit | SessionRefused | Hangup | None = None

    def __bool__(self) -> bool:
        kept = (self.begin, self.size, self.last)
        return any(kept) or any((self.signals, self.credit, self.data, self.ends))

    def add(self, frame: Frame) -> None:
        match frame:
            case Data(_, stream, data):
                self.data.setdefault(stream, _Chunks()).add(data)
            case Credit(_, stream, amount):
                self.credit[stream] = self.credit.get(stream, 0) + amount
            case End(_, stream):
                self.ends[stream] = frame
            case Open() | Opened():
                self.begin = frame
            case Size():
                self.size = frame
            case Signal(_, number):
                self.signals[number] = frame
            case Hangup():
                # Nobody waits for what these were to bring about.
                self.forget_data()
                self.size, self.signals, self.credit, self.last = None, {}, {}, frame
            case Exit() | SessionRefused():
                self.last = frame

    def forget_data(self) -> None:
        self.data, self.ends = {}, {}

    def next(self, session: int, channel: Channel) -> Frame | None:
        """The next frame that may be sent now, taken out; what begins first, what ends last."""
        if (begin := self.begin) is not None:
            self.begin = None
            return begin
        if (size := self.size) is not None:
            self.size = None
            return size
        if self.signals:
            return self.signals.pop(next(iter(self.signals)))
        if self.credit:
            stream, amount = self.credit.popitem()
            return Credit(session, stream, amount)
        return self._next_of_streams(session, channel)

    def _next_of_streams(self, session: int, channel: Channel) -> Frame | None:
        for stream, chunks in self.data.items():
            if room := channel.room(session, stream):
                data = chunks.take(min(room, MOST_DATA))
                # To the end, so that a session's two streams take turns.
                del self.data[stream]
                if chunks.size:
                    self.data[stream] = chunks
                return Data(session, stream, data)
        for stream in self.ends:
            if stream not in self.data:
                return self.ends.pop(stream)
        last = None if self.data else self.last
        if last is not None:
            self.last = None
        return last


class Outbox:
    """What waits to be sent over ``channel``. `take` gives it out as bytes, as the channel has room
    for it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._waiting: dict[int, _Waiting] = {}

    def put(self, frame: Frame) -> None:
        """``frame`` is to be sent, behind all that waits for its session."""
        self._waiting.setdefault(frame.session, _Waiting()).add(frame)

    def take(self) -> bytes:
        """The next frame, sent by now as far as the channel knows; empty if none may be sent."""
        for session in list(self._waiting):
            waiting = self._waiting.pop(session)
            frame = waiting.next(session, self.channel)
            if waiting:
                self._waiting[session] = waiting  # behind the others
            if frame is not None:
                return self.channel.send(frame)
        return b""

    def waits(self, session: int, stream: int) -> int:
        """Bytes of a stream that wait."""
        waiting = self._waiting.get(session)
        chunks = None if waiting is None else waiting.data.get(stream)
        return 0 if chunks is None else chunks.size

    def forget(self, session: int) -> None:
        """Nobody is there for the session any more: send nothing of what waits for it."""
        self._waiting.pop(session, None)

    def forget_data(self, session: int) -> None:
        """The same for the session's streams alone."""
        if (waiting := self._waiting.get(session)) is not None:
            waiting.forget_data()
            if not waiting:
                del self._waiting[session]

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, neither for a reader nor for credit."""
        return not self._waiting
