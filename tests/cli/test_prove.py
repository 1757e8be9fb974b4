"""What `wgcell prove` prints while it runs."""

from __future__ import annotations

import pytest

from wgcell.cli.prove import ProgressLines


def test_progress_is_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(silent=False)
    for done in range(100):
        lines.add("x\n\x1b", done, 99)
    assert capsys.readouterr().err.splitlines() == [
        f"wgcell: {done} of 99 done: x; \\x1b" for done in (0, 99)
    ]
