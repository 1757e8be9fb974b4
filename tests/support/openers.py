"""The host's end of a session channel, by hand: it opens sessions and reads what they say."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fcntl import ioctl
from termios import FIONREAD

from tests.support.waiting import GENEROUS, until

from wgcell.guest.channel import Channel
from wgcell.guest.frames import (
    MOST_DATA,
    STDERR,
    STDIN,
    STDOUT,
    Command,
    Credit,
    Data,
    End,
    Exit,
    Frame,
    Hangup,
    Open,
    Opened,
    SessionRefused,
    Subject,
    Terminal,
)

__all__ = ["Heard", "Opener", "command"]


def command(
    *argv: str,
    env: tuple[tuple[str, str], ...] = (),
    folder: str = "",
    user: str = "",
    terminal: Terminal | None = None,
    stdin: bool = False,
) -> Command:
    """A program to run, which most often asks for little."""
    return Command(argv, env, folder, user, terminal, stdin)


@dataclass
class Heard:
    """What came of one session."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    ended: set[int] = field(default_factory=set)
    opened: bool = False
    refused: str | None = None
    code: int | None = None
    credit: int = 0
    """Bytes of standard input that were granted besides the first window."""

    @property
    def over(self) -> bool:
        return self.code is not None or self.refused is not None


class Opener:
    """The opener on a connected socket. ``reads``: whether what comes in is granted anew."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        self.channel = Channel(opener=True, workload=True)
        self.heard: dict[int, Heard] = {0: Heard()}
        self.frames: list[Frame] = []
        self.silent: set[int] = set()
        """Sessions to which no credit is given."""

    def send(self, frame: Frame) -> None:
        if isinstance(frame, Hangup):
            self.silent.add(frame.session)
        self.port.settimeout(GENEROUS)
        self.port.sendall(self.channel.send(frame))

    def open(self, subject: Subject, *, reads: bool = True) -> int:
        number = self.channel.next_session
        self.heard[number] = Heard()
        if not reads:
            self.silent.add(number)
        self.send(Open(number, subject))
        return number

    def write(self, session: int, data: bytes) -> None:
        """All of it, as there is credit."""
        while data:
            self.until(lambda: self.channel.room(session, STDIN), "credit")
            size = min(self.channel.room(session, STDIN), MOST_DATA, len(data))
            self.send(Data(session, STDIN, data[:size]))
            data = data[size:]

    def end(self, session: int) -> None:
        self.send(End(session, STDIN))

    def until(self, happened: Callable[[], object], what: str = "") -> None:
        """Hear what is said until that is so."""
        end = time.monotonic() + GENEROUS
        while not happened():
            left = end - time.monotonic()
            assert left > 0, f"not within {GENEROUS:g} s: {what}; {self.heard}"[:2000]
            self.port.settimeout(left)
            data = self.port.recv(1 << 16)
            assert data, f"the port is at its end: {what}"
            for frame in self.channel.receive(data):
                self._take(frame)

    def until_full(self) -> None:
        """Wait until the port holds so much that no more is coming; read nothing."""
        held = 0

        def no_more() -> bool:
            nonlocal held
            before, held = held, int.from_bytes(ioctl(self.port, FIONREAD, bytes(4)), "little")
            return 0 < held == before

        until(no_more, "a full port", every=0.3)

    def until_over(self, *sessions: int) -> Heard:
        """The last of them, once all are."""
        self.until(lambda: all(self.heard[one].over for one in sessions), f"end of {sessions}")
        return self.heard[sessions[-1]]

    def run(self, subject: Subject, given: bytes | None = None) -> Heard:
        """A session from its beginning to its end."""
        session = self.open(subject)
        if given is not None:
            self.write(session, given)
            self.end(session)
        return self.until_over(session)

    def _take(self, frame: Frame) -> None:
        self.frames.append(frame)
        heard = self.heard[frame.session]
        match frame:
            case Data(session, stream, data):
                (heard.stdout if stream == STDOUT else heard.stderr).extend(data)
                assert stream in (STDOUT, STDERR)
                # It may be over by what came with this.
                if session not in self.silent and self.channel.is_open(session):
                    self.send(Credit(session, stream, len(data)))
            case End(_, stream):
                heard.ended.add(stream)
            case Credit(_, _, amount):
                heard.credit += amount
            case Opened():
                heard.opened = True
            case SessionRefused(_, text):
                heard.refused = text
            case Exit(_, code):
                heard.code = code
