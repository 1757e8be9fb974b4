"""How a frame is known again outside. Shared by the oracle and by the player in the guest."""

from __future__ import annotations

__all__ = ["mark_of"]


def mark_of(frame: bytes) -> bytes:
    """The part of a frame by which a capture knows it again.

    Its end, and never the headers: the kernel may take tags off before a capture sees a frame, and
    what leaks through a relay is the payload alone. Of a frame with next to no payload, more.
    """
    payload = len(frame) - 42
    if payload >= 16:
        return frame[-min(payload, 48) :]
    return frame[22:] or frame
