"""The cell's record: one JSON object a line, each holding the SHA-256 of the line before.

A line is on the disk before anyone is told of it, so what a user has seen is what an auditor will
find, whatever died in between. The chain shows that no line was changed, taken out or put in; it
can't show that lines were cut off the end, nor stop one who rewrites the whole file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wgcell.errors import StateError

__all__ = ["GENESIS", "EventLog", "broken_link"]

GENESIS = "0" * 64
"""``prev`` of the first line."""

CHATTER_BURST = 200
CHATTER_RATE = 5.0
CHATTER_MOST = 50_000
"""Events that the guest can cause at will: so many at once, then so many a second, so many in all.
Each is a flush to disk, and a guest must neither fill the disk nor hold up who watches it."""


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


class EventLog:
    """Appends to ``events.jsonl``; ``tell`` is called with each line once it is on the disk."""

    def __init__(self, path: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        self._path = path
        self._tell = tell
        self._seq = 0
        self._prev = GENESIS
        self._tokens = float(CHATTER_BURST)
        self._filled = time.monotonic()
        self._chatter = 0
        self._unlogged: Counter[str] = Counter()

    def chatter(self, event: str, **fields: Any) -> bool:
        """`append` for what the guest can cause at will; False if it was only counted."""
        now = time.monotonic()
        self._tokens = min(CHATTER_BURST, self._tokens + (now - self._filled) * CHATTER_RATE)
        self._filled = now
        if self._tokens < 1 or self._chatter >= CHATTER_MOST:
            self._unlogged[event] += 1
            return False
        self._tokens -= 1
        self._chatter += 1
        self._tell_unlogged()
        self.append(event, **fields)
        return True

    def _tell_unlogged(self) -> None:
        if self._unlogged:
            counts = dict(self._unlogged)
            self._unlogged.clear()
            self.append("unlogged", counts=counts)

    def append(self, event: str, **fields: Any) -> None:
        """Write one event. Raises StateError when the disk is full or read-only."""
        entry: dict[str, Any] = {
            "seq": self._seq,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
            **fields,
            "prev": self._prev,
        }
        line = json.dumps(entry, separators=(",", ":"), default=str).encode()
        try:
            whole = line + b"\n"
            if os.write(self._fd, whole) != len(whole):
                raise OSError(28, "No space left on device")
            os.fdatasync(self._fd)
        except OSError as error:
            raise StateError(
                f"{self._path}: {error.strerror}",
                mend="free some space, or choose another folder with --state-dir",
            ) from error
        self._seq += 1
        self._prev = _digest(line)
        self._tell(entry)

    def close(self) -> None:
        """Close the file; nothing may be appended after."""
        with contextlib.suppress(StateError):
            self._tell_unlogged()
        os.close(self._fd)


def broken_link(lines: Iterable[bytes]) -> int | None:
    """The number of the first line (from 1) that the chain does not hold for; None if it holds."""
    prev = GENESIS
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip(b"\n")
        try:
            entry = json.loads(line)
        except ValueError:
            return number
        if not isinstance(entry, dict) or entry.get("prev") != prev:
            return number
        if entry.get("seq") != number - 1:
            return number
        prev = _digest(line)
    return None
