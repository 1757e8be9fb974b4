"""A supervisor as a process of its own: what it reports, and whose end ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import lull, until

from wgcell.cell.folder import Folder, all_cells
from wgcell.cell.job import JobOptions
from wgcell.cell.remark import Remark
from wgcell.cell.start import Happened, Made, Over, Start, Verified
from wgcell.client import supervised as process
from wgcell.client.beginning import Beginning
from wgcell.client.supervised import Supervised
from wgcell.errors import HostError, InputFileError, JobError, LaunchError

STARTER_GONE = "the program that has started the cell has ended, or let it go"
pytestmark = [pytest.mark.process, pytest.mark.usefixtures("machineless")]


def begun(*command: str, **more: Any) -> tuple[Supervised, Beginning, list[Any]]:
    """A supervisor whose last word about the beginning was heard, and what it said."""
    return asked(JobOptions(command=command, idle=True), **more)


def asked(options: JobOptions, **more: Any) -> tuple[Supervised, Beginning, list[Any]]:
    heard: list[Any] = []
    beginning = Beginning(heard.append)
    supervised = Supervised.start(Start(options, **more))
    with closing(supervised):
        supervised.follow(beginning)
    return supervised, beginning, heard


def ended(folder: Folder) -> dict[str, Any]:
    until(lambda: not folder.alive, "the cell's end")
    result = folder.read("result.json")
    assert result is not None
    return result


def folder_of(beginning: Beginning) -> Folder:
    assert beginning.folder is not None
    return beginning.folder


def test_the_report_goes_from_what_is_about_to_run_to_a_verified_tunnel() -> None:
    supervised, beginning, heard = begun("wait")
    folder = folder_of(beginning)
    kinds = [type(word) for word in heard]
    assert kinds[0] is Made and Remark in kinds and kinds[-1] is Verified
    lines = [word.line for word in heard if isinstance(word, Happened)]
    assert lines == (folder.path / "events.jsonl").read_bytes().splitlines()[: len(lines)]
    assert json.loads(lines[-1])["state"] == "running"
    pid = folder.supervisor()
    assert pid is not None and os.getsid(pid) == pid != os.getsid(0)
    for fd in range(3):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == os.devnull
    supervised.let_go()
    assert (ended(folder)["outcome"], ended(folder)["reason"]) == ("cancelled", STARTER_GONE)


def test_a_supervisor_has_none_of_the_programs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    supervised, beginning, _ = begun("wait")
    pid = folder_of(beginning).supervisor()
    assert b"s3cret" not in Path(f"/proc/{pid}/environ").read_bytes()
    supervised.let_go()
    ended(folder_of(beginning))


def test_a_kept_cell_lives_on_when_the_lifeline_closes() -> None:
    supervised, beginning, _ = begun("wait")
    folder = folder_of(beginning)
    pid = folder.supervisor()
    assert pid is not None
    lifeline = os.readlink(f"/proc/self/fd/{supervised._lifeline}")
    supervised.keep()
    supervised.let_go()
    until(lambda: lifeline not in open_in(pid), "the supervisor lets the lifeline go")
    assert folder.alive
    os.kill(pid, signal.SIGTERM)
    assert ended(folder)["reason"] == "stopped"


def open_in(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(fd))
    return found


PROGRAM = """
import os, sys, threading
from wgcell.cell.job import JobOptions
from wgcell.cell.start import Start
from wgcell.client import supervised as process
from wgcell.client.beginning import Beginning
process.PROGRAM = tuple(sys.argv[1:3])

beginning = Beginning()
def start():
    global supervised
    supervised = process.Supervised.start(Start(JobOptions(command=("wait",))))
    supervised.follow(beginning)
starting = threading.Thread(target=start, daemon=True)
starting.start()
starting.join()
{then}
print(beginning.folder.path, flush=True)
sys.stdin.read()
"""


def program(then: str = "") -> tuple[subprocess.Popen[str], Folder]:
    """Another program that has started a cell, from a thread that is gone."""
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(then=then), *process.PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    return running, Folder(Path(running.stdout.readline().strip()))


@pytest.mark.parametrize(
    "then",
    ["", "if os.fork() == 0: threading.Event().wait()"],
    ids=["alone", "with a child that holds the lifeline"],
)
def test_a_cell_ends_in_order_with_the_program_that_has_started_it(then: str) -> None:
    running, folder = program(then)
    with running:
        assert folder.alive
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.kill()
    try:
        result = ended(folder)
    finally:
        for child in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    assert (result["outcome"], result["reason"]) == ("cancelled", STARTER_GONE)


def test_a_thread_that_dies_takes_no_cell_along() -> None:
    supervised: list[Supervised] = []
    folders: list[Folder] = []

    def start() -> None:
        one, beginning, _ = begun("wait")
        supervised.append(one)
        folders.append(folder_of(beginning))

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join()
    lull(0.2)  # a signal of the thread's death would come at once
    assert folders[0].alive
    supervised[0].let_go()
    ended(folders[0])


def test_many_from_one_program_each_with_its_own_end() -> None:
    every = [begun("wait") for _ in range(4)]
    folders = [folder_of(beginning) for _, beginning, _ in every]
    assert len({folder.id for folder in folders}) == 4
    every[0][0].let_go()
    ended(folders[0])
    assert all(folder.alive for folder in folders[1:])
    for supervised, _, _ in every[1:]:
        supervised.let_go()
    for folder in folders[1:]:
        assert ended(folder)["outcome"] == "cancelled"


def test_an_error_comes_back_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        asked(JobOptions(command=("wait",), inputs=(tmp_path / "none",)))
    with pytest.raises(JobError, match="--memory: found '1000TiB'") as caught:
        asked(JobOptions(command=("wait",), settings={"memory": "1000TiB"}))
    assert caught.value.hint == "ask for less"
    (tmp_path / "job.toml").write_text("name = 1\nnome = 2\n")
    with pytest.raises(JobError) as caught:
        asked(JobOptions(command=("wait",)), file=tmp_path / "job.toml")
    assert len(caught.value.message.splitlines()) == 2


def test_a_cell_that_is_never_verified_says_so() -> None:
    supervised, beginning, heard = begun("unverified")
    assert isinstance(heard[-1], Over) and beginning.end is heard[-1] and not beginning.verified
    assert (heard[-1].outcome, heard[-1].exit_code) == ("unverified", 121)
    supervised.let_go()
    ended(folder_of(beginning))


def test_a_fault_of_wgcells_own_is_kept_and_named() -> None:
    with pytest.raises(HostError, match="this was not foreseen") as caught:
        begun("fault")
    place = Path(caught.value.message.rpartition("it is kept in ")[2])
    assert "RuntimeError" in place.read_text()


def test_a_supervisor_that_is_killed_before_it_says_why() -> None:
    with pytest.raises(HostError, match=r"die-[0-9a-f]{6}: its supervisor .* signal 9"):
        begun("die")


def test_a_supervisor_that_cannot_even_start_says_what_it_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "PROGRAM", (sys.executable, "-c", "raise SystemExit('no: x')"))
    with pytest.raises(LaunchError, match="exit code 1") as caught:
        begun("wait")
    assert "no: x" in caught.value.output
    monkeypatch.setattr(process, "PROGRAM", ("/nonexistent/python",))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(LaunchError, match="No such file"):
        begun("wait")
    assert os.listdir("/proc/self/fd") == before


def test_the_folder_goes_with_the_cell_if_it_is_to(machineless: Path) -> None:
    _, beginning, _ = begun("exit", "3", remove=True)
    folder = folder_of(beginning)
    until(lambda: not folder.path.exists(), "the folder's end")
    assert not all_cells(machineless)
