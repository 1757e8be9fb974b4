"""``ps``, ``logs``, ``events``, ``inspect``, ``stop``, ``rm``: the cells that are and were."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from wgcell.cell.folder import Folder, all_cells, find, state_folder
from wgcell.cli.terminal import printable
from wgcell.errors import StateError

__all__ = ["events", "inspect", "logs", "ps", "rm", "stop"]

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Where the cells' folders are.", show_default=False),
]
Name = Annotated[str, typer.Argument(metavar="CELL", help="A cell's name, id, or how it begins.")]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on until the cell ends.")]


def ps(
    everything: Annotated[bool, typer.Option("-a", "--all", help="Ended cells too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    state_dir: StateDir = None,
) -> None:
    """List cells: those that run, or with --all every one there is a folder of."""
    rows = []
    for cell in all_cells(state_folder(state_dir)):
        if not (cell.alive or everything):
            continue
        job = cell.read("job.json") or {}
        started = datetime.fromtimestamp((cell.path / "lock").stat().st_mtime).astimezone()
        rows.append(
            {
                "cell": cell.id,
                "status": cell.status(),
                "started": started.isoformat(timespec="seconds"),
                "command": " ".join(map(str, job.get("command", []))),
            }
        )
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    print(f"{'CELL':<28} {'STATUS':<12} {'STARTED':<26} COMMAND")
    for row in rows:
        command = printable(row["command"].replace("\n", " ").encode()).decode()
        print(f"{row['cell']:<28} {row['status']:<12} {row['started']:<26} {command[:60]}")


def _follow(cell: Folder, file: Path, follow: bool) -> Iterator[bytes]:
    """The file's bytes; with ``follow``, what is added until the cell has ended."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise StateError(f"{file}: {error.strerror}") from error
    with stream:
        while True:
            alive = cell.alive
            while data := stream.read(65536):
                yield data
            if not (follow and alive):
                return
            time.sleep(0.1)


def logs(
    name: Name,
    follow: Follow = False,
    console: Annotated[bool, typer.Option(help="The machine's console instead.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print what the workload wrote: its stdout to stdout, its stderr to stderr."""
    cell = find(state_folder(state_dir), name)
    streams = [("console.log", sys.stdout)] if console else []
    streams = streams or [("stderr.log", sys.stderr), ("stdout.log", sys.stdout)]
    for file, stream in streams:
        if not (cell.path / file).exists():
            continue
        for data in _follow(cell, cell.path / file, follow and file != "stderr.log"):
            stream.buffer.write(printable(data) if stream.isatty() else data)
            stream.flush()


def events(name: Name, follow: Follow = False, state_dir: StateDir = None) -> None:
    """Print a cell's events, one JSON object a line (try: wgcell events CELL | jq)."""
    cell = find(state_folder(state_dir), name)
    for data in _follow(cell, cell.path / "events.jsonl", follow):
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def inspect(name: Name, state_dir: StateDir = None) -> None:
    """Print a cell's job, result and folder as one JSON object."""
    cell = find(state_folder(state_dir), name)
    whole = {
        "cell": cell.id,
        "status": cell.status(),
        "folder": str(cell.path),
        "job": cell.read("job.json"),
        "result": cell.read("result.json"),
    }
    print(json.dumps(whole, indent=2))


def stop(
    name: Name,
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 20.0,
    state_dir: StateDir = None,
) -> None:
    """End a running cell in order; its outcome is ``cancelled`` (or ``rogue``, if frozen)."""
    cell = find(state_folder(state_dir), name)
    pid = cell.supervisor()
    if pid is None:
        raise StateError(f"{cell.id} is not running (it {_was(cell)})")
    pidfd = os.pidfd_open(pid)
    try:
        # Asked again with the pidfd in hand: the pid can't have been recycled in between.
        if cell.supervisor() == pid:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    finally:
        os.close(pidfd)
    deadline = time.monotonic() + wait
    while cell.alive:
        if time.monotonic() > deadline:
            raise StateError(f"{cell.id} has not ended within {wait:g} s")
        time.sleep(0.05)
    print(cell.id)


def _was(cell: Folder) -> str:
    status = cell.status()
    return "died" if status == "died" else f"ended: {status}"


def rm(
    names: Annotated[list[str], typer.Argument(metavar="CELL…", help="Cells to delete.")],
    state_dir: StateDir = None,
) -> None:
    """Delete ended cells' folders, records and outputs included."""
    for name in names:
        cell = find(state_folder(state_dir), name)
        cell.remove()
        print(cell.id)
