"""How full the socket is that wireguard-go reads: one for all peers, and what does not fit is lost.

Its peers would lose alike, whoever of them fills it. So who feeds it looks first: the socket is
borrowed from the process (pidfd_getfd(2)) and asked (SO_MEMINFO, linux/sock_diag.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

__all__ = ["Backlog"]

_PIDFD_GETFD = 438
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("2I")
"""Of nine: the bytes in the receive queue, and those it may hold."""
_EACH = 1024
"""Bytes that the kernel counts for a datagram beside its own, and a little more."""


class Backlog:
    """Of no process at first: then there is always room."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def borrow(self, pid: int, port: int) -> None:
        """The IPv4 socket of process ``pid`` that is bound to UDP ``port``; none if there is none.

        It must be given back before the process is to bind another to the port.
        """
        self.give_back()
        with contextlib.suppress(OSError):  # it is gone: whoever started it will know
            pidfd = os.pidfd_open(pid)
            try:
                for entry in Path(f"/proc/{pid}/fd").iterdir():
                    found = _borrowed(pidfd, entry)
                    if found is not None and found.getsockname()[1] == port:
                        self._socket = found
                        return
                    if found is not None:
                        found.close()
            finally:
                os.close(pidfd)

    def give_back(self) -> None:
        """Forget the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def has_room(self, count: int, size: int) -> bool:
        """Whether ``count`` datagrams of ``size`` bytes fit, or the queue is empty."""
        if self._socket is None:
            return True
        with contextlib.suppress(OSError):
            raw = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            held, most = _MEMINFO.unpack(raw)
            return held == 0 or bool(held + count * (size + _EACH) <= most)
        return True


def _borrowed(pidfd: int, entry: Path) -> socket.socket | None:
    """The UDP socket of IPv4 that a descriptor of the process's is."""
    try:
        if not str(entry.readlink()).startswith("socket:"):
            return None
    except OSError:  # closed since it was listed
        return None
    descriptor = ctypes.CDLL(None).syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
    if descriptor < 0:
        return None
    found = socket.socket(fileno=descriptor)
    if (found.family, found.type) == (socket.AF_INET, socket.SOCK_DGRAM):
        return found
    found.close()
    return None
