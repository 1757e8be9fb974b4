"""Telling a person what happens, without ever waiting for the terminal.

Whoever reads standard error may stop: Ctrl-S, a pager, a pipe into a program that hangs. Then a
write blocks, and a supervisor that wrote by itself would hear neither Ctrl-C nor a timeout. So a
thread tells the events. How many can wait for it is bounded by the events' own ceiling
(`wgcell.cell.listening`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from wgcell.cell.events import Event

__all__ = ["Aside"]

PATIENCE = 5.0
"""Seconds without an event told, at the end, after which a reader is given up."""


class Aside:
    """Calls ``tell`` with each event, in their order, in a thread of its own."""

    def __init__(self, tell: Callable[[Event], None], patience: float = PATIENCE) -> None:
        self._tell = tell
        self._patience = patience
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._told = threading.Condition()
        self._count = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._carry, name="aside", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Have ``event`` told; does not wait."""
        self._events.put(event)

    def close(self) -> bool:
        """Wait until all is told, but not for a reader who does not read: then False.

        Raises what ``tell`` raised.
        """
        self._events.put(None)
        with self._told:
            while self._thread.is_alive():
                before = self._count
                self._told.wait(self._patience)
                if self._count == before and self._thread.is_alive():
                    return False
        if self._failure is not None:
            raise self._failure
        return True

    def _carry(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._tell(event)
                self._step()
        except Exception as error:
            self._failure = error
        finally:
            self._step()

    def _step(self) -> None:
        with self._told:
            self._count += 1
            self._told.notify_all()
