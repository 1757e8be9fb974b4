"""A cell's record, as a program reads it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wgcell.cell.control import words
from wgcell.cell.folder import Folder

__all__ = ["Event", "event_of", "lines", "recorded_end"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a cell's record."""

    name: str
    """As ``flow``, ``state``, ``ended``."""
    time: float
    """Seconds since the epoch."""
    seq: int
    """From 0 on, without a gap."""
    fields: Mapping[str, Any]
    """All of it, as the line in ``events.jsonl`` has it. What a guest has said in it may be
    hostile: it is bounded, and nothing else."""


def recorded_end(folder: Folder) -> words.Ended | None:
    """The end that a cell's record tells of, if it tells of one."""
    result = folder.read("result.json") or {}
    outcome, code, reason = (result.get(name) for name in ("outcome", "exit_code", "reason"))
    if not isinstance(outcome, str) or not isinstance(code, int):
        return None
    return words.Ended(outcome, code, str(reason or ""))


def event_of(line: bytes) -> Event:
    """The event that a line of the record is."""
    fields = json.loads(line)
    when = datetime.fromisoformat(str(fields["time"])).timestamp()
    return Event(str(fields["event"]), when, int(fields["seq"]), fields)


def lines(folder: Folder, since: int) -> list[bytes]:
    """The events' lines from that number on."""
    with contextlib.suppress(OSError), folder.open("events.jsonl") as file:
        return file.read().splitlines()[since:]
    return []
