"""``wgcell attach``: a running workload's own standard streams."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from wgcell.cell.control.session import Connection, Lost
from wgcell.cell.folder import Folder
from wgcell.cli.cells import POLL, Name, StateDir, named
from wgcell.cli.exec import joined, terminal_at
from wgcell.cli.keys import DETACH_KEYS, parsed
from wgcell.cli.terminal import warn
from wgcell.guest.frames import Attach

__all__ = ["attach"]

_PATIENCE = 5.0
"""Seconds from the connection's end until a cell's own end must be on record."""


def attach(
    name: Name,
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", help="Only look; do not pass standard input on.")
    ] = False,
    detach_keys: Annotated[
        str, typer.Option("--detach-keys", metavar="KEYS", help="Keys that leave a terminal.")
    ] = DETACH_KEYS,
    state_dir: StateDir = None,
) -> None:
    """Be at a running workload's standard streams, from now on.

    Standard input goes to a workload that was started with -i; one client at a time has it.
    SIGINT and SIGTERM go to the workload, and the second of them leaves. Leaving, by the detach
    keys too, lets the workload go on. What it printed before is in wgcell logs.

    The exit code is the cell's, or 0 if you leave by the keys.
    """
    keys = parsed(detach_keys)
    cell = named(name, state_dir)
    job = cell.read("job.json") or {}
    tty = job.get("terminal") is True
    stdin = job.get("stdin") is True and not no_stdin
    terminal = terminal_at(interactive=stdin, tty=tty, hint="--no-stdin only looks")
    with Connection(cell, Attach(stdin)) as connection:
        # A folder of somebody else's says nothing about what may control this terminal.
        raw = tty and cell.path.stat(follow_symlinks=False).st_uid == os.geteuid()
        try:
            code = joined(
                *(connection, terminal), interactive=stdin, tty=raw, keys=keys, redraw=True
            )
        except Lost as error:
            code = _end_of(cell, error)
    raise typer.Exit(code)


def _end_of(cell: Folder, error: Lost) -> int:
    """The exit code of a cell that has ended, and did not wait for us to take all. Raises Lost."""
    until = time.monotonic() + _PATIENCE
    while cell.alive and time.monotonic() < until:
        time.sleep(POLL)
    code = (cell.read("result.json") or {}).get("exit_code")
    if not isinstance(code, int):
        raise error
    warn(f"the cell has ended; what it printed last is in: wgcell logs {cell.id}")
    return code
