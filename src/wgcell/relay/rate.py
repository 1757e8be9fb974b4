"""The rate limiter of one direction: a token bucket that may go into debt.

A read is not cut to the tokens that are left. It is paid for afterwards: the relay does not read
again until the debt is worked off. No byte is dropped here. QEMU's frames wait in QEMU, and the
guest's TCP adapts; the endpoint's datagrams wait in the socket's buffer and are lost beyond it, as
on any slow link.
"""

from __future__ import annotations

from wgcell.net.bucket import TokenBucket

__all__ = ["BURST", "RateLimiter"]

BURST = 0.05
"""Seconds of the rate that may pass at once after a silence, and be read at a time."""
_LEAST_READ = 16_384
"""Bytes: a whole frame must always fit, and a read a frame would be a waste."""


class RateLimiter:
    """``rate`` is in bytes a second, more than 0. Time is an argument, in seconds."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._bucket = TokenBucket(rate, rate * BURST)

    @property
    def read(self) -> int:
        """The most bytes to read at a time."""
        return max(_LEAST_READ, int(self._rate * BURST))

    def spend(self, count: int, now: float) -> float:
        """So many bytes have passed; how long to wait before the next may, 0 for not at all."""
        return self._bucket.wait(now, count)
