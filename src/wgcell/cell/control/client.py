"""A cell's control socket from the outside.

The folder may be somebody else's, and root looks into it. So nothing is said to a socket of another
owner than the folder's, wherever a link led; an answer is bounded; and no answer is waited for
without end, unless the caller follows.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from wgcell.cell.control import words
from wgcell.cell.control.place import address, caller_uid
from wgcell.cell.folder import Folder
from wgcell.errors import StateError
from wgcell.wire.lines import LineError

__all__ = ["PATIENCE", "Unreachable", "ask", "asked", "begin", "word_of"]

PATIENCE = 5.0
"""Seconds for questions that are answered at once."""
_ONE: dict[type, type] = {
    words.State: words.Status,
    words.Stop: words.Stopping,
    words.Pause: words.Status,
    words.Unpause: words.Status,
    words.Allow: words.PolicyChanged,
    words.Deny: words.PolicyChanged,
    words.End: words.Ended,
}
"""The questions whose answer is one word."""
_PIECE = 1 << 16


class Unreachable(Exception):
    """Nobody listens: the cell has ended or died, or has no control socket."""


def ask(
    folder: Folder,
    question: words.Question,
    *,
    follow: bool = False,
    patience: float = PATIENCE,
) -> Iterator[words.Answer]:
    """The words of the answer, as they come; with ``follow`` they may come late.

    ``patience`` is the number of seconds that the cell has for each whole word otherwise.

    Raises Unreachable if nobody listens, or the cell dies: the words until then are right, and the
    folder has the rest. Raises StateError with the cell's own words if it refuses, and for a
    malformed answer.
    """
    try:
        with _connected(folder, patience) as sock:
            lines, answers = _asked(folder, sock, question, patience)
            if follow:
                lines.patience = None
            if (one := _ONE.get(type(question))) is not None:
                answers = _one(folder, answers, one)
            yield from answers
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from error


def begin(folder: Folder, question: words.Sessions, patience: float = PATIENCE) -> socket.socket:
    """A connection on which both ends speak frames from now on; blocking, and the caller's.

    Raises Unreachable and StateError as `ask` does.
    """
    try:
        with _connected(folder, patience) as sock:
            _, answers = _asked(folder, sock, question, patience)
            if not isinstance(next(answers, None), words.Accepted):
                raise StateError(f"{folder.id}: this is no answer to what was asked")
            sock.settimeout(None)
            return sock.dup()
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from error


def asked(folder: Folder, question: words.Question, patience: float = PATIENCE) -> socket.socket:
    """A connection on which the question was said, for a caller that reads the answer itself, line
    by line with `word_of`; blocking, and the caller's. Raises Unreachable."""
    try:
        with _connected(folder, patience) as sock:
            _ask(sock, question)
            sock.settimeout(None)
            return sock.dup()
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from error


def _ask(sock: socket.socket, question: words.Question) -> None:
    """Say what is asked. A cell that has refused by now has closed, and has said why."""
    with contextlib.suppress(BrokenPipeError):
        sock.sendall(_said(question))


def _said(question: words.Question) -> bytes:
    return words.QUESTIONS.line(words.Hello(words.VERSION)) + words.QUESTIONS.line(question)


def _asked(
    folder: Folder, sock: socket.socket, question: words.Question, patience: float
) -> tuple[_Lines, Iterator[words.Answer]]:
    """Say the question; the answer's words, behind its hello."""
    _ask(sock, question)
    lines = _Lines(sock, patience)
    answers = _answers(folder, lines)
    if not isinstance(next(answers, None), words.Hello):
        raise StateError(f"{folder.id}: what answers is no cell")
    return lines, answers


class _Lines:
    """Lines, each whole within ``patience`` seconds: a byte now and then buys no time."""

    def __init__(self, sock: socket.socket, patience: float | None) -> None:
        self.patience = patience
        self._sock = sock
        self._rest = bytearray()

    def next(self, longest: int) -> bytes:
        """The next one; cut off behind ``longest`` bytes, or by the end. Raises OSError."""
        until = None if self.patience is None else time.monotonic() + self.patience
        seen = 0
        while (at := self._rest.find(b"\n", seen)) < 0 and len(self._rest) <= longest:
            seen = len(self._rest)
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("it does not answer in time")
            self._sock.settimeout(left)
            piece = self._sock.recv(_PIECE)
            if not piece:
                at = len(self._rest) - 1
                break
            self._rest += piece
        end = longest + 1 if at < 0 else at + 1
        line = bytes(self._rest[:end])
        del self._rest[:end]
        return line


def _one(folder: Folder, answers: Iterator[words.Answer], kind: type) -> Iterator[words.Answer]:
    """An answer of one word of that ``kind``; one without end is none."""
    found = next(answers, None)
    if found is None or not isinstance(found, kind):
        raise StateError(f"{folder.id}: this is no answer to what was asked")
    yield found
    if next(answers, None) is not None:
        raise StateError(f"{folder.id}: its answer does not end")


def _answers(folder: Folder, lines: _Lines) -> Iterator[words.Answer]:
    while not isinstance(word := word_of(folder, lines.next(words.ANSWERS.longest)), words.Over):
        yield word


def word_of(folder: Folder, line: bytes) -> words.Answer:
    """The word that a line of an answer is; a line that is empty is the connection's end.

    Raises Unreachable at that; StateError for what is no word, and if the cell refuses.
    """
    if not line:
        raise Unreachable("it has ended")
    try:
        word = words.ANSWERS.word(line)
    except LineError as error:
        raise StateError(
            f"{folder.id}: its answer makes no sense: {error}",
            hint="use the wgcell that has started it",
        ) from None
    if isinstance(word, words.QuestionRefused):
        raise StateError(f"{folder.id}: {word.reason}")
    return word


@contextlib.contextmanager
def _connected(folder: Folder, patience: float) -> Iterator[socket.socket]:
    place = os.open(folder.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(place).st_uid
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(patience)
            sock.connect(address(place))
            if caller_uid(sock) != owner:
                raise OSError(1, "it is not the cell that listens there")
            yield sock
    finally:
        os.close(place)
