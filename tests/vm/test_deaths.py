"""Whatever dies, nothing leaves: one process of a cell, killed at a random moment of its life.

WGCELL_DEATHS=200 is the long form. What this can't show: a moment that no trial hit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

DEATHS = int(os.environ.get("WGCELL_DEATHS", "20"))
AT_ONCE = 2


@pytest.mark.vm
@pytest.mark.timeout(60 + 20 * DEATHS)
def test_whatever_dies_nothing_is_left_and_nothing_has_left() -> None:
    with tempfile.TemporaryDirectory(prefix="wgcell-deaths-") as temporary:
        runs = []
        for seed in range(AT_ONCE):
            state = Path(temporary) / str(seed)
            argv = [
                "unshare",
                "--net",
                sys.executable,
                "-P",
                str(Path(__file__).with_name("deaths.py")),
            ]
            if os.geteuid() != 0:
                argv[1:1] = ["--user", "--map-root-user"]
            runs.append(
                subprocess.Popen(
                    [*argv, str(seed), str(DEATHS // AT_ONCE), str(state)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        told = [run.communicate() for run in runs]
    trials = [json.loads(line) for stdout, _ in told for line in stdout.splitlines()]
    assert len(trials) == DEATHS, told
    for trial in trials:
        print(trial)
    assert not [trial for trial in trials if trial["wrong"]]
    assert len({trial["state"] for trial in trials}) >= 3, "the moments were too alike"
