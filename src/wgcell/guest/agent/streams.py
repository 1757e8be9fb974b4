"""Bytes on their way to the host: from a pipe to a virtio-serial port, counted."""

from __future__ import annotations

import os

from wgcell.guest.agent.loop import READABLE, WRITABLE

__all__ = ["Stream"]

_CHUNK = 32 * 1024
"""Bytes. A port takes no more at once (Linux, drivers/char/virtio_console.c, port_fops_write)."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.loop import Loop


class Stream:
    """A copy from ``source`` to ``port``; no more is read than has been written.

    ``count``: bytes that the port has taken. The host gets the number, because it must see all
    bytes before the machine may end: a write to a port returns while the bytes are still on their
    way. A full port stops the reading, so a slow reader outside slows the workload, as a pipe
    would.
    """

    def __init__(
        self, loop: Loop, source: int, port: int, see: Callable[[bytes], object] | None = None
    ) -> None:
        self.count = 0
        self.ended = False
        self._loop, self._source, self._port, self._see = loop, source, port, see
        self._left = b""
        # The workload may open its pipe's other end by /proc/self/fd, and take what was there to be
        # read: to wait for more would stop the whole agent.
        os.set_blocking(source, False)
        loop.watch(source, READABLE, self._read)

    def _read(self) -> None:
        try:
            self._left = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return
        if not self._left:
            self.close()
            return
        if self._see is not None:
            self._see(self._left)
        self._write()
        if self._left:
            self._loop.forget(self._source)
            self._loop.watch(self._port, WRITABLE, self._write_rest)

    def _write(self) -> None:
        try:
            taken = os.write(self._port, self._left)
        except BlockingIOError:
            return
        self.count += taken
        self._left = self._left[taken:]

    def _write_rest(self) -> None:
        self._write()
        if not self._left:
            self._loop.forget(self._port)
            self._loop.watch(self._source, READABLE, self._read)

    def close(self) -> None:
        """Read no more. SIGPIPE ends a process that writes to the pipe then."""
        if self.ended:
            return
        self.ended = True
        self._loop.forget(self._port if self._left else self._source)
        os.close(self._source)
