"""Bytes from a pipe or a terminal to a virtio-serial port, counted; and bytes into one."""

from __future__ import annotations

import os

from wgcell.guest.agent.loop import READABLE, WRITABLE

__all__ = ["Feed", "Stream"]

_CHUNK = 32 * 1024
"""Bytes. A port takes no more at once (Linux, drivers/char/virtio_console.c, port_fops_write)."""
_EIO = 5
"""Reading a terminal's master where no process has the terminal open any more."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.loop import Loop


def read(source: int, most: int) -> bytes | None:
    """What a pipe or a terminal's master holds; nothing at its end; None if there is none yet."""
    try:
        return os.read(source, most)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == _EIO:
            return b""
        raise


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
        left = read(self._source, _CHUNK)
        if left is None:
            return
        self._left = left
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


class Feed:
    """Bytes on their way into ``target``, a pipe or a terminal's master, which never blocks.

    ``taken`` is called with how many bytes have gone in. Once nobody reads them any more they are
    dropped, and ``taken`` is not called for them: their sender is soon out of credit. ``last``:
    bytes that go in behind all others.
    """

    def __init__(
        self, loop: Loop, target: int, taken: Callable[[int], None], last: Callable[[], bytes]
    ) -> None:
        self._loop, self._target, self._taken, self._last = loop, target, taken, last
        self._left = bytearray()
        self._ending = self._closed = self._waits = False
        os.set_blocking(target, False)

    def give(self, data: bytes) -> None:
        """More of them: as many as there was credit for."""
        if not self._closed:
            self._left += data
            if not self._waits:
                self._write()

    def end(self) -> None:
        """These were all."""
        if not self._closed:
            self._ending = True
            self.give(self._last())

    def close(self) -> None:
        """Drop what has not gone in."""
        if not self._closed:
            self._closed = True
            self._left.clear()
            self._wait(False)
            os.close(self._target)

    def _write(self) -> None:
        try:
            size = os.write(self._target, self._left) if self._left else 0
        except BlockingIOError:
            size = 0
        except OSError:  # nobody reads it any more
            self.close()
            return
        del self._left[:size]
        self._wait(bool(self._left))
        if size:
            self._taken(size)
        if self._ending and not self._left:
            self.close()

    def _wait(self, waits: bool) -> None:
        """Watch the target as long as there is something to write."""
        if waits and not self._waits:
            self._loop.watch(self._target, WRITABLE, self._write)
        elif self._waits and not waits:
            self._loop.forget(self._target)
        self._waits = waits
