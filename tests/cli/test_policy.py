"""``allow``, ``deny``, ``policy`` and ``port``: typed, asked of a cell, and printed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from tests.support.answering import Answering
from tests.support.commands import ended, typed

from wgcell.cell.control import words
from wgcell.errors import StateError

ME = os.getuid()


class Cell(Answering):
    """One that notes what it is asked, and has three rules."""

    def __init__(self, cells: Path) -> None:
        self.asked: list[object] = []
        self.refuses = ""
        super().__init__(cells)

    async def change_policy(
        self, question: words.Allow | words.Deny, uid: int
    ) -> words.PolicyChanged:
        if self.refuses:
            raise StateError(self.refuses)
        self.asked.append(question)
        if isinstance(question, words.Deny):
            return words.PolicyChanged(f"deny {question.rule}", 2)
        until = None if question.seconds is None else time.time() + question.seconds
        return words.PolicyChanged(f"allow {question.rule}", 0, until)

    async def policy(self) -> AsyncGenerator[words.Rule, None]:
        yield words.Rule("allow b.example.com:443", "order", ME, 4e9)
        yield words.Rule("allow api.example.com:443", "start")
        yield words.Rule("publish 127.0.0.1:8080:80", "published")


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
    monkeypatch.setenv("WGCELL_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with contextlib.closing(Cell(tmp_path)) as made:
        yield made


def test_allow_says_until_when(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    line = ("allow", "busy", "b.example.com:443", "203.0.113.7:80", "--for", "10m")
    code, out, err = typed(capfd, *line)
    assert (code, err) == (0, "")
    assert cell.asked == [
        words.Allow("b.example.com:443", True, 600.0),
        words.Allow("203.0.113.7:80", True, 600.0),
    ]
    first, second = out.splitlines()
    assert first.startswith(f"{cell.folder.id}: allow b.example.com:443 until ")
    assert second.startswith(f"{cell.folder.id}: allow 203.0.113.7:80 until ")
    code, out, _ = typed(capfd, "allow", "busy", "b.example.com:443")
    assert (code, out) == (0, f"{cell.folder.id}: allow b.example.com:443\n")


def test_deny_says_how_many_flows_it_has_cut(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capfd, "deny", "busy", "api.example.com:*")
    assert (code, out) == (0, f"{cell.folder.id}: deny api.example.com:*; 2 open flows cut\n")
    assert cell.asked == [words.Deny("api.example.com:*")]


def test_what_opens_more_than_is_meant_is_warned_of(
    cell: Cell, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed(capfd, "allow", "busy", "*:443")
    assert code == 0 and "OPENS EVERY PUBLIC HOST" in err


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (("allow", "busy", "a.example.com:443", "b.example.com"), "has no port"),
        (("allow", "busy", "a.example.com:443", "--for", "soon"), "--for: found 'soon'"),
        (("allow", "busy", "a.example.com:443", "--for", "0"), "--for: found"),
        (("deny", "busy", "https://a.example.com/"), "is a URL"),
        (("allow", "nobody", "a.example.com:443"), "nobody"),
        (("allow", "busy"), "HOST:PORT"),
    ],
)
def test_a_wrong_line_changes_nothing(
    cell: Cell, capfd: pytest.CaptureFixture[str], line: tuple[str, ...], word: str
) -> None:
    code, out, err = typed(capfd, *line)
    assert code == 125 and word in err and not out
    assert not cell.asked


def test_a_refusal_is_printed(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    cell.refuses = "its tunnel leads to another server"
    code, _, err = typed(capfd, "deny", "busy", "*:*")
    assert code == 125 and f"{cell.folder.id}: its tunnel leads to another server" in err


def test_policy_as_a_table_and_as_lines(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capfd, "policy", "busy")
    head, *rows = out.splitlines()
    assert code == 0 and head.split() == ["RULE", "FROM", "BY", "UNTIL"]
    assert rows[0].split()[:3] == ["allow", "b.example.com:443", "order"]
    assert rows[0].endswith("2096-10-02 07:06:40")
    assert rows[1].split() == ["allow", "api.example.com:443", "start"]
    assert rows[2].split() == ["publish", "127.0.0.1:8080:80", "publish"]
    code, out, _ = typed(capfd, "policy", "busy", "--json")
    lines = list(map(json.loads, out.splitlines()))
    assert code == 0 and lines[:2] == [
        {"rule": "allow b.example.com:443", "origin": "order", "by": ME, "until": 4e9},
        {"rule": "allow api.example.com:443", "origin": "start", "by": None, "until": None},
    ]


def test_port(cell: Cell, capfd: pytest.CaptureFixture[str]) -> None:
    assert typed(capfd, "port", "busy") == (0, "", "")
    with (cell.folder.path / "events.jsonl").open("ab") as record:
        for address, port, inside in (
            *(("127.0.0.1", 49152, 80), ("::1", 8022, 22)),
            ("127.0.0.1", "\x1b[2J", 23),  # no line of wgcell's
        ):
            event = {"event": "published", "address": address, "port": port, "inside": inside}
            record.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
    assert typed(capfd, "port", "busy")[1] == "80 -> 127.0.0.1:49152\n22 -> [::1]:8022\n"
    assert typed(capfd, "port", "busy", "22")[1] == "[::1]:8022\n"
    code, _, err = typed(capfd, "port", "busy", "23")
    assert code == 125 and "port 23 is not published" in err


@pytest.mark.parametrize("line", [("allow", "old", "a:1"), ("policy", "old"), ("port", "old")])
def test_a_cell_that_has_ended_has_no_rules(
    cell: Cell, tmp_path: Path, capfd: pytest.CaptureFixture[str], line: tuple[str, ...]
) -> None:
    ended(tmp_path, "old")
    code, _, err = typed(capfd, *line)
    assert code == 125 and "is not running: completed" in err
