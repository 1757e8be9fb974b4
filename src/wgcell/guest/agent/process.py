"""A child of the agent's: its end, and signals to its process group."""

from __future__ import annotations

import os

from wgcell.guest.agent import tools
from wgcell.guest.agent.loop import READABLE

__all__ = ["Process"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.loop import Loop


class Process:
    """``ended`` is called once, with its exit code as a shell counts."""

    def __init__(self, loop: Loop, pid: int, ended: Callable[[int], None]) -> None:
        self.pid = pid
        self._loop, self._ended = loop, ended
        self._lives = True
        # Linux ends no pid namespace while a child there has not been waited for: so this is never
        # put off.
        self._descriptor = _watched(pid)
        loop.watch(self._descriptor, READABLE, self._reap)

    def signal(self, number: int) -> None:
        """Send it to the process group; not once the process is gone and its number is free."""
        if self._lives:
            signal_group(self.pid, number)

    def kill(self) -> None:
        """End the process, whoever else is in its group."""
        if self._lives:
            os.kill(self.pid, 9)

    def _reap(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._lives = False
            self._loop.forget(self._descriptor)
            os.close(self._descriptor)
            self._ended(tools.code_of(status))


def _watched(pid: int) -> int:
    """A descriptor of the process, or an OSError and no process."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise


def signal_group(pid: int, number: int) -> None:
    """To the group that the process leads; to itself if it has not come to lead one yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        os.kill(pid, number)
