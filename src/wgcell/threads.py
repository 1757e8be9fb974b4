"""Work in a thread whose result owns something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["made_in_thread"]

T = TypeVar("T")


async def made_in_thread(make: Callable[[], T], discard: Callable[[T], None]) -> T:
    """What ``make`` returns in a thread.

    A thread can't be cancelled. If the caller is, the thread is waited for, and what it made goes
    to ``discard``: otherwise nobody would know of it.
    """
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait((making,))
        if not making.cancelled() and making.exception() is None:
            discard(making.result())
        raise
