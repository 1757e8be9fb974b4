"""Backpressure: how full the socket is that wireguard-go reads.

That socket is one for all peers, and a datagram that does not fit is lost. If one peer filled it,
all peers would lose. So the ingress looks before it sends: it borrows the socket from the process
(pidfd_getfd(2)) and reads its fill level (SO_MEMINFO, linux/sock_diag.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

from wgcell.net import linux

__all__ = ["Backpressure"]

_MEMINFO = struct.Struct("2I")
"""The first two of nine numbers: the bytes in the receive queue, and the most it may hold."""
_EACH = 1024
"""Bytes that the kernel counts for a datagram beside its payload, and a little more."""


class Backpressure:
    """The fill level of a socket. Without one there is always room."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def borrow(self, pid: int, port: int) -> None:
        """Watch the IPv4 socket of process ``pid`` that is bound to UDP ``port``, if there is one.

        Give it back before the process binds another socket to the port.
        """
        self.give_back()
        with contextlib.suppress(OSError):  # the process is gone; its parent will notice
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
        """Whether ``count`` datagrams of ``size`` bytes fit. An empty queue always has room."""
        if self._socket is None:
            return True
        with contextlib.suppress(OSError):
            raw = self._socket.getsockopt(socket.SOL_SOCKET, linux.SO_MEMINFO, _MEMINFO.size)
            held, most = _MEMINFO.unpack(raw)
            return held == 0 or bool(held + count * (size + _EACH) <= most)
        return True


def _borrowed(pidfd: int, entry: Path) -> socket.socket | None:
    """The socket behind a descriptor of the process, if it is one of UDP over IPv4."""
    try:
        if not str(entry.readlink()).startswith("socket:"):
            return None
    except OSError:  # closed since it was listed
        return None
    descriptor = ctypes.CDLL(None).syscall(linux.PIDFD_GETFD, pidfd, int(entry.name), 0)
    if descriptor < 0:
        return None
    found = socket.socket(fileno=descriptor)
    if (found.family, found.type) == (socket.AF_INET, socket.SOCK_DGRAM):
        return found
    found.close()
    return None
