"""A terminal that is a program's in a cell: every key goes there, and its output comes as it is.

Whatever ends this process, the terminal becomes what it was before. An error, a signal and the
session's end lead through `RawTerminal.restore`; a death that nothing leads through is seen by a
*guard*, a shell that waits for the end of a pipe, in a process group of its own. It sets nothing
back if somebody else has set the terminal since.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import tty
from types import TracebackType
from typing import Any

from wgcell import programs
from wgcell.guest.frames import Terminal

__all__ = ["MOST_SIDE", "RESET_MODES", "RawTerminal", "size"]

RESET_MODES = b"\x1b[?1047l\x1b[?1000;1002;1003;1006;2004;1l\x1b[?25h\x1b>\x1b[0m"
"""What a program may have left: the other screen, reports of the mouse and of pasting, other keys,
no cursor, colours (xterm's control sequences)."""
_GUARD = """
trap '' HUP INT QUIT TERM TSTP TTOU TTIN
read -r _ && exit
[ "$(stty -g <&3)" = "$1" ] && stty "$2" <&3
"""
"""Its standard input ends when its parent dies, without a line. 3 is the terminal."""
MOST_SIDE = 2**16 - 1
"""Rows or columns (ioctl_tty(2), struct winsize)."""
_Modes = list[Any]


def size(*fds: int) -> Terminal:
    """The size of the first of these that is a terminal; 0 by 0, which is unknown, if none is."""
    for fd in fds:
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            return Terminal(min(rows, MOST_SIDE), min(columns, MOST_SIDE))
    return Terminal(0, 0)


class RawTerminal:
    """The terminal at descriptor ``fd``, raw within a ``with``. Raises OSError if it is none."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            self._before: _Modes = termios.tcgetattr(fd)
        except termios.error as error:
            raise OSError(*error.args) from None
        self._raw: _Modes | None = None
        self._guard: tuple[int, int] | None = None
        """The guard's process, and the pipe that it waits on."""

    def __enter__(self) -> RawTerminal:
        self.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    @property
    def is_raw(self) -> bool:
        """Whether it is raw now, by this object."""
        return self._raw is not None

    def enter(self) -> None:
        """Make it raw. In the background this stops the process until it is in the foreground."""
        with contextlib.suppress(termios.error):  # it has hung up
            tty.setraw(self._fd, termios.TCSANOW)
            self._raw = termios.tcgetattr(self._fd)
            if self._guard is None:
                self._guard = _guard(self._fd, self._raw, self._before)

    def restore(self) -> None:
        """Make it what it was before. More than once does no harm."""
        if self._raw is not None:
            self._raw = None
            with contextlib.suppress(OSError):
                if select.select((), (self._fd,), (), 0)[1]:  # else nobody reads it now
                    os.write(self._fd, RESET_MODES)
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        if self._guard is not None:
            (pid, pipe), self._guard = self._guard, None
            with contextlib.suppress(OSError):
                os.write(pipe, b"\n")
            os.close(pipe)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _guard(fd: int, raw: _Modes, before: _Modes) -> tuple[int, int] | None:
    """Start the guard; None where that can't be done."""
    waits, pipe = os.pipe()
    argv = (programs.path_of("sh"), "-c", _GUARD, "guard", _as_stty(raw), _as_stty(before))
    null = os.open(os.devnull, os.O_WRONLY)
    streams = ((os.POSIX_SPAWN_DUP2, n, m) for n, m in ((fd, 3), (waits, 0), (null, 1), (null, 2)))
    try:
        pid = os.posix_spawn(
            argv[0], argv, programs.environment(), file_actions=list(streams), setpgroup=0
        )
    except OSError:
        os.close(pipe)
        return None
    finally:
        os.close(waits)
        os.close(null)
    return pid, pipe


def _as_stty(modes: _Modes) -> str:
    """Modes as ``stty -g`` prints and ``stty`` reads them: hexadecimal numbers."""
    iflag, oflag, cflag, lflag, _, _, characters = modes
    values = [one if isinstance(one, int) else one[0] for one in characters]
    return ":".join(f"{one:x}" for one in (iflag, oflag, cflag, lflag, *values))
