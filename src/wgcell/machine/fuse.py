"""The fuse between a relay and its machine: when it blows, the kernel kills the machine.

A pipe that nobody writes to. The relay holds one end, and closes it at a rogue frame; if the relay
is gone, however it went, the end is closed as well. The other end is set to send SIGKILL at that to
the machine's first process, its jail's keeper (fcntl(2): O_ASYNC, F_SETSIG, F_SETOWN). No process
of ours need run for it: a supervisor that stands still, or waits for a disk, holds up no kill.

The kernel sends it if we might: not from the root of a user namespace to another user in there. The
supervisor's own kill, a moment later, is all that such a cell has.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

__all__ = ["Fuse"]


class Fuse:
    """One pipe. ``end`` is the relay's, to be inherited by it alone."""

    def __init__(self) -> None:
        self._watched, self.end = os.pipe()

    def arm(self, pid: int) -> None:
        """From now on it kills ``pid``, a child of ours; at once, if it has blown already.

        Its own children must die with it. Raises ProcessLookupError if it is gone.
        """
        fcntl.fcntl(self._watched, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self._watched, fcntl.F_SETOWN, pid)
        flags = fcntl.fcntl(self._watched, fcntl.F_GETFL)
        fcntl.fcntl(self._watched, fcntl.F_SETFL, flags | os.O_ASYNC)
        if self.blown:
            os.kill(pid, signal.SIGKILL)

    @property
    def blown(self) -> bool:
        """Whether the relay's end is closed, by whomever held it."""
        poll = select.poll()
        poll.register(self._watched, 0)  # a hang-up is told whatever one asks for
        return bool(poll.poll(0))

    def hand_over(self) -> None:
        """Close the relay's end here, now that the relay has inherited it."""
        os.close(self.end)
        self.end = -1

    def close(self) -> None:
        """Close what is left of it here; the machine is dead then. More than once does no harm."""
        for fd in (self._watched, self.end):
            if fd >= 0:
                os.close(fd)
        self._watched = self.end = -1
