"""What the workload prints, for whoever looks on: its log, and the last bytes in memory.

A log keeps the first bytes of a stream and the memory the last ones. A reader that is so slow that
it falls between both misses some, and learns how many; it holds up neither the workload nor
another reader.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from wgcell.cell.folder import LOG_CAP, CappedLog
from wgcell.guest.channel import WINDOW

__all__ = ["Tap"]


class Tap:
    """One stream's. `write` is called in the stream's thread, all else in the event loop."""

    def __init__(self, path: Path, wake: Callable[[], None], cap: int = LOG_CAP) -> None:
        """``wake`` is called, in the stream's thread, when there is more to read."""
        self._path = path
        self._log = CappedLog(path, cap)
        self._kept = cap
        self._wake = wake
        self._lock = threading.Lock()
        self._recent: deque[bytes] = deque()
        self._recent_at = 0
        """Where in the stream the memory begins."""
        self._end = 0

    @property
    def end(self) -> int:
        """Bytes of the stream so far."""
        return self._end

    def write(self, data: bytes) -> None:
        """More of the stream. Raises StateError if the log can't be written."""
        try:
            self._log.write(data)
        finally:
            with self._lock:
                self._recent.append(data)
                self._end += len(data)
                while self._end - self._recent_at - len(self._recent[0]) >= WINDOW:
                    self._recent_at += len(self._recent.popleft())
            self._wake()

    def close(self) -> None:
        """Close the log. Raises OSError."""
        self._log.close()

    def read(self, at: int, most: int) -> tuple[int, bytes]:
        """Up to ``most`` bytes that stand at ``at`` or, if those are lost, at the next place where
        there are some; and that place. No bytes: there are none yet."""
        with self._lock:
            if at < self._recent_at:
                kept = min(self._kept, self._recent_at) - at
                at = at if kept > 0 else self._recent_at
                most = min(most, kept) if kept > 0 else most
            if at >= self._recent_at:
                return at, self._of_memory(at, most)
        return self._of_log(at, most)

    def _of_memory(self, at: int, most: int) -> bytes:
        place = self._recent_at
        for piece in self._recent:
            if at < place + len(piece):
                return piece[at - place : at - place + most]
            place += len(piece)
        return b""

    def _of_log(self, at: int, most: int) -> tuple[int, bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(at)
                data = file.read(most)
        except OSError:
            data = b""
        if data:
            return at, data
        # The log could not be written, or is gone.
        with self._lock:
            return self._recent_at, self._of_memory(self._recent_at, most)
