"""What a cell takes of its host is measured, for all processes below this one and all files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wgcell.prove.battery.usage import ResourceUse

_MEASURES = """
import dataclasses, json, subprocess, sys, time
from pathlib import Path
from wgcell.prove.testbed.meter import Meter

busy = "x = b'x' * (64 << 20)\\nprint(flush=True)\\nwhile True: pass"
with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    meter = Meter(Path(sys.argv[1]))
    until = time.monotonic() + 2
    while time.monotonic() < until:
        meter.measure()
        time.sleep(0.1)
    child.kill()
print(json.dumps(dataclasses.asdict(meter.use)))
"""


@pytest.mark.alone
def test_memory_processors_and_disk_of_everything_below(tmp_path: Path) -> None:
    """In a process of its own: below this one is whatever other tests have running."""
    (tmp_path / "console.log").write_bytes(os.urandom(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURES, str(tmp_path)], capture_output=True, check=True
    )
    use = ResourceUse(**json.loads(done.stdout))
    assert 64 << 20 < use.others < 128 << 20 and use.machine == 0
    assert 1 << 20 <= use.console == use.disk < 2 << 20
    assert 0.3 < use.processors < 1.5
