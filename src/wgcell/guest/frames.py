"""The frames of a session channel, as bytes: one encoder, one strict decoder, used by every end.

A frame is a type (one byte), a session and a length (four bytes each, big-endian), and as many
bytes of payload. `wgcell.guest.channel` says which frame may follow which.

The other end is hostile: bytes that are not exactly a frame raise GuestError, a length beyond the
type's bound as soon as it is read. In the guest this loads in a Python without `re`, `struct` and
`dataclasses` (see `wgcell.guest.lean`).
"""

from __future__ import annotations

from dataclasses import dataclass

from wgcell.errors import GuestError
from wgcell.guest.subjects import (
    Attach,
    Command,
    Pack,
    Subject,
    Terminal,
    Unpack,
    raw_word,
    read_subject,
    read_terminal,
    subject_bytes,
    terminal_bytes,
    u32,
    within,
)

__all__ = [
    "LONGEST_OPEN",
    "MOST_DATA",
    "STDERR",
    "STDIN",
    "STDOUT",
    "Attach",
    "Command",
    "Credit",
    "Data",
    "Decoder",
    "End",
    "Exit",
    "Frame",
    "Hangup",
    "Open",
    "Opened",
    "Pack",
    "SessionRefused",
    "Signal",
    "Size",
    "Subject",
    "Terminal",
    "Unpack",
    "encode",
]

STDIN, STDOUT, STDERR = 0, 1, 2
_HEAD = 9
"""Bytes of type, session and length."""
MOST_DATA = 32 * 1024 - _HEAD - 1
"""Bytes. A frame of data is then one write to a virtio port, which takes 32 KiB at once (Linux,
drivers/char/virtio_console.c, port_fops_write)."""
LONGEST_OPEN = 128 * 1024
"""Bytes of an `Open`'s payload: a command with its environment."""
_LONGEST_TEXT = 4096
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_SIGNAL = 64


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a session."""

    session: int
    subject: Subject


@dataclass(frozen=True, slots=True)
class Opened:
    """The session runs."""

    session: int


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """The session can't begin, and why. It is over."""

    session: int
    text: str


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream, at least one and at most `MOST_DATA`."""

    session: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The stream ends here."""

    session: int
    stream: int


@dataclass(frozen=True, slots=True)
class Credit:
    """So many bytes more of the stream may be sent."""

    session: int
    stream: int
    amount: int


@dataclass(frozen=True, slots=True)
class Size:
    """The terminal has another size."""

    session: int
    terminal: Terminal


@dataclass(frozen=True, slots=True)
class Signal:
    """Send the session's process group this signal, 1 to 64 (signal(7))."""

    session: int
    number: int


@dataclass(frozen=True, slots=True)
class Hangup:
    """Nobody is there for the session any more: its processes get SIGHUP."""

    session: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The program has ended, and all that it wrote was sent before. The session is over."""

    session: int
    code: int


Frame = Open | Opened | SessionRefused | Data | End | Credit | Size | Signal | Hangup | Exit

_DATA, _CREDIT, _END, _OPEN, _OPENED, _REFUSED, _SIZE, _SIGNAL, _HANGUP, _EXIT = range(1, 11)
_TYPES: dict[type, int] = {
    Data: _DATA,
    Credit: _CREDIT,
    End: _END,
    Open: _OPEN,
    Opened: _OPENED,
    SessionRefused: _REFUSED,
    Size: _SIZE,
    Signal: _SIGNAL,
    Hangup: _HANGUP,
    Exit: _EXIT,
}
_LONGEST = {
    _DATA: 1 + MOST_DATA,
    _CREDIT: 5,
    _END: 1,
    _OPEN: LONGEST_OPEN,
    _OPENED: 0,
    _REFUSED: _LONGEST_TEXT,
    _SIZE: 4,
    _SIGNAL: 1,
    _HANGUP: 0,
    _EXIT: 1,
}
"""Bytes of payload, at most."""


def encode(frame: Frame) -> bytes:
    """One frame as bytes. Raises ValueError for a value out of its range."""
    kind = _TYPES[type(frame)]
    payload = _payload(frame)
    if len(payload) > _LONGEST[kind]:
        raise ValueError(f"{len(payload)} bytes are too many for this frame")
    return b"%c%b%b%b" % (kind, u32(frame.session), u32(len(payload)), payload)


class Decoder:
    """Bytes in, whole frames out. Holds at most one frame that is not whole yet."""

    def __init__(self) -> None:
        self._left = bytearray()

    def frames(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes, in order. Raises GuestError."""
        left = self._left
        left += data
        found: list[Frame] = []
        at = 0
        while len(left) - at >= _HEAD:
            kind, session = left[at], int.from_bytes(left[at + 1 : at + 5], "big")
            length = int.from_bytes(left[at + 5 : at + _HEAD], "big")
            if length > _LONGEST.get(kind, -1):
                raise GuestError(f"a frame of type {kind} and {length} bytes")
            end = at + _HEAD + length
            if end > len(left):
                break
            found.append(_frame(kind, session, bytes(left[at + _HEAD : end])))
            at = end
        del left[:at]
        return found

    @property
    def is_between_frames(self) -> bool:
        """Whether all bytes so far made whole frames: the stream may end here."""
        return not self._left


def _payload(frame: Frame) -> bytes:
    match frame:
        case Data(_, stream, data):
            if not data:
                raise ValueError("a frame of data without data")
            return b"%c%b" % (stream, data)
        case Credit(_, stream, amount):
            return b"%c%b" % (stream, u32(amount))
        case End(_, stream):
            return b"%c" % stream
        case Open(_, subject):
            return subject_bytes(subject)
        case SessionRefused(_, text):
            # Cut at a character's end.
            return raw_word(text)[:_LONGEST_TEXT].decode("utf-8", "ignore").encode()
        case Size(_, terminal):
            return terminal_bytes(terminal)
        case Signal(_, number):
            return b"%c" % within(number, 1, _MOST_SIGNAL)
        case Exit(_, code):
            return b"%c" % code
        case _:
            return b""


def _frame(kind: int, session: int, payload: bytes) -> Frame:
    """The frame of these parts; the payload is within the type's bound. Raises GuestError."""
    if kind == _DATA:
        if len(payload) < 2:
            raise GuestError("a frame of data without data")
        return Data(session, _stream(payload), payload[1:])
    if kind == _OPEN:
        return Open(session, read_subject(payload))
    if kind == _REFUSED:
        return SessionRefused(session, payload.decode("utf-8", "backslashreplace"))
    if len(payload) != _LONGEST[kind]:
        raise GuestError(f"a frame of type {kind} with {len(payload)} bytes")
    return _FIXED[kind](session, payload)


def _stream(payload: bytes) -> int:
    if payload[0] > STDERR:
        raise GuestError(f"{payload[0]} is no stream")
    return payload[0]


def _signal(number: int) -> int:
    if not 1 <= number <= _MOST_SIGNAL:
        raise GuestError(f"{number} is no signal")
    return number


_FIXED: dict[int, Callable[[int, bytes], Frame]] = {
    _CREDIT: lambda session, raw: Credit(session, _stream(raw), int.from_bytes(raw[1:], "big")),
    _END: lambda session, raw: End(session, _stream(raw)),
    _OPENED: lambda session, raw: Opened(session),
    _SIZE: lambda session, raw: Size(session, read_terminal(raw)),
    _SIGNAL: lambda session, raw: Signal(session, _signal(raw[0])),
    _HANGUP: lambda session, raw: Hangup(session),
    _EXIT: lambda session, raw: Exit(session, raw[0]),
}
"""Frames whose payload has one length only."""
