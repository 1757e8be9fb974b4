"""``wgcell wait``: cells' ends, as exit codes."""

from __future__ import annotations

import time

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.cli.cells import IN_WORDS, POLL, Names, StateDir, named
from wgcell.cli.terminal import out, warn
from wgcell.errors import StateError

__all__ = ["wait"]


def wait(names: Names, state_dir: StateDir = None) -> None:
    """Wait until cells have ended, and print their exit codes, one a line, in this order.

    Of a cell that ended before, too. One that died without an end has 125.
    """
    for cell in [named(name, state_dir) for name in names]:
        out(str(_exit_code(cell)), flush=True)


def _exit_code(cell: Folder) -> int:
    """From the cell itself, which may take its folder along; from its record, if it has ended."""
    try:
        for word in ask(cell, words.End(), follow=True):
            if isinstance(word, words.Ended):
                return word.exit_code
    except (Unreachable, StateError):
        pass  # it has ended, it was started by a wgcell that does not know the question
    while cell.alive:
        time.sleep(POLL)
    code = (cell.read("result.json") or {}).get("exit_code")
    if isinstance(code, int):
        return code
    warn(f"{cell.id} {IN_WORDS['died']}")
    return EXIT_CODES[Outcome.ERROR]
