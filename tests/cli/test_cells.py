"""The verbs about cells, as a user types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.commands import ended, typed
from tests.support.waiting import GENEROUS, until

from wgcell.cell.events import EventLog
from wgcell.cell.folder import Folder, create
from wgcell.cell.states import Outcome
from wgcell.cli import cells, checks, main


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WGCELL_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def running(state: Path) -> Iterator[tuple[Folder, EventLog]]:
    cell = create(state, "busy")
    fd = cell.hold()
    cell.write("job.json", {"name": "busy", "command": ["sleep", "9"]})
    log = EventLog(cell.path / "events.jsonl", lambda event: None)
    log.append("booting", accelerator="tcg", pid=4242)
    log.append("state", state="running")
    yield cell, log
    log.close()
    os.close(fd)


def test_an_outcome_is_called_the_same_everywhere() -> None:
    """README's table of outcomes; what has no outcome has words of its own."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    table = readme.partition("| outcome |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(outcome.value for outcome in Outcome)
    assert not set(named) & set(cells.IN_WORDS)


def test_ps(
    state: Path, running: tuple[Folder, EventLog], capfd: pytest.CaptureFixture[str]
) -> None:
    one, _ = running
    two = ended(state, "train", "rogue", 120)
    code, out, err = typed(capfd, "ps")
    head, row = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split() == ["CELL", "USER", "STATUS", "AGE", "EXIT", "COMMAND"]
    assert row.split()[0] == one.id and "running" in row and "sleep 9" in row
    _, out, _ = typed(capfd, "ps", "--all")
    assert "rogue" in out and "120" in out and "echo a; b\\x1b[2J" in out
    _, out, _ = typed(capfd, "ps", "-aq")
    assert out.split() == [one.id, two.id]
    _, out, _ = typed(capfd, "ps", "-a", "--format", r"{{.Cell}}\t{{ .Status }}:{{.exit}}")
    assert out.splitlines() == [f"{one.id}\trunning:", f"{two.id}\trogue:120"]
    _, out, _ = typed(capfd, "ps", "-a", "--format", "json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0]["pid"] == os.getpid() and rows[1]["exit"] == 120 and rows[1]["ended"]
    code, _, err = typed(capfd, "ps", "--format", "{{.Colour}}")
    assert code == 125 and "'Colour'" in err and "{{.Status}}" in err


def test_ps_says_that_a_frozen_machine_waits_and_how_to_look_in(
    running: tuple[Folder, EventLog], capfd: pytest.CaptureFixture[str]
) -> None:
    cell, log = running
    log.append("frozen", reason="x")
    _, out, err = typed(capfd, "ps")
    assert "frozen, waits for you" in out
    for words in (f"logs --console {cell.id}", "gcore -o FILE 4242", f"wgcell stop {cell.id}"):
        assert words in err
    finding = checks._frozen()
    assert not finding.ok and cell.id in finding.found and "gcore" in finding.fix
    assert checks._frozen in checks.CHECKS and checks._configuration in checks.CHECKS


VERBS = ["logs", "events", "inspect", "stop", "rm", "wait", "pause", "unpause"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_beginning_of_two_names_is_an_error_in_every_verb(
    state: Path, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    cells = [ended(state, "one"), ended(state, "other")]
    code, _, err = typed(capfd, verb, "o")
    assert code == 125 and all(cell.id in err for cell in cells)
    assert all(cell.path.exists() for cell in cells)


def test_prune_takes_ended_cells_and_asks(
    state: Path, running: tuple[Folder, EventLog], capfd: pytest.CaptureFixture[str]
) -> None:
    old, new = ended(state, "old"), ended(state, "new")
    os.utime(old.path / "lock", (time.time() - 3600,) * 2)
    code, out, err = typed(capfd, "prune")
    assert code == 125 and "--force" in err and out == ""
    code, out, _ = typed(capfd, "prune", "--force", "--older", "0.5h")
    assert (code, out.split()) == (0, [old.id])
    code, out, _ = typed(capfd, "prune", "--force")
    assert (code, out.split()) == (0, [new.id])
    assert running[0].path.exists() and (state / running[0].id / "lock").exists()


def test_logs_follow_both_streams_until_the_end(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cell = create(state, "x")
    fd = cell.hold()
    printed: list[str] = []

    def wait_for(text: str) -> None:
        def is_printed() -> bool:
            printed.extend(capfd.readouterr())
            return text in "".join(printed)

        until(is_printed, text)

    def work() -> None:
        try:
            for name, text in (("stdout", "one"), ("stderr", "two"), ("stdout", "three")):
                with (cell.path / f"{name}.log").open("a") as file:
                    file.write(text)
                wait_for(text)
        finally:
            os.close(fd)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    with pytest.raises(SystemExit) as caught:
        main.main(["logs", "-f", "x"])
    worker.join()
    assert caught.value.code == 0
    assert "".join(printed) == "onetwothree"


def test_the_last_lines_of_each_stream(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cell = ended(state, "x")
    (cell.path / "stdout.log").write_text("1\n2\n3\n")
    (cell.path / "stderr.log").write_text("a")
    for count, expected in (("0", ""), ("1", "3\n"), ("2", "2\n3\n"), ("9", "1\n2\n3\n")):
        assert typed(capfd, "logs", "--tail", count, "x")[1] == expected


def test_stop_ends_a_cell_and_rm_force_deletes_it(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import pathlib, signal, sys, time\nfrom wgcell.cell.folder import create\n"
        "cell = create(pathlib.Path(sys.argv[1]), 'x'); cell.hold()\n"
        "signal.signal(getattr(signal, sys.argv[2]), lambda *_: sys.exit())\n"
        "print(cell.id, flush=True)\n"
        "while True: time.sleep(0.02)"  # not pause(): a signal just before it would be lost
    )
    ways = ((("stop",), "SIGTERM"), (("stop", "--now"), "SIGQUIT"), (("rm", "--force"), "SIGQUIT"))
    for words, number in ways:
        argv = [sys.executable, "-c", script, str(state), number]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        name = process.stdout.readline().strip()
        code, out, err = typed(capfd, *words, name)
        assert (code, out.split()) == (0, [name]), err
        assert process.wait(GENEROUS) == 0
        process.stdout.close()
        assert (state / name).exists() == (words[0] == "stop")
    assert signal.getsignal(signal.SIGTERM) is not None


def test_an_end_that_has_come_is_printed_at_once(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = ended(state, "one", code=3), ended(state, "two", "rogue", 120)
    assert typed(capfd, "wait", "two", one.id)[:2] == (0, "120\n3\n")
    (two.path / "result.json").unlink()
    code, out, err = typed(capfd, "wait", "two")
    assert (code, out) == (0, "125\n") and f"{two.id} died without an end" in err


def test_a_cell_without_a_socket_is_waited_for_all_the_same(state: Path) -> None:
    cell = create(state, "busy")
    lock = cell.hold()
    waiting = subprocess.Popen(
        [sys.executable, "-P", "-m", "wgcell", "wait", "busy"],
        env={**os.environ, "WGCELL_STATE_DIR": str(state)},
        stdout=subprocess.PIPE,
    )
    with waiting:
        cell.write("result.json", {"outcome": "completed", "exit_code": 9})
        assert waiting.poll() is None, "it is alive: the lock is held"
        os.close(lock)
        assert waiting.communicate(timeout=GENEROUS)[0] == b"9\n"


@pytest.mark.parametrize("verb", ["pause", "unpause"])
def test_what_has_ended_or_has_no_socket_can_not_be_paused(
    state: Path, running: tuple[Folder, EventLog], capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    ended(state, "old")
    code, _, err = typed(capfd, verb, "old")
    assert code == 125 and "is not running: completed" in err
    code, _, err = typed(capfd, verb, "busy")
    assert code == 125 and "it can't be reached" in err


def test_a_record_says_that_a_machine_stands_still(
    running: tuple[Folder, EventLog],
) -> None:
    cell, log = running
    for event, status in (("paused", "paused"), ("unpaused", "running"), ("paused", "paused")):
        log.append(event, by=0)
        assert cell.status() == status
    log.append("state", state="terminating")
    log.append("unpaused", by=None)
    assert cell.status() == "terminating"


def completed(shell_words: str, number: int, state: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from wgcell.cli.main import program; program()"],
        env={
            **os.environ,
            "WGCELL_STATE_DIR": str(state),
            "WGCELL_CACHE_DIR": str(state / "cache"),
            "_WGCELL_COMPLETE": "complete_bash",
            "COMP_WORDS": shell_words,
            "COMP_CWORD": str(number),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.split()


def test_a_shell_completes_cells_and_images(state: Path) -> None:
    cell = ended(state, "train")
    (state / "$(reboot)-abcdef").mkdir()
    (state / "$(reboot)-abcdef/lock").write_text("")
    for name in ("good", "$(reboot)"):
        image = state / "cache/images" / name
        image.mkdir(parents=True)
        digests = dict.fromkeys(("kernel", "initramfs", "rootfs"), "")
        (image / "manifest.json").write_text(json.dumps({"sha256": digests}))
    assert completed("wgcell logs ", 2, state) == [cell.name, cell.id]
    assert completed("wgcell rm train-", 2, state) == [cell.id]
    other = ended(state, "train")  # its name is two cells' now
    assert completed("wgcell wait tr", 2, state) == [cell.id, other.id]
    assert completed("wgcell image rm ", 3, state) == ["good"]
    assert completed("wgcell run --image ", 3, state) == ["good"]
