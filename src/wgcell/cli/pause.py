"""``wgcell pause`` and ``unpause``: machines that stand still, and go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder
from wgcell.cli.cells import IN_WORDS, Names, StateDir, named
from wgcell.cli.terminal import out
from wgcell.errors import StateError

__all__ = ["pause", "unpause"]


def pause(names: Names, state_dir: StateDir = None) -> None:
    """Let running cells' machines stand still: they keep their memory and use no processor.

    The workload's --timeout goes on. A paused cell that must end goes on first, for its grace
    period.
    """
    _ask(names, words.Pause(), state_dir)


def unpause(names: Names, state_dir: StateDir = None) -> None:
    """Let paused cells' machines go on."""
    _ask(names, words.Unpause(), state_dir)


def _ask(names: Sequence[str], question: words.Question, state_dir: Path | None) -> None:
    for cell in [named(name, state_dir) for name in names]:
        try:
            list(ask(cell, question, patience=PATIENCE))
        except Unreachable as error:
            raise StateError(_unreachable(cell, str(error))) from None
        out(cell.id)


PATIENCE = 30.0
"""Seconds that a machine has to stand still, or to go on."""


def _unreachable(cell: Folder, why: str) -> str:
    if cell.alive:
        return f"{cell.id}: it can't be reached: {why}"
    status = cell.status()
    return f"{cell.id} is not running: {IN_WORDS.get(status, status)}"
