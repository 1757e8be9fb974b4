"""wgcell's own words while a cell runs: a thread says them.

Standard error may be a pipe that nobody reads on, or a terminal that was stopped (Ctrl-S). A write
then waits, and whoever writes waits with it: the supervisor's loop may not, for it hears signals,
clocks and the guest. So the words of a running cell are put on a queue. What can't be said in time
is lost, as it is where nobody reads at all; no cell waits for it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

__all__ = ["PATIENCE", "Voice"]

PATIENCE = 3.0
"""Seconds without a word taken, at the end, after which whoever listens is given up."""

MOST_WAITING = 1 << 20
"""Characters that wait to be said; more are lost."""


class Voice:
    """Says texts in order, by ``write``, which may take as long as it likes and raise OSError."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._texts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._waiting = 0
        self._unsaid = 0
        self._moved = 0.0
        self._given_up = False
        threading.Thread(target=self._speak, name="voice", daemon=True).start()

    def say(self, text: str) -> None:
        """Say ``text`` soon; does not wait."""
        with self._changed:
            if self._given_up or self._waiting + len(text) > MOST_WAITING:
                return
            self._waiting += len(text)
            self._unsaid += 1
        self._texts.put(text)

    def finish(self, patience: float = PATIENCE) -> bool:
        """Wait until all is said, but not for one who does not listen; whether it is.

        What comes after that, from one who was given up, is lost.
        """
        with self._changed:
            self._moved = max(self._moved, time.monotonic())
            while self._unsaid and not self._given_up:
                left = self._moved + patience - time.monotonic()
                if left <= 0:
                    self._given_up = True
                else:
                    self._changed.wait(left)
            return not self._given_up

    def _speak(self) -> None:
        while True:
            text = self._texts.get()
            try:
                self._write(text)
            except (OSError, ValueError):
                pass  # words that can't be said are no error
            finally:
                with self._changed:
                    self._waiting -= len(text)
                    self._unsaid -= 1
                    self._moved = time.monotonic()
                    self._changed.notify_all()
