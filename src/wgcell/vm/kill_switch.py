"""The kill switch between a relay and its machine: when it is pulled, the kernel kills the machine.

The switch is a pipe that nobody writes to. The relay holds one end and closes it at a rogue frame;
the kernel closes it when the relay dies, however it dies. The other end is set to send SIGKILL then
to the machine's first process (fcntl(2): O_ASYNC, F_SETSIG, F_SETOWN). No process has to run for
that: a supervisor that is stopped, or waits for a disk, delays no kill.

The kernel sends the signal only where this process might send it: not from the root of a user
namespace to another user inside. Such a cell has only the supervisor's own kill, a moment later.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

__all__ = ["KillSwitch"]


class KillSwitch:
    """One pipe. ``end`` is the relay's, to be inherited by it alone."""

    def __init__(self) -> None:
        self._watched, self.end = os.pipe()

    def arm(self, pid: int) -> None:
        """Kill ``pid``, a child of this process, when the switch is pulled; at once if it was.

        The children of ``pid`` must die with it. Raises ProcessLookupError if ``pid`` is gone.
        """
        fcntl.fcntl(self._watched, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self._watched, fcntl.F_SETOWN, pid)
        flags = fcntl.fcntl(self._watched, fcntl.F_GETFL)
        fcntl.fcntl(self._watched, fcntl.F_SETFL, flags | os.O_ASYNC)
        if self.pulled:
            os.kill(pid, signal.SIGKILL)

    @property
    def pulled(self) -> bool:
        """Whether the relay's end is closed, by whichever process held it."""
        poll = select.poll()
        poll.register(self._watched, 0)  # a hang-up is reported whatever one asks for
        return bool(poll.poll(0))

    def hand_over(self) -> None:
        """Close the relay's end here, now that the relay has inherited it."""
        os.close(self.end)
        self.end = -1

    def close(self) -> None:
        """Close all that is still open here, once the machine is dead. A second call does no
        harm."""
        for fd in (self._watched, self.end):
            if fd >= 0:
                os.close(fd)
        self._watched = self.end = -1
