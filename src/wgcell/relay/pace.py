"""How fast one way may be: a token bucket that may go into debt, and says how long to wait.

A read is not cut to what is left: it is paid for afterwards, by not reading again until the debt is
worked off. Nothing is dropped here. QEMU's frames wait in QEMU, and its guest's TCP finds its pace;
the endpoint's datagrams wait in the socket's buffer and are lost beyond it, as on any slow link.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BURST", "Pace"]

BURST = 0.05
"""Seconds of the rate that may pass at once after a silence, and be read at a time."""
_LEAST_READ = 16_384
"""Bytes: a whole frame must always fit, and a read a frame would be a waste."""


@dataclass(slots=True)
class Pace:
    """``rate`` is in bytes a second, more than 0. Time is an argument, in seconds."""

    rate: float
    _credit: float = field(init=False)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._credit = self.rate * BURST

    @property
    def read(self) -> int:
        """The most bytes to read at a time."""
        return max(_LEAST_READ, int(self.rate * BURST))

    def spend(self, count: int, now: float) -> float:
        """So many bytes have passed; how long to wait before the next may, 0 for not at all."""
        earned = max(0.0, now - self._at) * self.rate
        self._credit = min(self.rate * BURST, self._credit + earned) - count
        self._at = now
        return max(0.0, -self._credit / self.rate)
