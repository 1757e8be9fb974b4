"""Whether the guest is set up as it was asked to be. No I/O.

Two sides must agree: the relay, which sees the guest's frames, and the guest's own reports. The
reports alone verify nothing; a report that differs from what was asked is believed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wgcell.guest import verify
from wgcell.guest.config import GuestConfig

__all__ = ["Verification"]


@dataclass(slots=True)
class Verification:
    """The reports of both sides so far."""

    config: GuestConfig | None = None
    """The guest's configuration."""
    greeted: bool = False
    """The guest has said ``hello``."""
    guest_ready: bool = False
    relay_verified: bool = False
    """The relay has seen the guest's handshake and transport both ways."""
    tampered: bool = False
    reports: dict[str, str] = field(default_factory=dict)
    _judged: dict[str, str] = field(default_factory=dict)
    """The reports as they were when they were last compared."""

    def verdict(self) -> str | None:
        """The difference from the configuration, empty if there is none; None if there is no new
        report to judge."""
        if not (self.relay_verified and self.guest_ready and self.config is not None):
            return None
        if self._judged == self.reports:
            return None
        self._judged = dict(self.reports)
        return verify.mismatch(self.config, self.reports) or ""
