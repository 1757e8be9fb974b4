"""A program at a pseudo-terminal, as a person has it: types, looks, and closes the window."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.support.waiting import GENEROUS, until

__all__ = ["Pty", "at_a_terminal"]


class Pty:
    """``argv`` at a terminal of its own, in a session of its own."""

    def __init__(self, argv: Sequence[str], rows: int, columns: int, **how: Any) -> None:
        self.master, self._terminal = pty.openpty()
        self.resize(rows, columns)
        self.before = self.modes()
        terminal = self._terminal

        def arm() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            argv, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=arm, **how
        )
        self.shown = b""

    def modes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._terminal)

    @property
    def is_raw(self) -> bool:
        """Whether keys go as they are, and Ctrl-C is a key like others."""
        return not self.modes()[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    def resize(self, rows: int, columns: int) -> None:
        """Drag the window's corner."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def look(self, wanted: bytes, within: float = GENEROUS) -> bytes:
        """Look until ``wanted`` is shown; what is shown by then."""
        end = time.monotonic() + within
        while wanted not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{wanted!r} is not in {self.shown!r}"
            if select.select((self.master,), (), (), left)[0]:
                self._read()
        return self.shown

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        assert data, f"the terminal has closed; it showed {self.shown!r}"
        self.shown += data

    def send(self, number: signal.Signals) -> None:
        """A signal to the program alone."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the program's end, looking on; its exit code."""

        def over() -> bool:
            while select.select((self.master,), (), (), 0)[0]:
                self._read()
            return self.process.poll() is not None

        until(over, "the program's end")
        while select.select((self.master,), (), (), 0)[0]:
            self._read()
        return self.process.returncode

    def close_window(self) -> None:
        """The terminal is gone: SIGHUP."""
        os.close(self._terminal)
        os.close(self.master)
        self.master = self._terminal = -1

    def close(self) -> None:
        """The test is over."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        if self.master >= 0:
            self.close_window()


@contextmanager
def at_a_terminal(*argv: str, rows: int = 24, columns: int = 80, **how: Any) -> Iterator[Pty]:
    """A program at a terminal of that size."""
    one = Pty(argv, rows, columns, **how)
    try:
        yield one
    finally:
        one.close()
