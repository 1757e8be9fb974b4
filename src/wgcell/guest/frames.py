"""The frames of a session channel, as bytes: one encoder, one strict decoder, used by every end.

A frame is a type (one byte), a session and a length (four bytes each, big-endian), and as many
bytes of payload. `wgcell.guest.channel` says which frame may follow which.

The other end is hostile: bytes that are not exactly a frame raise GuestError, a length beyond the
type's bound as soon as it is read. In the guest this loads in a Python without `re`, `struct` and
`dataclasses` (see `wgcell.guest.lean`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wgcell.errors import GuestError

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
    "Refused",
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

_MOST_FIELDS = 16384
MOST_SESSION = 2**32 - 1
_MOST_SIDE = 2**16 - 1
"""Rows or columns of a terminal (ioctl_tty(2), struct winsize)."""
_MOST_SIGNAL = 64


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal's size in characters, 0 to 65535 each; 0 is "unknown"."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run. ``folder`` empty: the working folder; ``user`` empty: root.

    ``user`` is ``name`` or ``uid``, each with ``:group`` if wanted, as docker has it. Without
    ``stdin``, the program reads from /dev/null. With a ``terminal``, all it prints is stdout.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = field(repr=False)
    folder: str
    user: str
    terminal: Terminal | None
    stdin: bool


@dataclass(frozen=True, slots=True)
class Pack:
    """A tar of ``path``, relative to the working folder or absolute, on stdout."""

    path: str


@dataclass(frozen=True, slots=True)
class Unpack:
    """The tar on stdin goes into the folder ``path``, which must be there."""

    path: str


@dataclass(frozen=True, slots=True)
class Attach:
    """The workload's own streams; with ``stdin``, its input too. The host alone answers this."""

    stdin: bool


Subject = Command | Pack | Unpack | Attach


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
class Refused:
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


Frame = Open | Opened | Refused | Data | End | Credit | Size | Signal | Hangup | Exit

_DATA, _CREDIT, _END, _OPEN, _OPENED, _REFUSED, _SIZE, _SIGNAL, _HANGUP, _EXIT = range(1, 11)
_TYPES: dict[type, int] = {
    Data: _DATA,
    Credit: _CREDIT,
    End: _END,
    Open: _OPEN,
    Opened: _OPENED,
    Refused: _REFUSED,
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
_COMMAND, _PACK, _UNPACK, _ATTACH = range(1, 5)


def encode(frame: Frame) -> bytes:
    """One frame as bytes. Raises ValueError for a value out of its range."""
    kind = _TYPES[type(frame)]
    payload = _payload(frame)
    if len(payload) > _LONGEST[kind]:
        raise ValueError(f"{len(payload)} bytes are too many for this frame")
    return b"%c%b%b%b" % (kind, _u32(frame.session), _u32(len(payload)), payload)


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
            return b"%c%b" % (stream, _u32(amount))
        case End(_, stream):
            return b"%c" % stream
        case Open(_, subject):
            return _subject_bytes(subject)
        case Refused(_, text):
            # Cut at a character's end.
            return _raw(text)[:_LONGEST_TEXT].decode("utf-8", "ignore").encode()
        case Size(_, terminal):
            return _terminal_bytes(terminal)
        case Signal(_, number):
            return b"%c" % _within(number, 1, _MOST_SIGNAL)
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
        return Open(session, _Fields(payload).subject())
    if kind == _REFUSED:
        return Refused(session, payload.decode("utf-8", "backslashreplace"))
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


# What a session is to be: a kind and flags, then the fields, each behind its length.

_STDIN_FLAG, _TERMINAL_FLAG = 1, 2


def _subject_bytes(subject: Subject) -> bytes:
    match subject:
        case Command(argv, env, folder, user, terminal, stdin):
            flags = (_STDIN_FLAG if stdin else 0) | (_TERMINAL_FLAG if terminal else 0)
            size = _terminal_bytes(terminal or Terminal(0, 0))
            counts = _u32(len(argv)) + _u32(len(env))
            fields = (folder, user, *argv, *(f"{name}={value}" for name, value in env))
            return b"%c%c%b%b%b" % (_COMMAND, flags, size, counts, _fields(fields))
        case Pack(path):
            return b"%c%b" % (_PACK, _fields((path,)))
        case Unpack(path):
            return b"%c%b" % (_UNPACK, _fields((path,)))
        case Attach(stdin):
            return b"%c%c" % (_ATTACH, _STDIN_FLAG if stdin else 0)


def _fields(words: tuple[str, ...]) -> bytes:
    raw = [_raw(word) for word in words]
    if any(b"\0" in word for word in raw):
        raise ValueError("a word with a NUL in it")
    return b"".join([_u32(len(word)) + word for word in raw])


class _Fields:
    """Reads an `Open`'s payload from its beginning. Each step raises GuestError."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def subject(self) -> Subject:
        kind = self._number(1)
        if kind == _COMMAND:
            subject: Subject = self._command()
        elif kind == _PACK:
            subject = Pack(self._word())
        elif kind == _UNPACK:
            subject = Unpack(self._word())
        elif kind == _ATTACH:
            subject = Attach(self._flags(_STDIN_FLAG) == _STDIN_FLAG)
        else:
            raise GuestError(f"a session of the kind {kind}")
        if self._at != len(self._payload):
            raise GuestError("a session with more than it needs")
        return subject

    def _command(self) -> Command:
        flags = self._flags(_STDIN_FLAG | _TERMINAL_FLAG)
        size = _terminal(self._bytes(4))
        words, variables = self._number(4), self._number(4)
        if not 1 <= words <= _MOST_FIELDS or variables > _MOST_FIELDS:
            raise GuestError(f"a command of {words} words and {variables} variables")
        folder, user = self._word(), self._word()
        argv = tuple([self._word() for _ in range(words)])
        env = tuple([_variable(self._word()) for _ in range(variables)])
        terminal = size if flags & _TERMINAL_FLAG else None
        if terminal is None and size != Terminal(0, 0):
            raise GuestError("a size without a terminal")
        return Command(argv, env, folder, user, terminal, bool(flags & _STDIN_FLAG))

    def _flags(self, known: int) -> int:
        flags = self._number(1)
        if flags & ~known:
            raise GuestError(f"the flags {flags}")
        return flags

    def _word(self) -> str:
        word = self._bytes(self._number(4))
        if b"\0" in word:
            raise GuestError("a word with a NUL in it")
        return word.decode("utf-8", "surrogateescape")

    def _number(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "big")

    def _bytes(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._payload):
            raise GuestError("a session that breaks off")
        part, self._at = self._payload[self._at : end], end
        return part


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise GuestError("a variable without a name")
    return name, value


def _terminal(size: bytes) -> Terminal:
    return Terminal(int.from_bytes(size[:2], "big"), int.from_bytes(size[2:], "big"))


def _terminal_bytes(terminal: Terminal) -> bytes:
    rows, columns = (_within(n, 0, _MOST_SIDE) for n in (terminal.rows, terminal.columns))
    return rows.to_bytes(2, "big") + columns.to_bytes(2, "big")


_FIXED: dict[int, Callable[[int, bytes], Frame]] = {
    _CREDIT: lambda session, raw: Credit(session, _stream(raw), int.from_bytes(raw[1:], "big")),
    _END: lambda session, raw: End(session, _stream(raw)),
    _OPENED: lambda session, raw: Opened(session),
    _SIZE: lambda session, raw: Size(session, _terminal(raw)),
    _SIGNAL: lambda session, raw: Signal(session, _signal(raw[0])),
    _HANGUP: lambda session, raw: Hangup(session),
    _EXIT: lambda session, raw: Exit(session, raw[0]),
}
"""Frames whose payload has one length only."""


def _u32(number: int) -> bytes:
    return _within(number, 0, MOST_SESSION).to_bytes(4, "big")


def _within(number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise ValueError(f"{number} is not between {least} and {most}")
    return number


def _raw(word: str) -> bytes:
    """A word of the user's may hold bytes that are no UTF-8."""
    return word.encode("utf-8", "surrogateescape")
