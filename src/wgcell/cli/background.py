"""A thread that writes wgcell's own lines while a cell runs.

Standard error may be a pipe that is not read, or a terminal that was stopped (Ctrl-S). A write then
blocks. The supervisor's loop must not block, because it handles signals, timers and the guest. So a
running cell's lines go to a queue. Lines that can't be written in time are lost, as they would be
without a reader; no cell waits for them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

__all__ = ["PATIENCE", "BackgroundWriter"]

PATIENCE = 3.0
"""Seconds without progress after which `BackgroundWriter.finish` gives the reader up."""

MOST_WAITING = 1 << 20
"""Characters in the queue; more are lost."""


class BackgroundWriter:
    """Writes texts in order, by ``write``, which may block and may raise OSError."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._texts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._waiting = 0
        self._unwritten = 0
        self._progressed = 0.0
        self._given_up = False
        threading.Thread(target=self._write_all, name="background writer", daemon=True).start()

    def write(self, text: str) -> None:
        """Queue ``text``; never blocks."""
        with self._changed:
            if self._given_up or self._waiting + len(text) > MOST_WAITING:
                return
            self._waiting += len(text)
            self._unwritten += 1
        self._texts.put(text)

    def finish(self, patience: float = PATIENCE) -> bool:
        """Wait until all texts are written; whether they are.

        Waits ``patience`` seconds at most without progress. Then the reader is given up, and later
        texts are lost.
        """
        with self._changed:
            self._progressed = max(self._progressed, time.monotonic())
            while self._unwritten and not self._given_up:
                left = self._progressed + patience - time.monotonic()
                if left <= 0:
                    self._given_up = True
                else:
                    self._changed.wait(left)
            return not self._given_up

    def _write_all(self) -> None:
        while True:
            text = self._texts.get()
            try:
                self._write(text)
            except (OSError, ValueError):
                pass  # a line that can't be written is no error
            finally:
                with self._changed:
                    self._waiting -= len(text)
                    self._unwritten -= 1
                    self._progressed = time.monotonic()
                    self._changed.notify_all()
