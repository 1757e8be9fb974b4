"""What a session is to be, and its bytes in an `Open`: a kind and flags, then fields, each behind
its length. Used by `wgcell.guest.frames` alone, at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wgcell.errors import GuestError

__all__ = [
    "Attach",
    "Command",
    "Pack",
    "Subject",
    "Terminal",
    "Unpack",
    "raw_word",
    "read_subject",
    "read_terminal",
    "subject_bytes",
    "terminal_bytes",
    "u32",
    "within",
]

_MOST_FIELDS = 16384
_MOST_NUMBER = 2**32 - 1
_MOST_SIDE = 2**16 - 1
"""Rows or columns of a terminal (ioctl_tty(2), struct winsize)."""


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


_COMMAND, _PACK, _UNPACK, _ATTACH = range(1, 5)
_STDIN_FLAG, _TERMINAL_FLAG = 1, 2


def subject_bytes(subject: Subject) -> bytes:
    """The payload of an `Open`. Raises ValueError for a value out of its range."""
    match subject:
        case Command(argv, env, folder, user, terminal, stdin):
            flags = (_STDIN_FLAG if stdin else 0) | (_TERMINAL_FLAG if terminal else 0)
            size = terminal_bytes(terminal or Terminal(0, 0))
            counts = u32(len(argv)) + u32(len(env))
            fields = (folder, user, *argv, *(f"{name}={value}" for name, value in env))
            return b"%c%c%b%b%b" % (_COMMAND, flags, size, counts, _fields(fields))
        case Pack(path):
            return b"%c%b" % (_PACK, _fields((path,)))
        case Unpack(path):
            return b"%c%b" % (_UNPACK, _fields((path,)))
        case Attach(stdin):
            return b"%c%c" % (_ATTACH, _STDIN_FLAG if stdin else 0)


def _fields(words: tuple[str, ...]) -> bytes:
    raw = [raw_word(word) for word in words]
    if any(b"\0" in word for word in raw):
        raise ValueError("a word with a NUL in it")
    return b"".join([u32(len(word)) + word for word in raw])


def read_subject(payload: bytes) -> Subject:
    """What an `Open` of that payload asks for. Raises GuestError."""
    return _Fields(payload).subject()


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
        size = read_terminal(self._bytes(4))
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


def read_terminal(size: bytes) -> Terminal:
    """A size of four bytes."""
    return Terminal(int.from_bytes(size[:2], "big"), int.from_bytes(size[2:], "big"))


def terminal_bytes(terminal: Terminal) -> bytes:
    """Four bytes. Raises ValueError for a side out of range."""
    rows, columns = (within(n, 0, _MOST_SIDE) for n in (terminal.rows, terminal.columns))
    return rows.to_bytes(2, "big") + columns.to_bytes(2, "big")


def u32(number: int) -> bytes:
    """Four bytes, big-endian. Raises ValueError for a number out of range."""
    return within(number, 0, _MOST_NUMBER).to_bytes(4, "big")


def within(number: int, least: int, most: int) -> int:
    """``number``. Raises ValueError if it is out of range."""
    if not least <= number <= most:
        raise ValueError(f"{number} is not between {least} and {most}")
    return number


def raw_word(word: str) -> bytes:
    """A user's word, which may hold bytes that are no UTF-8, as these bytes."""
    return word.encode("utf-8", "surrogateescape")
