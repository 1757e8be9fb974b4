"""``wgcell rm`` and ``prune``: the folders of ended cells, deleted."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from wgcell.cell.folder import Folder, all_cells
from wgcell.cell.units import parse_duration
from wgcell.cli.cells import Names, StateDir, folders, named
from wgcell.cli.stop import wait_for_end
from wgcell.cli.terminal import console, out
from wgcell.client.stopping import ask_to_end
from wgcell.errors import InputError

__all__ = ["prune", "rm"]


def rm(
    names: Names,
    force: Annotated[bool, typer.Option("-f", "--force", help="Stop those that run.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Delete ended cells' folders, records and outputs included."""
    cells = [named(name, state_dir) for name in names]
    if force:
        for cell in cells:
            ask_to_end(cell, now=True)
        for cell in cells:
            wait_for_end(cell, time.monotonic() + 60, 60)
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
        for cell in all_cells(folders(state_dir)[0])
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
