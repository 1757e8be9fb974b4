"""The verbs of cells that run, over a cell's control socket and without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.waiting import GENEROUS, until

from wgcell.cell.control.listener import Listener
from wgcell.cell.control.place import NAME
from wgcell.cell.events import EventLog
from wgcell.cell.folder import create
from wgcell.cli import main


class Cell:
    """One that runs in a thread of ours, with its socket, until it is stopped."""

    def __init__(self, cells: Path) -> None:
        self.folder = create(cells, "busy")
        self.folder.write("job.json", {"name": "busy", "command": ["sleep", "9"]})
        self._lock = self.folder.hold()
        self.state = "verifying"
        self.stopped: list[bool] = []
        self._up, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._thread.start()
        assert self._up.wait(GENEROUS)

    async def _live(self) -> None:
        listener = Listener(self.folder, self)
        await listener.start()
        log = EventLog(self.folder.path / "events.jsonl", lambda event: listener.wake())
        log.append("state", state="running")  # the record's last: the cell itself knows better
        self._up.set()
        await asyncio.to_thread(self._ended.wait)
        log.append("ended", outcome="cancelled")
        with (self.folder.path / "stdout.log").open("ab") as file:
            file.write(b"last words\n")
        log.close()
        await listener.close()
        self.folder.write("result.json", {"outcome": "cancelled", "exit_code": 130})
        os.close(self._lock)

    def stop(self, *, now: bool) -> None:
        self.stopped.append(now)
        self._ended.set()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(GENEROUS)


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
    monkeypatch.setenv("WGCELL_STATE_DIR", str(tmp_path))
    with contextlib.closing(Cell(tmp_path)) as made:
        yield made


def typed(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    return int(str(caught.value.code)), capfd.readouterr().out


def test_a_cell_says_its_state_itself(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    assert "verifying the tunnel" in typed(capfd, "ps")[1]
    (cell.folder.path / NAME).unlink()
    assert "verifying the tunnel" not in typed(capfd, "ps")[1]


@pytest.mark.parametrize("now", [False, True])
def test_stop(cell: Cell, capfd: pytest.CaptureFixture[str], now: bool) -> None:
    assert typed(capfd, "stop", *(["--now"] if now else []), "busy") == (0, f"{cell.folder.id}\n")
    assert cell.stopped == [now]


def test_a_cell_that_does_not_answer_is_signalled(
    cell: Cell, capfd: pytest.CaptureFixture[str]
) -> None:
    (cell.folder.path / NAME).unlink()
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        cell.stop(now=False)

    before = signal.signal(signal.SIGTERM, hear)
    try:
        assert typed(capfd, "stop", "busy")[0] == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("socket", [True, False])
@pytest.mark.parametrize("verb", ["events", "logs"])
def test_following_to_the_end(
    cell: Cell, capfd: pytest.CaptureFixture[str], verb: str, socket: bool
) -> None:
    """With the cell's socket, and by its files alone."""
    (cell.folder.path / "stdout.log").write_bytes(b"one\ntwo\n")
    if not socket:
        (cell.folder.path / NAME).unlink()
    heard = ""

    def end() -> None:
        nonlocal heard

        def first() -> bool:
            nonlocal heard
            heard += capfd.readouterr().out
            return '"running"' in heard or "two" in heard

        until(first)
        cell.stop(now=False)

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    code, rest = typed(capfd, verb, "-f", *(["-n", "1"] if verb == "logs" else []), "busy")
    ending.join()
    whole = heard + rest
    assert code == 0
    if verb == "events":
        assert whole.encode() == (cell.folder.path / "events.jsonl").read_bytes()
    else:
        assert whole == "two\nlast words\n"
