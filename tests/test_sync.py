"""The blocking classes have the asynchronous ones' names, and do what they do."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import until

import wgcell
from wgcell import sync
from wgcell.cell.control.session_client import StreamReader, StreamWriter
from wgcell.cell.folder import Folder, all_cells
from wgcell.client import supervised
from wgcell.client.cell import Cell
from wgcell.client.commands import Process
from wgcell.client.files import Files
from wgcell.errors import CommandFailed, NeverRan, StateError, TimedOut, Unverified

pytestmark = pytest.mark.process

PAIRS = (
    *((Cell, sync.Cell), (Process, sync.Process), (Files, sync.Files)),
    *((StreamReader, sync.StreamReader), (StreamWriter, sync.StreamWriter)),
)
INNER = {"feed", "changed"}
"""Of the streams, what their session calls."""
BLOCKING = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
}


def public(kind: type) -> dict[str, Any]:
    return {
        name: value
        for one in reversed(kind.__mro__[:-1])
        for name, value in vars(one).items()
        if (not name.startswith("_") or name in BLOCKING or name in BLOCKING.values())
        and name not in INNER
    }


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda kind: kind.__module__)
def test_the_same_names_with_the_same_parameters(one: type, other: type) -> None:
    ours, theirs = public(one), public(other)
    if one is StreamReader:
        ours.pop("end")  # its session's
    assert {BLOCKING.get(name, name) for name in ours} == set(theirs)
    for name, value in ours.items():
        blocking = theirs[BLOCKING.get(name, name)]
        if isinstance(value, property):
            assert isinstance(blocking, property)
            continue
        wanted, found = inspect.signature(value), inspect.signature(blocking)
        assert list(wanted.parameters.values()) == list(found.parameters.values()), name
        assert not inspect.iscoroutinefunction(blocking)


@pytest.mark.usefixtures("machineless")
def test_a_whole_cell(machineless: Path) -> None:
    with wgcell.sync.Cell(name="one") as cell:
        assert cell.folder.parent == machineless and cell.id.startswith("one-")
        cell.files.write("a.sh", "echo $((6 * 7))")
        assert cell.files.read("a.sh") == b"echo $((6 * 7))"
        assert [entry.name for entry in cell.files.list()] == ["a.sh"]
        assert cell.exec("sh", "a.sh").stdout == b"42\n"
        with pytest.raises(CommandFailed):
            cell.exec("false", check=True)
        with pytest.raises(TimedOut):
            cell.exec("sleep", "600", timeout=0.1)
        with cell.spawn("cat") as process:
            process.stdin.write(b"one")
            assert process.stdout.read() == b"one"
            process.stdin.write(b"two")
            process.stdin.end()
            assert b"".join(process.stdout) == b"two" and process.stderr.read_all() == b""
            assert process.wait() == 0
        with cell.spawn("sleep", "600") as process:
            process.resize(10, 20)
            process.signal(signal.SIGTERM)
            assert process.wait() == 143
        with cell.spawn("sleep", "600") as process:
            process.kill()
            assert process.wait() == 137
        cell.pause()
        assert cell.state() == "paused"
        cell.unpause()
        names = [event.name for event in cell.events(follow=False)]
        assert names[-2:] == ["paused", "unpaused"]
        assert cell.refusals() == ()
        cell.stop()
        assert [event.name for event in cell.events()][-1] == "ended"
        with pytest.raises(wgcell.Ended):
            cell.wait()


@pytest.mark.usefixtures("machineless")
def test_run_blocks_until_the_end(machineless: Path) -> None:
    said: list[str] = []
    done = wgcell.run("exit", "3", remark=said.append)
    assert (done.exit_code, done.command) == (3, ("exit", "3")) and said
    with pytest.raises(CommandFailed, match="exit 3 exited with 3"):
        wgcell.run("exit", "3", check=True)
    with pytest.raises(Unverified):
        wgcell.run("unverified")
    with pytest.raises(NeverRan):
        wgcell.run("die")
    whole = bytes(range(256)) * 4096
    assert wgcell.run("read", input=whole).stdout == whole
    assert wgcell.run("exit", "0", input=whole).exit_code == 0, "one that does not read"
    before = len(all_cells(machineless))
    assert wgcell.run("exit", "0", remove=True).exit_code == 0
    assert len(all_cells(machineless)) == before


@pytest.mark.usefixtures("machineless")
def test_many_cells_from_many_threads() -> None:
    found: list[bytes] = []

    def live() -> None:
        with sync.Cell() as cell:
            found.append(cell.exec("echo", cell.id).stdout)

    threads = [threading.Thread(target=live, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3


@pytest.mark.usefixtures("machineless")
def test_a_cell_from_a_thread_that_ends_lives_on() -> None:
    cells: list[sync.Cell] = []

    def start() -> None:
        cells.append(sync.Cell())
        cells[0].start()

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join()
    assert cells[0].exec("echo", "x").stdout == b"x\n"
    cells[0].close()


@pytest.mark.usefixtures("machineless")
def test_who_connects_owns_nothing_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with sync.Cell(name="one", detach=True):
        pass
    with sync.connect("one") as cell:
        assert cell.exec("echo", "x").stdout == b"x\n"
    assert cell.state() == "running"
    cell.stop(now=True)
    cell.close()
    until(lambda: threading.active_count() <= before + 1, "the loop's thread ends")
    with pytest.raises(StateError):
        sync.connect("one-more")


BEGINS = """
import sys
from wgcell.client import supervised
supervised.PROGRAM = tuple(sys.argv[1:3])
import wgcell
"""
FORGETS = """
cell = wgcell.sync.Cell()
cell.start()
print(cell.exec("echo", str(cell.folder)).text.strip(), flush=True)
"""
WAITS = """
with wgcell.sync.Cell() as cell:
    print(cell.folder, flush=True)
    cell.exec("sleep", "600")
"""


@pytest.mark.usefixtures("machineless")
def test_a_program_that_forgets_its_cell_ends_and_so_does_the_cell() -> None:
    argv = [sys.executable, "-c", BEGINS + FORGETS, *supervised.PROGRAM]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    folder = Folder(Path(done.stdout.strip()))
    until(lambda: not folder.alive, "the cell's end")
    assert (folder.read("result.json") or {})["outcome"] == "cancelled"


@pytest.mark.usefixtures("machineless")
def test_ctrl_c_ends_what_is_waited_for() -> None:
    argv = [sys.executable, "-c", BEGINS + WAITS, *supervised.PROGRAM]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as typed:
        assert typed.stdout is not None
        folder = Folder(Path(typed.stdout.readline().strip()))
        typed.send_signal(signal.SIGINT)
        _, err = typed.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and not folder.alive
