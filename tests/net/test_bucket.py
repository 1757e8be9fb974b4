"""The token bucket."""

from __future__ import annotations

from wgcell.net.bucket import TokenBucket


def test_a_bucket() -> None:
    bucket = TokenBucket(8, 4)
    assert [bucket.take(100.0) for _ in range(5)] == [True] * 4 + [False]
    assert bucket.take(100.125)
    assert not bucket.take(99.0)
    assert bucket.wait(99.0, 16) == 2.0
