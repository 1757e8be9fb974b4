"""``wgcell run --detach``, as a user types it; the cells have no machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support import commands
from tests.support.machineless import install
from tests.support.waiting import until

from wgcell.cell.folder import Folder, all_cells
from wgcell.client import supervised as process

pytestmark = pytest.mark.usefixtures("machineless")
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]) -> Typed:
    """Type a command line: its exit code, standard output and standard error."""

    return partial(commands.typed, capfd)


def ended(folder: Folder) -> dict[str, Any]:
    until(lambda: not folder.alive, "the cell's end")
    return folder.read("result.json") or {}


def test_the_id_is_on_stdout_and_the_cell_lives_on(typed: Typed, machineless: Path) -> None:
    code, out, err = typed("run", "-d", "--allow", "api.example.com:443", "--", "wait")
    (cell,) = all_cells(machineless)
    assert (code, out) == (0, f"{cell.id}\n")
    assert f"cell {cell.id}; it may reach: allow api.example.com:443" in err
    assert typed("ps", "-q")[1] == f"{cell.id}\n"
    assert typed("stop", "wait")[:2] == (0, f"{cell.id}\n")
    assert ended(cell)["reason"] == "stopped"


def test_a_cell_needs_no_command(typed: Typed, machineless: Path) -> None:
    code, out, _ = typed("run", "-dq")
    (cell,) = all_cells(machineless)
    assert (code, out) == (0, f"{cell.id}\n") and cell.name == "cell"
    assert (cell.read("job.json") or {})["command"] == []
    code, _, err = typed("run")
    assert code == 125 and "--detach a cell that has none" in err


def test_what_comes_to_nothing_ends_as_it_does_in_the_foreground(
    typed: Typed,
    tmp_path: Path,
    machineless: Path,
) -> None:
    code, out, err = typed("run", "-d", "--", "unverified")
    assert (code, out) == (121, "") and "unverified: nobody answered (exit code 121)" in err
    none = str(tmp_path / "none")
    said = [typed("run", *option, "--input", none, "--", "wait") for option in ([], ["--detach"])]
    assert said[0] == said[1] == (125, "", f"wgcell: input {none}: No such file or directory\n")
    code, _, err = typed("run", "-d", "nothing")
    assert code == 125 and "wgcell run -- nothing" in err
    code, _, err = typed("run", "-d", "--", "fault")
    assert code == 125 and "a fault of wgcell's own: RuntimeError" in err
    code, _, err = typed("run", "-d", "--", "die")
    assert code == 125 and "its supervisor ended before it said why" in err
    for option in ("--json", "--json-file=x"):
        code, _, err = typed("run", "-d", option, "--", "wait")
        assert code == 125 and "--detach can't be combined" in err
    assert not [cell for cell in all_cells(machineless) if cell.alive]


def test_the_folder_of_a_cell_that_was_to_be_removed_is(typed: Typed, machineless: Path) -> None:
    code, out, _ = typed("run", "--detach", "--rm", "--", "exit", "7")
    folder = machineless / out.strip()
    until(lambda: not folder.exists(), "the folder's end")
    assert code == 0


def test_the_foreground_removes_a_folder_too_if_it_is_to(
    typed: Typed, machineless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch.setattr)
    monkeypatch.setattr("wgcell.cli.run.write_in_background", lambda: None)  # it is for good
    assert typed("run", "-q", "--", "exit", "7")[0] == 7
    (kept,) = all_cells(machineless)
    assert typed("run", "-q", "--rm", "--", "exit", "7")[0] == 7
    assert all_cells(machineless) == [kept]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_is_interrupted_before_the_id_leaves_no_cell(
    machineless: Path,
    number: signal.Signals,
) -> None:
    program = (
        "import sys; from wgcell.client import supervised as process; from wgcell.cli import main; "
        f"process.PROGRAM = {process.PROGRAM!r}; "
        "main.main(['run', '--detach', '--', 'slow'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as typed:
        (cell,) = until(lambda: all_cells(machineless), "the cell's folder")
        typed.send_signal(number)
        out, _ = typed.communicate()
    assert out == b"" and typed.returncode == (130 if number is signal.SIGINT else -number)
    assert ended(cell)["outcome"] == "cancelled"


def test_a_cell_is_paused_and_goes_on_and_is_waited_for(typed: Typed, machineless: Path) -> None:
    typed("run", "-dq", "--name", "one", "--", "wait")
    (cell,) = all_cells(machineless)
    assert typed("pause", "one")[:2] == (0, f"{cell.id}\n")
    assert typed("ps", "--format", "{{.Status}} {{.Words}}")[1] == "paused paused\n"
    code, _, err = typed("pause", "one")
    assert code == 125 and f"{cell.id}: it is paused already" in err
    assert typed("unpause", "one")[:2] == (0, f"{cell.id}\n")
    assert typed("ps", "--format", "{{.Status}}")[1] == "running\n"
    assert "it is not paused" in typed("unpause", "one")[2]
    typed("pause", "one")
    waiting = subprocess.Popen(
        [sys.executable, "-P", "-m", "wgcell", "wait", "one"], stdout=subprocess.PIPE
    )
    with waiting:
        typed("stop", "one")  # goes on for its grace period
        assert waiting.communicate()[0] == b"130\n"
    events = [json.loads(line) for line in (cell.path / "events.jsonl").read_bytes().splitlines()]
    stands = [(e["event"], e["by"]) for e in events if e["event"] in ("paused", "unpaused")]
    uid = os.getuid()
    assert stands == [("paused", uid), ("unpaused", uid), ("paused", uid), ("unpaused", None)]


def test_an_end_is_heard_although_the_folder_goes_with_it(typed: Typed, machineless: Path) -> None:
    """As docker's wait hears it of a container with --rm."""
    typed("run", "-dq", "--rm", "--name", "one", "--", "wait")
    (cell,) = all_cells(machineless)
    pid = cell.supervisor() or 0
    before = sockets(pid)
    waiting = subprocess.Popen(
        [sys.executable, "-P", "-m", "wgcell", "wait", "one"], stdout=subprocess.PIPE
    )
    with waiting:
        until(lambda: sockets(pid) > before, "it waits")
        typed("stop", "one")
        assert waiting.communicate()[0] == b"130\n"
    until(lambda: not cell.path.exists())


def sockets(pid: int) -> int:
    """How many a process has open."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += os.readlink(fd).startswith("socket:")
    return found
