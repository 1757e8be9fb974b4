"""Events into the core, its actions out: in order, all of them, whatever fails meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable

from wgcell.cell.core import Core
from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.ending import words
from wgcell.cell.states import Cause
from wgcell.errors import StateError

__all__ = ["Dispatcher"]


class Dispatcher:
    """One cell's. ``look`` gives the streams' progress, which the core gets before each event.

    ``execute`` does an action; ``over`` is called when the record has failed.
    """

    def __init__(
        self,
        core: Core,
        look: Callable[[], seen.Looked],
        execute: Callable[[do.Action], None],
        over: Callable[[], None],
    ) -> None:
        self.record_error: StateError | None = None
        """Why the record could not be written: the cell must not live on."""
        self._core, self._look, self._execute, self._over = core, look, execute, over
        self._waiting: deque[seen.Event] = deque()
        self._feeding = False

    def feed(self, event: seen.Event) -> None:
        """Give the core ``event``, and execute its actions: all of them, even if one fails.

        An event that an action causes (a caller's ``report`` may cancel the cell) is fed when all
        actions of the present one are done. Raises the first of the failures.
        """
        self._waiting.append(event)
        if self._feeding:
            return
        failed: Exception | None = None
        self._feeding = True
        try:
            while self._waiting:
                failed = self._fed(self._waiting.popleft(), failed)
        finally:
            self._feeding = False
        if failed is not None:
            raise failed

    def post(self, event: seen.Event) -> None:
        """`feed`, for callbacks of the loop: an error is a cause, and not a traceback."""
        try:
            self.feed(event)
        except Exception as error:
            with contextlib.suppress(Exception):
                self.feed(seen.Caused(Cause.HOST_FAULTED, words(error)))

    def record_failed(self, error: StateError) -> None:
        """The record could not be written. From now on only its own actions are executed."""
        self.record_error = self.record_error or error
        self._core.handle(seen.Crashed(str(error)), time.monotonic())
        self._over()

    def require_record(self) -> None:
        """Raise `record_error`, if there is one."""
        if self.record_error is not None:
            raise self.record_error

    def _fed(self, event: seen.Event, failed: Exception | None) -> Exception | None:
        """The first failure, ``failed`` if there was one before."""
        actions: list[do.Action] = []
        for one in (self._look(), event):
            try:
                actions += self._core.handle(one, time.monotonic())
            except Exception as error:
                failed = failed or error
        for action in actions:
            if self.record_error and not isinstance(action, do.Record | do.EndMachine):
                continue  # an action must be on record before it is done
            try:
                self._execute(action)
            except Exception as error:
                failed = failed or error
        return failed
