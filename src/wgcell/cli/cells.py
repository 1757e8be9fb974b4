"""``ps``, ``logs``, ``events``, ``inspect``, ``stop``, ``rm``, ``prune``: the cells there are."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder, all_cells, find, state_folders
from wgcell.cell.units import parse_duration
from wgcell.cell.vouched import verify
from wgcell.cli import completion
from wgcell.cli.terminal import as_json, clean, console, out, printable, restore, writer
from wgcell.display import one_line
from wgcell.errors import InputError, StateError
from wgcell.home import expanded

__all__ = ["events", "frozen_hint", "inspect", "logs", "prune", "ps", "rm", "stop"]

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Where the cells' folders are.", show_default=False),
]
_CELL = "A cell's id, its name, or how its id begins."
Name = Annotated[str, typer.Argument(metavar="CELL", help=_CELL, autocompletion=completion.cells)]
Names = Annotated[
    list[str], typer.Argument(metavar="CELL…", help=_CELL, autocompletion=completion.cells)
]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on until the cell ends.")]

_LONGEST_LINE = 1 << 20
"""Bytes of an event that are waited for; a longer one is printed in pieces."""
EVENTS = "events.jsonl"
_PATIENCE = 1.0
"""Seconds that a cell has to say its state before its record is read for it."""
_LOOK_EVERY = 0.1
"""Seconds between looks at a file that may have grown, or a cell that may have ended."""

IN_WORDS = {
    "preparing": "being prepared",
    "consent": "waits for the endpoint",
    "booting": "booting",
    "verifying": "verifying the tunnel",
    "running": "running",
    "terminating": "being ended",
    "stopping": "bringing results home",
    "frozen": "frozen, waits for you",
    "died": "died without an end",
}
"""What `Folder.status` says of a cell that has no outcome, as people say it. An outcome is said by
its own name, here as in README.md, result.json and a run's last line."""


def _folders(state_dir: Path | None) -> tuple[Path, ...]:
    return state_folders(None if state_dir is None else expanded(state_dir))


@dataclass(frozen=True, slots=True)
class _Row:
    """One cell as ``ps`` tells it; the fields of ``--json`` and of ``--format``."""

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
    """In a word, from the cell itself if it answers."""
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
    cells = [cell for cell in all_cells(*_folders(state_dir)) if everything or cell.alive]
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


def frozen_hint(cell: Folder) -> str:
    """That a frozen machine waits, how to look into it, and how to end it."""
    pid = next((entry.get("pid") for entry in cell.told("booting")), None)
    memory = f"; its memory, as root: gcore -o FILE {pid}" if isinstance(pid, int) else ""
    return (
        f"{cell.id}: its machine is frozen and waits. Look: wgcell events {cell.id}, "
        f"wgcell logs --console {cell.id}{memory}. End: wgcell stop {cell.id}"
    )


def _followed(
    cell: Folder, names: Sequence[str], begins: dict[str, int]
) -> Iterator[tuple[str, bytes]]:
    """`_added` to the cell's end: what a cell that answers says, then what else is in the files."""
    try:
        for word in ask(cell, _question(names, begins), follow=True):
            match word:
                case words.Event():
                    name, data = EVENTS, word.line + b"\n"
                case words.Output():
                    name, data = f"{word.stream}.log", word.data
                case _:
                    continue
            begins[name] = begins.get(name, 0) + len(data)
            yield name, data
    except Unreachable:
        pass
    yield from _added(cell, names, follow=True, begins=begins)


def _question(names: Sequence[str], begins: Mapping[str, int]) -> words.Question:
    if EVENTS in names:
        return words.Events(0, follow=True)
    stdout, stderr, console = (begins.get(f"{name}.log", 0) for name in words.OUTPUTS)
    which = "console" if "console.log" in names else "workload"
    return words.Outputs(stdout, stderr, console, which, follow=True)


def _added(
    cell: Folder, names: Sequence[str], follow: bool, begins: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """Which file, and bytes of it from where it ``begins`` on; with ``follow``, until the cell has
    ended."""
    files: dict[str, BinaryIO] = {}
    try:
        while True:
            alive = follow and cell.alive
            for name in names:
                if name not in files:
                    try:
                        files[name] = cell.open(name)
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        raise StateError(f"{cell.path / name}: {error.strerror}") from error
                    files[name].seek(begins.get(name, 0))
                while data := files[name].read(65536):
                    yield name, data
            if not alive:
                return
            time.sleep(_LOOK_EVERY)
    finally:
        for file in files.values():
            file.close()


def _last(cell: Folder, name: str, lines: int) -> int:
    """Where a file's last so many lines begin. A log is 16 MiB at most."""
    try:
        with cell.open(name) as file:
            content = file.read()
    except OSError:
        return 0
    at = len(content.removesuffix(b"\n"))
    for _ in range(lines):
        at = content.rfind(b"\n", 0, max(at, 0))
        if at < 0:
            break
    return at + 1 if lines else len(content)


def logs(
    name: Name,
    follow: Follow = False,
    tail: Annotated[
        int | None, typer.Option("-n", "--tail", min=0, help="Only so many lines of each stream.")
    ] = None,
    machine: Annotated[
        bool, typer.Option("--console", help="The machine's console instead.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Print what the workload wrote: its stdout to stdout, its stderr to stderr."""
    cell = find(_folders(state_dir), name)
    write = {"stdout.log": writer(sys.stdout), "stderr.log": writer(sys.stderr)}
    if machine:
        write = {"console.log": write["stdout.log"]}
    try:
        begins = {} if tail is None else {file: _last(cell, file, tail) for file in write}
        follow_ = _followed(cell, tuple(write), begins)
        for file, data in follow_ if follow else _added(cell, tuple(write), False, begins):
            write[file](data)
    finally:
        restore()


def events(
    name: Name,
    follow: Follow = False,
    verify_: Annotated[
        bool,
        typer.Option("--verify", help="Check the chain, and the files it vouches for, instead."),
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Print a cell's events, one JSON object a line (try: wgcell events CELL | jq).

    --verify exits 0 if no line was changed, taken out or put in, and each file that the record
    vouches for (job, outputs, logs, result, evidence) has the digest that it states; else 1, with
    the first line that is wrong. It can't show that lines were cut off the end of a cell that
    died, nor stop someone who writes the whole file anew: keep the last digest elsewhere.
    """
    cell = find(_folders(state_dir), name)
    if verify_:
        found = verify(cell)
        for line in found.lines():
            out(one_line(line))
        raise typer.Exit(0 if found.good else 1)
    write = writer(sys.stdout)
    rest = b""
    whole = _followed(cell, (EVENTS,), {}) if follow else _added(cell, (EVENTS,), False, {})
    for _, data in whole:
        *lines, rest = (rest + data).split(b"\n")
        write(b"".join(_event_line(line) + b"\n" for line in lines))
        if len(rest) > _LONGEST_LINE:
            write(_event_line(rest))
            rest = b""
    if rest:
        write(_event_line(rest))


def _event_line(raw: bytes) -> bytes:
    """A line of ``events.jsonl`` for a reader: as it is, if wgcell has written it.

    In a folder of somebody else's it may be anything; what is no event is marked, so that it looks
    like no line of wgcell's.
    """
    line = printable(raw.removesuffix(b"\r"))
    return line if raw[:1] == b"{" else b"? " + line


def inspect(name: Name, state_dir: StateDir = None) -> None:
    """Print a cell's job, result and folder as one JSON object."""
    cell = find(_folders(state_dir), name)
    whole = {
        "cell": cell.id,
        "user": cell.user,
        "status": cell.status(),
        "started": datetime.fromtimestamp(cell.started, UTC).isoformat(timespec="seconds"),
        "folder": str(cell.path),
        "job": cell.read("job.json"),
        "result": cell.read("result.json"),
    }
    out(as_json(whole, indent=2))


def stop(
    names: Names,
    now: Annotated[
        bool, typer.Option("--now", help="At once: no grace period, no results.")
    ] = False,
    wait: Annotated[
        float | None,
        typer.Option("--wait", help="Seconds to wait for its end. [default: until it has ended]"),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """End running cells in order; the outcome is cancelled (or rogue, if frozen).

    The workload gets SIGTERM, its grace period (run --grace), then SIGKILL; its results come home.
    """
    folders = _folders(state_dir)
    cells = [find(folders, name) for name in names]
    for cell in cells:
        if not cell.alive:
            status = cell.status()
            raise StateError(f"{cell.id} is not running: {IN_WORDS.get(status, status)}")
    for cell in cells:
        _ask_to_end(cell, now=now)
    deadline = time.monotonic() + (math.inf if wait is None else wait)
    for cell in cells:
        _wait_for_its_end(cell, deadline, wait or 0)
        out(cell.id)


def _ask_to_end(cell: Folder, *, now: bool) -> None:
    """Over its socket; by a signal, if it doesn't answer there."""
    try:
        list(ask(cell, words.Stop(now)))
    except (Unreachable, StateError):
        _signal_to_end(cell, now=now)


def _signal_to_end(cell: Folder, *, now: bool) -> None:
    pid = cell.supervisor()
    if pid is None:
        if cell.alive:
            raise StateError(
                f"{cell.id}: its supervisor can't be told",
                hint=f"look at {cell.path}/lock, and end that process yourself",
            )
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Asked again with the pidfd in hand: the pid can't have been recycled in between.
        if cell.supervisor() == pid:
            signal.pidfd_send_signal(pidfd, signal.SIGQUIT if now else signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise StateError(
            f"{cell.id} is {cell.user}'s", hint="stop it as that user, or as root"
        ) from None
    finally:
        os.close(pidfd)


def _wait_for_its_end(cell: Folder, deadline: float, wait: float) -> None:
    while cell.alive:
        if time.monotonic() > deadline:
            raise StateError(
                f"{cell.id} has not ended within {wait:g} s",
                hint=f"it may still be in its grace period: wgcell stop --now {cell.id}",
            )
        time.sleep(0.05)


def rm(
    names: Names,
    force: Annotated[bool, typer.Option("-f", "--force", help="Stop those that run.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Delete ended cells' folders, records and outputs included."""
    folders = _folders(state_dir)
    cells = [find(folders, name) for name in names]
    if force:
        for cell in cells:
            _ask_to_end(cell, now=True)
        for cell in cells:
            _wait_for_its_end(cell, time.monotonic() + 60, 60)
    for cell in cells:
        cell.remove()
        out(cell.id)


def prune(
    force: Annotated[bool, typer.Option("-f", "--force", help="Do not ask.")] = False,
    older: Annotated[
        str | None,
        typer.Option("--older", metavar="TIME", help="Only those that started so long ago, as 7d."),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Delete the folders of all ended cells, records and outputs included."""
    try:
        age = parse_duration(older) if older else 0.0
    except ValueError as error:
        raise InputError(f"command line: --older: found {error}") from None
    now = time.time()
    # Of one folder: what root may see of others is not for a sweep.
    ended = [
        cell
        for cell in all_cells(_folders(state_dir)[0])
        if not cell.alive and now - cell.started >= age
    ]
    if not ended:
        console.print("nothing to delete: no cell has ended" + (" so long ago" if older else ""))
        return
    if not force and not _agreed(ended):
        console.print("nothing was deleted")
        return
    freed = 0
    for cell in ended:
        freed += cell.size()
        cell.remove()
        out(cell.id)
    console.print(f"{len(ended)} deleted, {freed / 2**20:.1f} MiB freed")


def _agreed(cells: Sequence[Folder]) -> bool:
    if not sys.stdin.isatty():
        raise InputError(
            f"{_counted(cells)} would be deleted, and nobody can be asked",
            hint="wgcell prune --force",
        )
    console.print(f"{_counted(cells)}, with all records and outputs, will be deleted.")
    return typer.confirm("Delete them?", err=True)


def _counted(cells: Sequence[Folder]) -> str:
    return "1 ended cell" if len(cells) == 1 else f"{len(cells)} ended cells"
