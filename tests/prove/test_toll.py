"""What a cell takes of its host is read off truly, and what is beyond a bound is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wgcell.prove.exhaustion import EXHAUSTIONS
from wgcell.prove.toll import DISK, MEMORY, Toll

_MEASURES = """
import dataclasses, json, subprocess, sys, time
from pathlib import Path
from wgcell.prove.toll import Meter

busy = "x = b'x' * (64 << 20)\\nprint(flush=True)\\nwhile True: pass"
with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    meter = Meter(Path(sys.argv[1]))
    until = time.monotonic() + 2
    while time.monotonic() < until:
        meter.look()
        time.sleep(0.1)
    child.kill()
print(json.dumps(dataclasses.asdict(meter.toll)))
"""


@pytest.mark.alone
def test_memory_processors_and_disk_of_everything_below(tmp_path: Path) -> None:
    """In a process of its own: below this one is whatever other tests have running."""
    (tmp_path / "console.log").write_bytes(os.urandom(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURES, str(tmp_path)], capture_output=True, check=True
    )
    toll = Toll(**json.loads(done.stdout))
    assert 64 << 20 < toll.others < 128 << 20 and toll.machine == 0
    assert 1 << 20 <= toll.console == toll.disk < 2 << 20
    assert 0.3 < toll.processors < 1.5


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("machine", MEMORY, MEMORY + (2 << 30)),
        ("others", 80 << 20, 200 << 20),
        ("disk", DISK, DISK + (100 << 20)),
        ("evidence", 100 << 10, 2 << 20),
        ("processors", 1.9, 3.5),
        ("neighbour", [0.1], [0.1, 1.5]),
    ],
)
def test_each_bound_holds_what_is_within_and_tells_what_is_beyond(
    field: str, within: object, beyond: object
) -> None:
    toll = Toll()
    setattr(toll, field, within)
    assert toll.beyond() == []
    setattr(toll, field, beyond)
    assert len(toll.beyond()) == 1


def test_a_cell_that_takes_nothing_shows_no_attack() -> None:
    assert [one.name for one in EXHAUSTIONS if one.seen(Toll(), 0)] == []
