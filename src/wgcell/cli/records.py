"""``wgcell logs``, ``events`` and ``inspect``: a cell's records."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, BinaryIO

import typer

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder
from wgcell.cell.vouched import verify
from wgcell.cli.cells import POLL, Follow, Name, StateDir, named
from wgcell.cli.terminal import as_json, out, printable, restore, writer
from wgcell.display import one_line
from wgcell.errors import StateError

__all__ = ["events", "inspect", "logs"]

EVENTS = "events.jsonl"
_LONGEST_LINE = 1 << 20
"""Bytes of an event that are waited for; a longer one is printed in pieces."""


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
    cell = named(name, state_dir)
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
    cell = named(name, state_dir)
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
    """A line of ``events.jsonl`` for a reader: unchanged if wgcell has written it.

    Another user's folder may hold any line. A line that is no event is marked, so that it can't
    be taken for one.
    """
    line = printable(raw.removesuffix(b"\r"))
    return line if raw[:1] == b"{" else b"? " + line


def inspect(name: Name, state_dir: StateDir = None) -> None:
    """Print a cell's job, result and folder as one JSON object."""
    cell = named(name, state_dir)
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


def _followed(
    cell: Folder, names: Sequence[str], begins: dict[str, int]
) -> Iterator[tuple[str, bytes]]:
    """`_added` until the cell has ended: first from the cell if it answers, then from the files."""
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
    """Pairs of a file's name and bytes that were added to it.

    ``begins`` is the first byte's place in each file. With ``follow`` it goes on until the cell has
    ended. Raises StateError for a file that can't be read.
    """
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
            time.sleep(POLL)
    finally:
        for file in files.values():
            file.close()


def _last(cell: Folder, name: str, lines: int) -> int:
    """The place in a file where its last ``lines`` begin. A log is 16 MiB at most."""
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
