"""Outputs that can't land: the result, the record, ``ps`` and the exit code say the same."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

WGCELL = str(Path(sys.executable).with_name("wgcell"))
ENOUGH = 170


def agreed(state: Path, code: int) -> dict[str, Any]:
    """The one cell's result, which all else agrees with."""
    (folder,) = state.iterdir()
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert result["exit_code"] == code
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["outcome"]) == ("ended", result["outcome"])
    assert last["exit_code"] == code
    argv = [WGCELL, "ps", "--all", "--json", "--state-dir", str(state)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert result["outcome"] in shown
    return result


def test_a_full_disk(tmp_path: Path) -> None:
    here, state = tmp_path / "here", tmp_path / "cells"
    here.mkdir()
    script = "mount -t tmpfs -o size=1m tmpfs $1; shift; exec $@"
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(here)]
    argv += [WGCELL, "run", "--state-dir", str(state), "--output", "out", "--output-dir", str(here)]
    argv += ["--", "dd", "if=/dev/zero", "of=out", "bs=1M", "count=4"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=ENOUGH, check=False)
    assert done.returncode == 125, done.stderr
    result = agreed(state, 125)
    assert result["outcome"] == "error" and "No space left on device" in result["reason"]
    assert result["workload_exit_code"] == 0
    (folder,) = state.iterdir()
    assert (folder / "outputs/out").stat().st_size == 4 << 20


def gone(here: Path) -> None:
    here.rmdir()
    here.write_text("a file now")


def taken(here: Path) -> None:
    (here / "out").write_text("mine")


@pytest.mark.parametrize(
    ("meanwhile", "outcome", "code"), [(gone, "error", 125), (taken, "incomplete", 118)]
)
def test_a_folder_that_changes_while_the_cell_runs(
    tmp_path: Path, meanwhile: Callable[[Path], None], outcome: str, code: int
) -> None:
    here, state = tmp_path / "here", tmp_path / "cells"
    here.mkdir()
    argv = [WGCELL, "run", "--state-dir", str(state), "--output", "out", "--output-dir", str(here)]
    argv += ["--", "sh", "-c", "echo x > out; echo up; sleep 5"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        meanwhile(here)
        assert process.wait(ENOUGH) == code
    assert agreed(state, code)["outcome"] == outcome


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


@pytest.mark.parametrize(
    ("by", "outcome", "code"),
    [("Ctrl-C", "completed", 0), ("SIGTERM", "cancelled", 130), ("yes", "completed", 0)],
)
def test_the_end_of_a_question(
    tmp_path: Path, terminal: tuple[int, int], by: str, outcome: str, code: int
) -> None:
    """Ctrl-C is an answer, no; what ends us otherwise is none."""
    ours, theirs = terminal
    here, state = tmp_path / "here", tmp_path / "cells"
    here.mkdir()
    argv = [WGCELL, "run", "--state-dir", str(state), "--sync", str(here)]
    argv += ["--", "sh", "-c", "echo x > new"]
    setsid = ["setsid", "--ctty", "--wait"]
    with subprocess.Popen(
        [*setsid, *argv], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        while b"make these changes?" not in said:
            said += os.read(ours, 4096)
        (folder,) = state.iterdir()
        if by == "SIGTERM":
            os.kill(int((folder / "lock").read_text()), signal.SIGTERM)
        else:
            os.write(ours, b"\x03" if by == "Ctrl-C" else b"y\n")
        assert process.wait(ENOUGH) == code
    assert agreed(state, code)["outcome"] == outcome
    assert (here / "new").exists() is (by == "yes")
