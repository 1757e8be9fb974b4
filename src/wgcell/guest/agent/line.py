"""The guest's end of the session channel on its port, for which nothing ever waits."""

from __future__ import annotations

import os

from wgcell.guest.agent import streams
from wgcell.guest.agent.loop import READABLE, WRITABLE
from wgcell.guest.channel import Channel

__all__ = ["Line"]

_CHUNK = 32 * 1024
"""Bytes that a port takes at once."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.loop import Loop
    from wgcell.guest.frames import Frame


class Line:
    """``heard`` is called with each of the host's frames, ``gone`` once the host's end is.

    What the port does not take waits here. That is little: a stream is only read if it is not
    `is_full`, and the host's own frames, each answered by a few bytes, the channel bounds.
    """

    def __init__(
        self, loop: Loop, port: int, heard: Callable[[Frame], None], gone: Callable[[], None]
    ) -> None:
        self.channel = Channel(opener=False, workload=True)
        self._loop, self._port, self._heard, self._gone = loop, port, heard, gone
        # A loop watches a descriptor for one thing.
        self._out = os.dup(port)
        self._left = bytearray()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._is_gone = False
        os.set_blocking(port, False)
        loop.watch(port, READABLE, self._hear)

    @property
    def is_full(self) -> bool:
        """Whether the port takes nothing more for now."""
        return bool(self._left)

    def when_free(self, source: int, call: Callable[[], None]) -> None:
        """Call once the port takes more; once for each ``source``, a descriptor."""
        self._waiting[source] = call

    def send(self, frame: Frame) -> None:
        """Send a frame. Raises ValueError if it may not be sent now."""
        raw = self.channel.send(frame)
        if self._is_gone:
            return
        waits = bool(self._left)
        self._left += raw
        if not waits:
            self._write()
            if self._left:
                self._loop.watch(self._out, WRITABLE, self._write_on)

    def _write(self) -> None:
        try:
            while self._left:
                del self._left[: os.write(self._out, self._left[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:  # the port has no other end any more; reading it says so
            self._left.clear()

    def _write_on(self) -> None:
        self._write()
        if not self._left:
            self._loop.forget(self._out)
            waiting, self._waiting = self._waiting, {}
            for call in waiting.values():
                call()

    def _hear(self) -> None:
        data = streams.read(self._port, _CHUNK)
        if data is None:
            return
        if data:
            for frame in self.channel.receive(data):
                self._heard(frame)
        else:
            self._is_gone = True
            self._loop.forget(self._port)
            self._gone()
