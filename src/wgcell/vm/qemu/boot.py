"""Copies of the kernel and the initramfs for a machine, emptied once it has booted.

QEMU maps both files for its whole life and reads them while it boots. As long as they are mapped,
killing it means unmapping their pages, some twelve thousand, half of all that it has. A copy of the
cell's own can be emptied under it.
"""

from __future__ import annotations

import os
from pathlib import Path

from wgcell.errors import HostError

__all__ = ["BootFiles"]


class BootFiles:
    """Both copies, in memory. ``kernel`` and ``initramfs`` are descriptors for QEMU to inherit."""

    def __init__(self, kernel: Path, initramfs: Path) -> None:
        """Raises HostError if a file can't be read, or the memory is not to be had."""
        self.kernel = _copy(kernel)
        try:
            self.initramfs = _copy(initramfs)
        except HostError:
            os.close(self.kernel)
            raise

    def forget(self) -> None:
        """Empty both: QEMU, which must not read them again, has no page of them any more.

        A guest that makes it, by asking the firmware's device for its kernel, ends it (SIGBUS).
        More than once does no harm.
        """
        for fd in (self.kernel, self.initramfs):
            if fd >= 0:
                os.ftruncate(fd, 0)
                os.close(fd)
        self.kernel = self.initramfs = -1


def _copy(path: Path) -> int:
    copy = os.memfd_create(path.name)
    try:
        with path.open("rb") as file:
            while os.sendfile(copy, file.fileno(), None, 1 << 30):
                pass
    except OSError as error:
        os.close(copy)
        raise HostError(f"{path}: {error.strerror}") from error
    return copy
