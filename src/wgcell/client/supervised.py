"""A supervisor, started: its three pipes, its lifeline, and its end.

It is no child that dies with a thread: parent-death signals belong to threads, and a program may
start a cell from one that ends. It has a session of its own, so no Ctrl-C of the program's terminal
reaches it. It ends its cell when the *lifeline* closes, or when this process ends, which it sees by
a pidfd: a process forked off this one may hold the lifeline open.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

from wgcell import programs
from wgcell.cell.start import KEEP, Start, encoded
from wgcell.client.beginning import Beginning
from wgcell.errors import HostError, LaunchError

__all__ = ["Supervised"]

# -P: a folder named wgcell where the user happens to stand must never be imported.
PROGRAM = (sys.executable, "-P", "-m", "wgcell.supervise")
"""The supervisor; the descriptors of its report, its lifeline and its starter follow."""
KEPT = (
    *("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"),
    *("WGCELL_CACHE_DIR", "WGCELL_MIRROR", "WGCELL_STATE_DIR"),
)
"""Variables of the program's by which a supervisor finds its folders."""
_PIECE = 1 << 16
_MOST_OUTPUT = 4096
_REAPED_WITHIN = 10.0
"""Seconds that a supervisor has to be gone once it has closed its report without a last word."""


class Supervised:
    """A supervisor that this process has started, until its last word about the beginning.

    A context manager: at its end the report is closed, and the lifeline, unless `keep` or `take`
    was called: the cell then ends in order.
    """

    def __init__(self, process: subprocess.Popen[bytes], report: int, lifeline: int) -> None:
        self._process = process
        self.report = report
        """A descriptor that does not block: the supervisor's words, for a `Beginning`."""
        self._lifeline = lifeline
        # It is waited for whoever forgets it: no zombie, and no warning, is left behind.
        threading.Thread(target=process.wait, name="supervisor's end", daemon=True).start()

    @classmethod
    def start(cls, start: Start) -> Supervised:
        """Start a supervisor. Blocks for some milliseconds. Raises JobError and LaunchError."""
        line = encoded(start)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            report, said = os.pipe()
            ours.callback(os.close, report)
            theirs.callback(os.close, said)
            life, lifeline = os.pipe()
            theirs.callback(os.close, life)
            ours.callback(os.close, lifeline)
            starter = os.pidfd_open(os.getpid())
            theirs.callback(os.close, starter)
            given = (said, life, starter)
            argv = (*PROGRAM, *map(str, given))
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=given,
                    env=programs.environment(*programs.PYTHON, *KEPT),
                    start_new_session=True,
                )
            except OSError as error:
                raise LaunchError(f"the supervisor did not start: {error}", argv=argv) from error
            os.set_blocking(report, False)
            supervised = cls(process, report, lifeline)
            ours.pop_all()
        supervised._say(line)
        return supervised

    def _say(self, line: bytes) -> None:
        """The start, to a supervisor that reads it or is dead; what it said then says why."""
        stdin = self._process.stdin
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(line)
            with contextlib.suppress(BrokenPipeError):
                stdin.close()

    def read(self) -> bytes | None:
        """The next bytes of the report; none at its end, None if there are none yet."""
        try:
            return os.read(self.report, _PIECE)
        except BlockingIOError:
            return None

    def pieces(self) -> Iterator[bytes]:
        """The report to its end, blocking."""
        while True:
            select.select((self.report,), (), ())
            if (data := self.read()) == b"":
                return
            if data:
                yield data

    def follow(self, beginning: Beginning) -> None:
        """Hear the report to its last word, blocking. Raises as `Beginning.feed`, or HostError."""
        for data in self.pieces():
            beginning.feed(data)
            if beginning.is_over:
                return
        raise self.broke_off(beginning)

    def broke_off(self, beginning: Beginning) -> HostError:
        """What it means that the report has ended without a last word. Blocks shortly."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAPED_WITHIN)
        output = b""
        if self._process.stderr is not None:
            os.set_blocking(self._process.stderr.fileno(), False)
            output = self._process.stderr.read(_MOST_OUTPUT) or b""
        code = self._process.returncode
        return beginning.broke_off(0 if code is None else code, output.decode("utf-8", "replace"))

    def keep(self) -> None:
        """Let the cell live on when this process ends, or closes the lifeline."""
        with contextlib.suppress(OSError):
            os.write(self._lifeline, KEEP)

    def let_go(self) -> None:
        """Close the lifeline: a cell that was not kept ends in order."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def abandon(self) -> None:
        """Let it go, and hear nothing more of it."""
        self.let_go()
        self.close()

    def close(self) -> None:
        """Close the report: nothing more is heard of the beginning."""
        if self.report >= 0:
            os.close(self.report)
            self.report = -1
        if self._process.stderr is not None:
            self._process.stderr.close()
