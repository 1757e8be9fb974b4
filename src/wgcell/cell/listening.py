"""How much a guest, a relay and a gateway can make the supervisor do by talking.

Each of them may repeat any of its words, as fast as it can write, for as long as the cell lives. So
all that its words lead to has a bound here:

- *causes*: of each cause one waits at most (`Causes`);
- *events*: of each kind so many a second, and of all kinds together so many bytes in a cell's life,
  after which one event, ``log_full``, says that no more are told (`Ceiling`). The first event of
  each kind is always told;
- *turns*: between two words everybody else in the loop has a turn (`fair`), so Ctrl-C, ``stop``
  and the job's timeout are heard in the midst of any flood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

from wgcell.cell.states import Cause
from wgcell.gateway.model.ratelimit import TokenBucket

__all__ = ["CHATTER_BYTES", "RATES", "RATE_OF_OTHERS", "Causes", "Ceiling", "Rate", "Told", "fair"]

CHATTER_BYTES = 16 << 20
"""Bytes of such events in a cell's life, beyond the first of each kind."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Events of a kind: so many ``a_second`` in the long run, and so many at once."""

    a_second: float
    at_once: int


RATES: Mapping[str, Rate] = MappingProxyType(
    {
        **dict.fromkeys(("flow", "flow_end"), Rate(5, 200)),
        # How many were not told; each time, the counts since the last.
        "unlogged": Rate(0.2, 4),
    }
)
RATE_OF_OTHERS = Rate(1, 20)
"""Handshakes, drops, refusals: an honest cell has a few an hour."""

Item = TypeVar("Item")


class Causes:
    """Causes that wait for the supervisor's loop, in the order they came, each at most once.

    The first reason given is kept: what comes again before anybody has acted changes nothing.
    """

    def __init__(self) -> None:
        self._waiting: dict[Cause, str] = {}
        self._there = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, cause: Cause, reason: str) -> None:
        """Add one, unless it waits already."""
        self._waiting.setdefault(cause, reason)
        self._there.set()

    def empty(self) -> bool:
        """Whether none waits."""
        return not self._waiting

    def take(self) -> tuple[Cause, str]:
        """The first, with its reason. Raises StopIteration if there is none."""
        cause = next(iter(self._waiting))
        reason = self._waiting.pop(cause)
        if not self._waiting:
            self._there.clear()
        return cause, reason

    async def get(self) -> tuple[Cause, str]:
        """Wait for the first."""
        await self._there.wait()
        return self.take()


class Told(Enum):
    """What becomes of an event."""

    YES = "yes"
    COUNTED = "counted"
    FULL = "full"
    """Counted, as all are from now on; that is said once."""


@dataclass(slots=True)
class Ceiling:
    """Which events are told of those that can be caused at will. Times are in seconds."""

    most: int = CHATTER_BYTES
    _spent: int = 0
    _full: bool = False
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    def first(self, kind: str) -> bool:
        """Whether none of that kind was asked about yet."""
        return kind not in self._buckets

    def admit(self, kind: str, size: int, now: float) -> Told:
        """Whether an event of that ``kind``, ``size`` bytes as a line, is told."""
        if self.first(kind):
            rate = RATES.get(kind, RATE_OF_OTHERS)
            self._buckets[kind] = TokenBucket(rate.a_second, rate.at_once)
            self._buckets[kind].take(now)
            return Told.YES
        if self._full or not self._buckets[kind].take(now):
            return Told.COUNTED
        if self._spent + size > self.most:
            self._full = True
            return Told.FULL
        self._spent += size
        return Told.YES


async def fair(words: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """``words``, and between two of them a turn for everybody else in the loop.

    A reader whose buffer is full gives none by itself.
    """
    async for word in words:
        yield word
        await asyncio.sleep(0)
