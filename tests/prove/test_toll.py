"""What a cell takes of its host is read off truly, and what is beyond a bound is said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wgcell.prove.exhaustion import EXHAUSTIONS
from wgcell.prove.toll import DISK, MEMORY, Meter, Toll


def test_memory_processors_and_disk_of_everything_below(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(os.urandom(1 << 20))
    before = Meter(tmp_path)
    before.look()  # what other tests have running
    code = "x = b'x' * (64 << 20)\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        meter = Meter(tmp_path)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            meter.look()
            time.sleep(0.1)
        child.kill()
    assert 60 << 20 < meter.toll.others - before.toll.others < 128 << 20
    assert 1 << 20 <= meter.toll.console == meter.toll.disk < 2 << 20
    assert 0.3 < meter.toll.processors < 2.1


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
