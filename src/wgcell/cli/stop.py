"""``wgcell stop``: running cells, ended in order."""

from __future__ import annotations

import math
import time
from typing import Annotated

import typer

from wgcell.cell.folder import Folder
from wgcell.cli.cells import IN_WORDS, Names, StateDir, named
from wgcell.cli.terminal import out
from wgcell.client.stopping import ask_to_end
from wgcell.errors import StateError

__all__ = ["stop", "wait_for_end"]

_POLL = 0.05
"""Seconds between looks at whether a cell has ended."""


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

    The workload gets SIGTERM, its grace period (run --grace), then SIGKILL; its outputs are
    brought back.
    """
    cells = [named(name, state_dir) for name in names]
    for cell in cells:
        if not cell.alive:
            status = cell.status()
            raise StateError(f"{cell.id} is not running: {IN_WORDS.get(status, status)}")
    for cell in cells:
        ask_to_end(cell, now=now)
    deadline = time.monotonic() + (math.inf if wait is None else wait)
    for cell in cells:
        wait_for_end(cell, deadline, wait or 0)
        out(cell.id)


def wait_for_end(cell: Folder, deadline: float, wait: float) -> None:
    """Wait until ``cell`` has ended. ``deadline`` is of CLOCK_MONOTONIC, ``wait`` its seconds.

    Raises StateError at the deadline.
    """
    while cell.alive:
        if time.monotonic() > deadline:
            raise StateError(
                f"{cell.id} has not ended within {wait:g} s",
                hint=f"it may still be in its grace period: wgcell stop --now {cell.id}",
            )
        time.sleep(_POLL)
