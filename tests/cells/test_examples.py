"""Each example in real machines, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]


def played(state: Path, *words: str, said: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-P", *words],
        input=said,
        env={**os.environ, "WGCELL_STATE_DIR": str(state)},
        cwd=state,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_agent(tmp_path: Path) -> None:
    out = played(tmp_path, str(EXAMPLES / "agent.py"))
    assert out.endswith("[2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]\n")


def test_a_notebook(tmp_path: Path) -> None:
    out = played(tmp_path, str(EXAMPLES / "notebook.py"), said="x = 6\nx * 7\n1 / 0\nx\n")
    assert "[2]: 42\n" in out and "ZeroDivisionError" in out and out.endswith("[4]: 6\n[5]: ")


def test_a_farm(tmp_path: Path) -> None:
    for name, script in (("good", "mkdir out; expr 6 \\* 7 >out/answer"), ("bad", "exit 3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "build.sh").write_text(script)
    farm = [
        sys.executable,
        str(EXAMPLES / "farm.py"),
        str(tmp_path / "good"),
        str(tmp_path / "bad"),
    ]
    done = subprocess.run(
        [*farm, "--into", str(tmp_path / "results")],
        env={**os.environ, "WGCELL_STATE_DIR": str(tmp_path / "cells")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "bad: exit code 3" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "results/good/out/answer").read_text() == "42\n"
    assert not list((tmp_path / "cells").glob("build-*")), "their folders are gone"


def test_the_plugins_cell(tmp_path: Path) -> None:
    tests = str(EXAMPLES / "test_untrusted.py")
    out = played(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", tests)
    assert "2 passed" in out
