"""Command lines typed in this very process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wgcell.cell.folder import Folder, create
from wgcell.cli import main


def typed(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    out, err = capfd.readouterr()
    return int(str(caught.value.code)), out, err


def ended(state: Path, name: str, outcome: str = "completed", code: int = 0) -> Folder:
    cell = create(state, name)
    os.close(cell.hold())
    cell.write("job.json", {"name": name, "command": ["echo", "a\nb\x1b[2J"]})
    cell.write("result.json", {"outcome": outcome, "exit_code": code, "reason": "\x1b[2J"})
    return cell
