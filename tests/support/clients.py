"""`wgcell` as a client of a cell, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.hubs import Running

__all__ = ["WGCELL", "argv"]

WGCELL = str(Path(sys.executable).with_name("wgcell"))


def argv(one: Running, verb: str, *options: str, command: tuple[str, ...] = ()) -> list[str]:
    """``wgcell VERB`` about that cell."""
    place = ("--state-dir", str(one.cell.folder.path.parent))
    words = [WGCELL, verb, *place, *options, one.cell.folder.id]
    return [*words, "--", *command] if command else words
