"""``wgcell ps``: the cells, as a table, as JSON, or in a format."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder, all_cells
from wgcell.cli.cells import IN_WORDS, StateDir, folders, frozen_hint
from wgcell.cli.terminal import as_json, clean, console, out
from wgcell.display import one_line
from wgcell.errors import InputError, StateError

__all__ = ["ps"]

_PATIENCE = 1.0
"""Seconds that a cell has to say its state before its record is read for it."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One cell in the list; the fields of ``--json`` and of ``--format``."""

    cell: str
    name: str
    user: str
    status: str
    words: str
    started: str
    age: int
    """Seconds since its start."""
    ended: str | None
    exit: int | None
    reason: str
    command: str
    folder: str
    pid: int | None
    """The supervisor's, of a cell that runs."""


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _status(cell: Folder) -> str:
    """The cell's state in a word, from the cell itself if it answers."""
    with contextlib.suppress(Unreachable, StateError):
        for word in ask(cell, words.State(), patience=_PATIENCE):
            if isinstance(word, words.Status):
                return word.state
    return cell.status()


def _row(cell: Folder, now: float) -> _Row:
    job, result, status = cell.read("job.json") or {}, cell.read("result.json") or {}, _status(cell)
    command = job.get("command")
    code = result.get("exit_code")
    return _Row(
        cell=cell.id,
        name=cell.name,
        user=cell.user,
        status=one_line(status, 40),
        words=IN_WORDS.get(status, one_line(status, 40)),
        started=_when(cell.started),
        age=max(0, round(now - cell.started)),
        ended=None if cell.ended is None else _when(cell.ended),
        exit=code if isinstance(code, int) else None,
        reason=one_line(result.get("reason") or "", 200),
        command=" ".join(map(str, command)) if isinstance(command, list) else "",
        folder=str(cell.path),
        pid=cell.supervisor(),
    )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


_FIELDS = tuple(_Row.__dataclass_fields__)
_PLACE = re.compile(r"\{\{ *\.?([A-Za-z]*) *\}\}")


def _formatter(template: str) -> Callable[[_Row], str]:
    """A template of Docker's kind, ``{{.Cell}} {{.Exit}}``. Raises InputError."""
    for name in _PLACE.findall(template):
        if name.lower() not in _FIELDS:
            allowed = ", ".join(f"{{{{.{field.title()}}}}}" for field in _FIELDS)
            raise InputError(
                f"command line: --format: found {name!r}; allowed: json, table, or a text with "
                f"{allowed}"
            )
    text = template.replace("\\t", "\t").replace("\\n", "\n")

    def shown(row: _Row) -> str:
        def value(match: re.Match[str]) -> str:
            found = getattr(row, match[1].lower())
            return "" if found is None else one_line(found)

        return _PLACE.sub(value, text)

    return shown


def ps(
    everything: Annotated[bool, typer.Option("-a", "--all", help="Ended cells too.")] = False,
    as_json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    template: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, json, or a template such as '{{.Cell}} {{.Status}} {{.Exit}}'.",
        ),
    ] = "table",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the ids.")] = False,
    state_dir: StateDir = None,
) -> None:
    """List cells: those that run, or with --all every one there is a folder of.

    Root sees all users' cells, unless --state-dir or WGCELL_STATE_DIR names a folder.
    """
    now = time.time()
    if quiet:
        template = "{{.Cell}}"
    formatted = None if template in ("table", "json") else _formatter(template)
    cells = [cell for cell in all_cells(*folders(state_dir)) if everything or cell.alive]
    rows = [_row(cell, now) for cell in cells]
    if as_json_ or template == "json":
        for row in rows:
            out(as_json({field: getattr(row, field) for field in _FIELDS}))
    elif formatted is not None:
        for row in rows:
            out(formatted(row))
    else:
        _table(rows)
    for cell, row in zip(cells, rows, strict=True):
        if row.status == "frozen":
            console.print(f"[yellow]wgcell:[/] {clean(frozen_hint(cell))}")


def _table(rows: Sequence[_Row]) -> None:
    heads = ("CELL", "USER", "STATUS", "AGE", "EXIT", "COMMAND")
    lines = [
        (
            one_line(row.cell),
            one_line(row.user, 16),
            row.words,
            _age(row.age),
            "-" if row.exit is None else str(row.exit),
            one_line(row.command, 60),
        )
        for row in rows
    ]
    wide = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, *lines):
        cells = (text.ljust(width) for text, width in zip(line, wide, strict=True))
        out("  ".join(cells).rstrip())
