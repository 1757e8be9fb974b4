"""Shared by the verbs about existing cells: their arguments, and words for a cell's state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wgcell.cell.folder import Folder, find, state_folders
from wgcell.cli import completion
from wgcell.home import expanded

__all__ = [
    "IN_WORDS",
    "POLL",
    "Follow",
    "Name",
    "Names",
    "StateDir",
    "folders",
    "frozen_hint",
    "named",
]

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

POLL = 0.1
"""Seconds between looks at a file that may have grown."""

IN_WORDS = {
    "preparing": "being prepared",
    "consent": "waits for the endpoint",
    "booting": "booting",
    "verifying": "verifying the tunnel",
    "running": "running",
    "terminating": "being ended",
    "stopping": "bringing results home",
    "paused": "paused",
    "frozen": "frozen, waits for you",
    "died": "died without an end",
}
"""Words for each `Folder.status` of a cell that has no outcome. An outcome is its own word, here as
in README.md, result.json and a run's last line."""


def folders(state_dir: Path | None) -> tuple[Path, ...]:
    """The state folders to search: ``--state-dir``, or the user's own; root's are all users'."""
    return state_folders(None if state_dir is None else expanded(state_dir))


def named(name: str, state_dir: Path | None) -> Folder:
    """The cell that the user named. Raises StateError if there is none, or more than one."""
    return find(folders(state_dir), name)


def frozen_hint(cell: Folder) -> str:
    """Says that a frozen machine waits, how to examine it, and how to end it."""
    pid = next((entry.get("pid") for entry in cell.recorded("booting")), None)
    memory = f"; its memory, as root: gcore -o FILE {pid}" if isinstance(pid, int) else ""
    return (
        f"{cell.id}: its machine is frozen and waits. Look: wgcell events {cell.id}, "
        f"wgcell logs --console {cell.id}{memory}. End: wgcell stop {cell.id}"
    )
