"""The gateway's bounds are token buckets."""

from __future__ import annotations

from wgcell.net.bucket import Bucket

__all__ = ["Bucket"]
