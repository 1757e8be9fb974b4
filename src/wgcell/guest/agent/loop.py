"""The agent's waiting: for descriptors and times. One thread, no asyncio."""

from __future__ import annotations

import select
import time

__all__ = ["READABLE", "WRITABLE", "Loop"]

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """Calls the functions that are due, in order."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, descriptor: int, kind: int, call: Callable[[], None]) -> None:
        """Call when ``descriptor`` is ready, each time, instead of what was called before."""
        if descriptor in self._calls:
            self._poll.modify(descriptor, kind)
        else:
            self._poll.register(descriptor, kind)
        self._calls[descriptor] = call

    def forget(self, descriptor: int) -> None:
        """Watch it no more; before it is closed."""
        del self._calls[descriptor]
        self._poll.unregister(descriptor)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once, so many seconds from now."""
        self._timers.append((time.monotonic() + seconds, call))

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Wait and call, as long as ``goes_on``."""
        while goes_on():
            now = time.monotonic()
            due = [timer for timer in self._timers if timer[0] <= now]
            if due:
                self._timers = [timer for timer in self._timers if timer[0] > now]
                for _, call in due:
                    call()
                continue
            first = min((at for at, _ in self._timers), default=None)
            ready = self._poll.poll(None if first is None else first - now)
            calls = [(one, self._calls[one]) for one, _ in ready if one in self._calls]
            for descriptor, wanted in calls:
                # One before it may have forgotten this one, or closed it and opened another.
                if self._calls.get(descriptor) is wanted:
                    wanted()
