"""A real machine whose supervisor is a process of its own: from the id to its end, in one boot."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.waiting import lull, until

COUNTS = """
trap 'echo bye >>out; exit 7' TERM
n=0
while :; do n=$((n+1)); echo $n; sleep 0.1; done
"""


@pytest.mark.vm
@pytest.mark.timeout(300)
def test_a_cell_that_is_left_running_is_paused_goes_on_and_brings_its_outputs(
    wgcell: str, tmp_path: Path
) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [wgcell, *words],
            cwd=tmp_path,
            env={**os.environ, "WGCELL_STATE_DIR": str(tmp_path / "cells")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = ["--output", "out", "--", "sh", "-c", COUNTS]
    cell = run("run", "--detach", "--name", "t", *command).strip()
    assert json.loads(run("inspect", cell))["status"] == "running"

    def counted() -> int:
        return int(run("logs", "-n", "1", cell) or "0")

    until(lambda: counted() > 3, "the workload counts")
    run("pause", cell)
    lull(0.5)  # what was on its way
    before = counted()
    lull(1.5)
    assert counted() == before and "paused" in run("ps")
    run("unpause", cell)
    until(lambda: counted() > before, "it counts on")
    run("pause", cell)  # a cell that stands still is ended in order all the same
    run("stop", "t")
    assert run("wait", cell) == "130\n"
    result = json.loads(run("inspect", cell))["result"]
    assert (result["outcome"], result["workload_exit_code"]) == ("cancelled", 7)
    assert (tmp_path / "out").read_text() == "bye\n"
