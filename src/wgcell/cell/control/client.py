"""A cell's control socket from the outside.

The folder may be somebody else's, and root looks into it. So nothing is said to a socket of another
owner than the folder's, wherever a link led; an answer is bounded; and no answer is waited for
without end, unless the caller follows.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import BinaryIO

from wgcell.cell.control import words
from wgcell.cell.control.place import address, caller_uid
from wgcell.cell.folder import Folder
from wgcell.errors import StateError
from wgcell.wire.lines import LineError

__all__ = ["PATIENCE", "Unreachable", "ask"]

PATIENCE = 5.0
"""Seconds for what is answered at once."""


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

    ``patience`` is how many seconds the cell has for each word of it otherwise.

    Raises Unreachable if nobody listens, or nobody does any more: what was yielded by then is
    right, and what is missing is in the folder. Raises StateError with the cell's own words if it
    refuses, and for an answer that is none.
    """
    try:
        with _connected(folder, patience) as sock, sock.makefile("rb") as lines:
            said = words.QUESTIONS.line(words.Hello(words.VERSION)) + words.QUESTIONS.line(question)
            sock.sendall(said)
            answers = _answers(folder, lines)
            if not isinstance(next(answers, None), words.Hello):
                raise StateError(f"{folder.id}: what answers is no cell")
            if follow:
                sock.settimeout(None)
            yield from answers
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from error


def _answers(folder: Folder, lines: BinaryIO) -> Iterator[words.Answer]:
    while True:
        line = lines.readline(words.ANSWERS.longest + 1)
        if not line:
            raise Unreachable("it has ended")
        try:
            word = words.ANSWERS.word(line)
        except LineError as error:
            raise StateError(
                f"{folder.id}: its answer makes no sense: {error}",
                mend="use the wgcell that has started it",
            ) from None
        if isinstance(word, words.Over):
            return
        if isinstance(word, words.Refused):
            raise StateError(f"{folder.id}: {word.reason}")
        yield word


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
