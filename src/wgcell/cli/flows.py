"""A live table of flows, from the JSON lines of a gateway or of a cell's events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from wgcell.cli.terminal import console, out
from wgcell.display import one_line
from wgcell.errors import StateError
from wgcell.gateway.peer.tally import Tally
from wgcell.gateway.words import FAILED

__all__ = ["FlowTable", "follow", "line_of", "print_lines", "watch"]

_MOST_ROWS = 200
_MOST_OPEN = 8192
_LONGEST_LINE = 1 << 16


@dataclass(slots=True)
class _Row:
    peer: str
    what: str
    verdict: str
    rule: str
    count: int = 0
    open: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    last: float = 0.0

    def add(self, event: Mapping[str, object]) -> None:
        """Count one more flow, and show its rule, or its reason."""
        self.count += 1
        reason = event.get("reason")
        rule = reason if self.verdict == FAILED else event.get("rule") or reason
        self.rule = str(rule or "")


class FlowTable:
    """Flows gathered by peer, target and verdict, the latest last. Lines may be hostile."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], _Row] = {}
        self._number = 0.0
        self._open: dict[tuple[str, int], tuple[str, str, str]] = {}
        """Each allowed flow's row, until it ends."""

    def add(self, line: str) -> None:
        """Take one line of a log; a line that is no flow is ignored."""
        event = _flow(line)
        if event is None:
            return
        key = str(event.get("peer")), Tally.target(event), str(event.get("verdict"))
        row = self._rows.setdefault(key, _Row(*key, ""))
        self._number += 1
        row.last = self._number
        flow = key[0], _number(event.get("flow"))
        before = self._left(flow)
        if before is not row and before is not None:
            before.count -= 1  # a flow counts once, by its latest verdict
        if event["event"] == "flow_end":
            if before is not row and before is not None:
                row.add(event)
            row.bytes_out += _number(event.get("bytes_out"))
            row.bytes_in += _number(event.get("bytes_in"))
        else:
            row.add(event)
            if row.verdict == "allow":
                self._opened(flow, key, row)
        if before is not None and not before.count:
            self._rows.pop((before.peer, before.what, before.verdict), None)
        if len(self._rows) > _MOST_ROWS:
            oldest = min(self._rows.items(), key=lambda item: item[1].last)[0]
            del self._rows[oldest]

    def _left(self, flow: tuple[str, int]) -> _Row | None:
        """The row in which ``flow`` was open, which it is no longer; None if there is none."""
        began = self._open.pop(flow, None)
        row = None if began is None else self._rows.get(began)
        if row is not None:
            row.open -= 1
        return row

    def _opened(self, flow: tuple[str, int], key: tuple[str, str, str], row: _Row) -> None:
        row.open += 1
        self._open[flow] = key
        if len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def table(self, rows: int) -> Table:
        """The last ``rows`` of it, for a terminal."""
        made = Table(box=None, pad_edge=False)
        for head in ("peer", "to", "verdict", "flows", "open", "out", "in", "rule or reason"):
            made.add_column(
                head, justify="right" if head in ("flows", "open", "out", "in") else "left"
            )
        for row in sorted(self._rows.values(), key=lambda row: row.last)[-rows:]:
            colour = "green" if row.verdict == "allow" else "red"
            made.add_row(
                _plain(row.peer),
                _plain(row.what),
                Text(one_line(row.verdict, 10), style=colour),
                *(Text(str(n)) for n in (row.count, row.open)),
                *(Text(_size(n)) for n in (row.bytes_out, row.bytes_in)),
                _plain(row.rule),
            )
        return made


def _flow(line: str) -> dict[str, object] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_flow = isinstance(event, dict) and event.get("event") in ("flow", "flow_end")
    return event if is_flow else None


def _plain(text: str) -> Text:
    return Text(one_line(text, 80))


def _number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def follow(path: Path) -> Iterator[str]:
    """The lines of a growing file; empty ones while there are no new ones. Raises StateError.

    A file that was replaced, as logs are when they are rotated, is read from its beginning.
    """
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    kept = ""
    while True:
        with file:
            inode = path.stat().st_ino
            while True:
                part = file.readline(_LONGEST_LINE)
                kept += part
                if part.endswith("\n") or len(kept) >= _LONGEST_LINE:
                    yield kept
                    kept = ""
                if not part:
                    yield ""
                    if not path.exists() or path.stat().st_ino != inode:
                        break
        while not path.exists():
            yield ""
        file = path.open(encoding="utf-8", errors="replace")


Lives = Callable[[], bool]
"""Whether more may be written."""


def _lines(path: Path, lives: Lives) -> Iterator[str]:
    """`follow`, until no more can come. Raises StateError."""
    last = not lives()
    for line in follow(path):
        yield line
        if not line:
            if last:
                return
            # Lines that were written before the writer's end are still read.
            last = not lives()


def line_of(line: str) -> str:
    """A log's line for a reader; empty if it is no flow. Lines may be hostile."""
    event = _flow(line)
    if event is None:
        return ""
    ended = event["event"] == "flow_end"
    failed = event.get("verdict") == FAILED
    became = Tally.fate(event) if failed else "ended" if ended else str(event.get("verdict"))
    words = [str(event.get("peer")), became]
    words.append(Tally.target(event))
    if ended and not failed:
        sent, back = _number(event.get("bytes_out")), _number(event.get("bytes_in"))
        words.append(f"{_size(sent)} out, {_size(back)} in")
    rule = str(event.get("reason") if ended else event.get("rule") or event.get("reason") or "")
    return "  ".join(_plain(word).plain for word in (*words, rule))


def print_lines(path: Path, lives: Lives) -> None:
    """Print each flow as a line, until no more can come."""
    for line in _lines(path, lives):
        if shown := line_of(line):
            out(shown, flush=True)
        if not line:
            time.sleep(0.25)


def watch(path: Path, lives: Lives) -> None:
    """Show the table until no more can come."""
    flows = FlowTable()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        shown = 0.0
        for line in _lines(path, lives):
            if line:
                flows.add(line)
            if not line or time.monotonic() - shown > 0.5:
                live.update(flows.table(max(5, console.size.height - 3)), refresh=True)
                shown = time.monotonic()
            if not line:
                time.sleep(0.25)
