"""The address of a cell's control socket, and the user at its other end."""

from __future__ import annotations

import socket
import struct

__all__ = ["NAME", "address", "caller_uid"]

NAME = "control"
"""The socket's name in the cell's folder."""
_CREDENTIALS = struct.Struct("3i")
"""pid, uid and gid: SO_PEERCRED, unix(7)."""


def address(folder: int) -> str:
    """The address to bind or connect to, by a descriptor of the cell's folder.

    The folder's path may be longer than the 107 bytes that a socket's address may have (unix(7)).
    """
    return f"/proc/self/fd/{folder}/{NAME}"


def caller_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket, as the kernel says."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
