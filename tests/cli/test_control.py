"""The verbs of cells that run, over a cell's control socket and without it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.answering import Answering
from tests.support.commands import typed
from tests.support.waiting import until

from wgcell.cell.control.place import NAME


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    monkeypatch.setenv("WGCELL_STATE_DIR", str(tmp_path))
    with contextlib.closing(Answering(tmp_path)) as made:
        yield made


def test_a_cell_says_its_state_itself(cell: Answering, capfd: pytest.CaptureFixture[str]) -> None:
    assert "verifying the tunnel" in typed(capfd, "ps")[1]
    (cell.folder.path / NAME).unlink()
    assert "verifying the tunnel" not in typed(capfd, "ps")[1]


@pytest.mark.parametrize("now", [False, True])
def test_stop(cell: Answering, capfd: pytest.CaptureFixture[str], now: bool) -> None:
    assert typed(capfd, "stop", *(["--now"] if now else []), "busy")[:2] == (
        0,
        f"{cell.folder.id}\n",
    )
    assert cell.stopped == [now]


def test_a_cell_that_does_not_answer_is_signalled(
    cell: Answering, capfd: pytest.CaptureFixture[str]
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
    cell: Answering, capfd: pytest.CaptureFixture[str], verb: str, socket: bool
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
    code, rest, _ = typed(capfd, verb, "-f", *(["-n", "1"] if verb == "logs" else []), "busy")
    ending.join()
    whole = heard + rest
    assert code == 0
    if verb == "events":
        assert whole.encode() == (cell.folder.path / "events.jsonl").read_bytes()
    else:
        assert whole == "two\nlast words\n"
