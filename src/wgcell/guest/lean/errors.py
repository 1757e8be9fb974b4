"""`wgcell.errors`, as far as the guest raises any."""

from __future__ import annotations

__all__ = ["GuestError"]


class GuestError(Exception):
    """The other end broke the protocol, or this guest could not be set up."""
