"""The one way in which a test waits: for the thing, with a generous end.

A fixed sleep is either too short on a busy machine or too long on a quiet one. So no test sleeps:
`until` and `soon` wait for what is to happen. The others say why time itself is meant: `lull`
that nothing happens for a while, `pace` that something is done slowly. `tests/test_waiting.py`
holds that nothing else in the tests sleeps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

GENEROUS = 60.0
"""Seconds that a thing may take on a busy machine before a test gives it up."""
_LOOK = 0.01

T = TypeVar("T")


def until(
    happened: Callable[[], T], what: str = "", within: float = GENEROUS, every: float = _LOOK
) -> T:
    """Wait until ``happened`` says something true, and return that.

    It is asked ``every`` so many seconds. Raises AssertionError with ``what`` after ``within``
    seconds.
    """
    end = time.monotonic() + within
    while True:
        if said := happened():
            return said
        assert time.monotonic() < end, f"not within {within:g} s: {what or happened}"
        time.sleep(every)


async def soon(
    happened: Callable[[], T], what: str = "", within: float = GENEROUS, every: float = _LOOK
) -> T:
    """`until` in an event loop."""
    end = time.monotonic() + within
    while True:
        if said := happened():
            return said
        assert time.monotonic() < end, f"not within {within:g} s: {what or happened}"
        await asyncio.sleep(every)


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended: no zombie."""
    try:
        # Its name, in parentheses, may hold spaces and parentheses: proc_pid_stat(5).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def lull(seconds: float) -> None:
    """Let ``seconds`` pass in which something must not happen, or whose length is the subject."""
    time.sleep(seconds)


async def lulled(seconds: float) -> None:
    """`lull` in an event loop."""
    await asyncio.sleep(seconds)


def pace(seconds: float) -> None:
    """Do the next thing no sooner: a slow reader, a sender that leaves room for others."""
    time.sleep(seconds)


async def paced(seconds: float) -> None:
    """`pace` in an event loop."""
    await asyncio.sleep(seconds)


async def forever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()
