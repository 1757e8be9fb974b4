"""The gateway's bounds are token buckets."""

from __future__ import annotations

from wgcell.net.bucket import TokenBucket

__all__ = ["TokenBucket"]
