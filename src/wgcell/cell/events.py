"""The cell's record: one JSON object a line, each with the SHA-256 of the line before.

A line is on the disk before anybody sees it, so an auditor finds what a user has seen, whatever
died in between. Events that the guest or the endpoint can cause at will (`EventLog.log_bounded`)
are written before they are shown, and are on the disk `SYNC_EVERY` seconds later: a flood of them
does not wait for the disk line by line. The chain shows that no line was changed, taken out or put
in. It can't show that lines were cut off the end, nor stop somebody who rewrites the whole file.

Every line has the cell's id, the first one also its folder. A reader gets each line's very bytes
too (`Event.line`), so that the output of `--json` can be hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from wgcell.cell.listening import Admission, Ceiling
from wgcell.errors import StateError

__all__ = ["GENESIS", "Event", "EventLog", "broken_link", "first_bad"]

GENESIS = "0" * 64
"""``prev`` of the first line."""

SYNC_EVERY = 1.0
"""Seconds after which what was written is on the disk."""
_LINE_OVERHEAD = 300
"""Bytes of a line beside an event's own fields, at most: the folder's name is not longer."""


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


class Event(dict[str, object]):
    """One event's fields, and the line that they are on the disk, without its newline."""

    line: bytes = b""


class EventLog:
    """Appends to ``events.jsonl``; ``report`` is called with each line once it is on the disk.

    The file lies in the cell's folder, whose name is the cell's id.
    """

    def __init__(
        self,
        path: Path,
        report: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        self._path = path
        self._report = report
        self._seq = 0
        self._size = 0
        self._prev = GENESIS
        self._clock = clock
        self._synced = clock()
        self._dirty = False
        self._ceiling = Ceiling()
        self._unlogged: Counter[str] = Counter()

    def log_bounded(self, event: str, **fields: object) -> bool:
        """`append` for events that a guest, a relay or a gateway can cause at will.

        Bounded by a `Ceiling`; False if it was only counted.
        """
        first = self._ceiling.first(event)
        admission = self._admitted(event, fields)
        if admission is not Admission.WRITTEN:
            self._unlogged[event] += 1
            if admission is Admission.FULL:
                self.append("log_full", bytes=self._ceiling.most)
            return False
        if self._unlogged:
            counts = dict(self._unlogged)
            if self._admitted("unlogged", {"counts": counts}) is Admission.WRITTEN:
                self._unlogged.clear()
                self._write("unlogged", {"counts": counts}, sync=False)
        self._write(event, fields, sync=first or self._clock() - self._synced >= SYNC_EVERY)
        return True

    def append_unlogged(self) -> None:
        """Record the number of events that were only counted, if any. Raises StateError."""
        if self._unlogged:
            self.append("unlogged", counts=dict(self._unlogged))
            self._unlogged.clear()

    def _admitted(self, event: str, fields: Mapping[str, object]) -> Admission:
        size = len(json.dumps(fields, default=str)) + _LINE_OVERHEAD
        return self._ceiling.admit(event, size, self._clock())

    def append(self, event: str, **fields: object) -> None:
        """Write one event. Raises StateError when the disk is full or read-only."""
        self._write(event, fields, sync=True)

    def settle(self) -> None:
        """Have on the disk what was written. Raises StateError."""
        if self._dirty:
            try:
                self._sync()
            except OSError as error:
                raise self._failed(error) from error

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        self._synced, self._dirty = self._clock(), False

    def _failed(self, error: OSError) -> StateError:
        return StateError(
            f"{self._path}: {error.strerror}",
            hint="free some space, or choose another folder with --state-dir",
        )

    def _write(self, event: str, fields: Mapping[str, object], *, sync: bool) -> None:
        entry = Event(
            seq=self._seq,
            time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            cell=self._path.parent.name,
            event=event,
        )
        if self._seq == 0:
            entry["folder"] = str(self._path.parent)
        entry |= {**fields, "prev": self._prev}
        line = entry.line = json.dumps(entry, separators=(",", ":"), default=str).encode()
        try:
            whole = line + b"\n"
            if os.write(self._fd, whole) != len(whole):
                raise OSError(28, "No space left on device")
            self._dirty = True
            if sync:
                self._sync()
        except OSError as error:
            # Half a line would take the next one's beginning; none is better.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise self._failed(error) from error
        self._size += len(whole)
        self._seq += 1
        self._prev = _digest(line)
        self._report(entry)

    def close(self) -> None:
        """Close the file; nothing may be appended after. More than once does no harm."""
        if self._fd < 0:
            return
        with contextlib.suppress(StateError):
            self.append_unlogged()
            self.settle()
        os.close(self._fd)
        self._fd = -1


def first_bad(lines: Iterable[bytes]) -> tuple[int, str] | None:
    """The first line (its number, from 1) that the chain does not hold for, and why; else None."""
    prev = GENESIS
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip(b"\n")
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return number, "it is no JSON, or was cut off"
        if not isinstance(entry, dict):
            return number, "it is no event"
        if entry.get("prev") != prev:
            return number, (
                "its prev is not the SHA-256 of the line before: that one was changed, or lines "
                "were taken out or put in between"
            )
        if entry.get("seq") != number - 1:
            return number, f"its seq is not {number - 1}"
        prev = _digest(line)
    return None


def broken_link(lines: Iterable[bytes]) -> int | None:
    """The number of the first line (from 1) that the chain does not hold for; None if it holds."""
    bad = first_bad(lines)
    return None if bad is None else bad[0]
