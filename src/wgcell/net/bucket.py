"""A token bucket: a rate in the long run, and a burst. Pure: time is an argument, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TokenBucket"]


@dataclass(slots=True)
class TokenBucket:
    """Gets ``rate`` tokens a second, and holds at most ``burst``; full at first."""

    rate: float
    burst: float
    _tokens: float = -1.0
    _last: float = 0.0

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take ``tokens`` if the bucket has as many."""
        self._fill(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def wait(self, now: float, tokens: float) -> float:
        """Take ``tokens``, on credit if need be. Returns the seconds until the debt is paid."""
        self._fill(now)
        self._tokens -= tokens
        return max(0.0, -self._tokens / self.rate)

    def _fill(self, now: float) -> None:
        if self._last == 0.0 and self._tokens == -1.0:
            self._tokens = self.burst
        else:
            # A clock that went back gives nothing.
            self._tokens = min(self.burst, self._tokens + max(0.0, now - self._last) * self.rate)
        self._last = now
