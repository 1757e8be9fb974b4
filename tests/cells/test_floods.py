"""Floods against whole cells: who stops reading, and who does not stop talking."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.waiting import GENEROUS, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def test_who_stops_reading_our_words_does_not_keep_a_cell_alive(tmp_path: Path) -> None:
    """Of the pipe at our standard error nothing more is read once the workload runs."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    asks = "echo up; for n in $(seq 300); do getent hosts n$n.example.com; done; sleep 600"
    argv = [sys.executable, "-P", "-m", "wgcell", "run", "-v", "--state-dir", str(tmp_path)]
    argv += ["--grace", "1s", "--", "sh", "-c", asks]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=write, text=True)
    os.close(write)
    with os.fdopen(read) as words, process:
        try:
            for line in iter(words.readline, ""):
                if "the workload runs" in line:
                    break
            (folder,) = tmp_path.iterdir()
            # The control: there is more to tell than the pipe holds.
            flow = '"event":"flow"'
            until(lambda: (folder / "events.jsonl").read_text().count(flow) > 60)
            process.send_signal(signal.SIGHUP)
            _, _ = process.communicate(timeout=2 * GENEROUS)
        finally:
            process.kill()
        assert process.returncode == 130
        assert json.loads((folder / "result.json").read_text())["outcome"] == "cancelled"
