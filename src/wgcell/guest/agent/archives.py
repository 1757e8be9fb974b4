"""Files of the workload's root as a tar, by the initramfs's busybox with the workload's rights.

A path is the workload's to mean anything by: it is resolved in its root alone, as everything a
session does. The program is a sealed copy: a process of the workload's could open what runs by
/proc/PID/exe, keep that, and write to the initramfs's own once nothing runs it any more.
"""

from __future__ import annotations

import os
from fcntl import fcntl

from wgcell.guest.agent.execution import Program

__all__ = ["Archiver"]

_BUSYBOX = "/bin/busybox"
_CHUNK = 1 << 20
# <linux/fcntl.h>: no more seals, no shrinking, no growing, no writing.
_ADD_SEALS, _ALL_SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8
_NO_PATH = {"PATH": "/dev/null"}
"""An applet that is not built in, as a decompressor, is looked for nowhere."""


class Archiver:
    """Makes the programs that pack and unpack. The copy is made once, for the first."""

    def __init__(self) -> None:
        self._copy: int | None = None

    def pack(self, path: str) -> Program:
        """The tar of ``path`` on standard output, named by its last part. Raises OSError."""
        above, _, name = path.rstrip("/").rpartition("/")
        folder = f"{above}/" if path.startswith("/") else above
        if name in ("", ".", ".."):
            folder, name = path or ".", "."
        return self._tar(folder, "-c", "-f", "-", f"./{name}" if name != "." else name)

    def unpack(self, path: str) -> Program:
        """The tar on standard input into the folder ``path``. Raises OSError."""
        return self._tar(path, "-x", "-p", "-f", "-")

    def _tar(self, folder: str, *words: str) -> Program:
        if self._copy is None:
            self._copy = _sealed(_BUSYBOX)
        return Program(("tar", *words), _NO_PATH, folder, "", False, self._copy)


def _sealed(path: str) -> int:
    """A copy of a file in memory that nobody can change."""
    copy = os.memfd_create("tar", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb", buffering=0) as file:
            while os.sendfile(copy, file.fileno(), None, _CHUNK):
                pass
        fcntl(copy, _ADD_SEALS, _ALL_SEALS)
    except OSError:
        os.close(copy)
        raise
    return copy
