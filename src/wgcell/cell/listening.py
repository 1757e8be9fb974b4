"""The bounds on the work that messages of a guest, a relay or a gateway make for the supervisor.

Each of them may repeat any of its messages, as fast as it can write, for as long as the cell lives.
So every effect of a message has a bound:

- *decisions*: the core makes them at once and keeps no queue (`wgcell.cell.core`);
- *events*: of each kind a number a second, and of all kinds together a number of bytes in a cell's
    life, after which one event, ``log_full``, says that no more are written (`Ceiling`). The first
    event of each kind is always written;
- *time in the loop*: between two messages every other task in the loop runs (`fair`), so Ctrl-C,
    ``stop`` and the job's timeout are heard in the midst of any flood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

from wgcell.net.bucket import TokenBucket

__all__ = ["BOUNDED_BYTES", "RATES", "RATE_OF_OTHERS", "Admission", "Ceiling", "Rate", "fair"]

BOUNDED_BYTES = 16 << 20
"""Bytes of such events in a cell's life, beyond the first of each kind."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Events of a kind: so many ``a_second`` in the long run, and so many at once."""

    a_second: float
    at_once: int


RATES: Mapping[str, Rate] = MappingProxyType(
    {
        **dict.fromkeys(("flow", "flow_end"), Rate(5, 200)),
        **dict.fromkeys(("session_opened", "session_exited"), Rate(5, 200)),
        # How many were not written; each time, the counts since the last.
        "unlogged": Rate(0.2, 4),
    }
)
RATE_OF_OTHERS = Rate(1, 20)
"""Handshakes, drops, refusals: an honest cell has a few an hour."""

Item = TypeVar("Item")


class Admission(Enum):
    """The fate of an event."""

    WRITTEN = "written"
    COUNTED = "counted"
    FULL = "full"
    """Counted, as all are from now on; that is reported once."""


@dataclass(slots=True)
class Ceiling:
    """The ceiling on events that can be caused at will. Times are in seconds."""

    most: int = BOUNDED_BYTES
    _spent: int = 0
    _full: bool = False
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    def first(self, kind: str) -> bool:
        """Whether none of that kind was asked about yet."""
        return kind not in self._buckets

    def admit(self, kind: str, size: int, now: float) -> Admission:
        """Whether an event of that ``kind``, ``size`` bytes as a line, is written."""
        if self.first(kind):
            rate = RATES.get(kind, RATE_OF_OTHERS)
            self._buckets[kind] = TokenBucket(rate.a_second, rate.at_once)
            self._buckets[kind].take(now)
            return Admission.WRITTEN
        if self._full or not self._buckets[kind].take(now):
            return Admission.COUNTED
        if self._spent + size > self.most:
            self._full = True
            return Admission.FULL
        self._spent += size
        return Admission.WRITTEN


async def fair(words: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """``words``, and between two of them a chance to run for everybody else in the loop.

    A reader whose buffer is full gives none by itself.
    """
    async for word in words:
        yield word
        await asyncio.sleep(0)
