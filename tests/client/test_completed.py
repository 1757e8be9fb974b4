"""What a program gets of a cell that has ended: read strictly off a record that may be odd."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from wgcell.cell.events import EventLog
from wgcell.cell.folder import LOG_CAP, Folder, create
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.client.completed import (
    Completed,
    Refusal,
    Usage,
    checked,
    completed_of,
    died,
    end_of,
    refusals,
)
from wgcell.client.record import event_of, lines, recorded_end
from wgcell.errors import (
    CommandFailed,
    Ended,
    NeverRan,
    OutcomeUnknown,
    Refused,
    Rogue,
    TimedOut,
    Unverified,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return create(tmp_path, "x")


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("released", [True, False])
def test_each_outcome_is_an_error_but_one(folder: Folder, outcome: Outcome, released: bool) -> None:
    error = end_of(folder, outcome.value, 99, "why", released=released)
    if not released:
        wanted: type = Unverified if outcome is Outcome.UNVERIFIED else NeverRan
        assert type(error) is wanted and "why" in str(error)
        return
    if outcome in (Outcome.COMPLETED, Outcome.INCOMPLETE):
        assert error is None
        return
    kinds: dict[Outcome, type] = {Outcome.ROGUE: Rogue, Outcome.TIMEOUT: TimedOut}
    assert isinstance(error, Ended) and type(error) is kinds.get(outcome, Ended)
    assert (error.outcome, error.exit_code) == (outcome.value, 99)
    assert (error.cell, error.folder) == (folder.id, str(folder.path))


def test_whether_it_ran_is_on_the_record_before_it_runs(folder: Folder) -> None:
    assert type(died(folder)) is NeverRan
    log = EventLog(folder.path / "events.jsonl", lambda event: None)
    log.append("state", state="verifying")
    assert type(died(folder)) is NeverRan
    log.append("state", state="running")
    log.close()
    assert type(died(folder)) is OutcomeUnknown


RESULT: dict[str, Any] = {
    "outcome": "completed",
    "exit_code": 3,
    "phases": {"running": 2.0, "stopping": 5.5},
    "relay": {"bytes_out": 10, "bytes_in": 20, "refused": {}},
}


def test_what_a_cell_has_come_to(folder: Folder) -> None:
    folder.write("result.json", RESULT)
    folder.write("job.json", {"command": ["sh", "-c", "x"]})
    (folder.path / "stdout.log").write_bytes(b"out")
    done = completed_of(folder, 3)
    assert done == Completed(
        folder.id, str(folder.path), ("sh", "-c", "x"), 3, b"out", b"", Usage(3.5, 10, 20)
    )
    with (folder.path / "stderr.log").open("wb") as file:
        file.truncate(LOG_CAP + 60)
    done = completed_of(folder, 118, "the output a does not exist")
    assert (len(done.stderr), done.truncated) == (LOG_CAP, True)
    assert done.missing == "the output a does not exist"


@pytest.mark.parametrize("odd", [{}, {"phases": 7, "relay": []}, {"phases": {"running": "x"}}])
def test_an_odd_record_is_no_traceback(folder: Folder, odd: dict[str, Any]) -> None:
    folder.write("result.json", odd)
    folder.write("job.json", {"command": 7})
    os.mkfifo(folder.path / "stdout.log")
    assert completed_of(folder, 0).usage == Usage(0.0)
    assert recorded_end(folder) is None


def test_an_end_is_read_off_its_record(folder: Folder) -> None:
    assert recorded_end(folder) is None
    folder.write("result.json", RESULT)
    found = recorded_end(folder)
    assert found is not None and (found.outcome, found.exit_code, found.reason) == (
        *("completed", 3, ""),
    )
    assert EXIT_CODES


def test_an_event_is_its_line(folder: Folder) -> None:
    log = EventLog(folder.path / "events.jsonl", lambda event: None)
    log.append("one")
    log.append("two", what="x")
    log.close()
    (line,) = lines(folder, 1)
    event = event_of(line)
    assert (event.name, event.seq, event.fields["what"]) == ("two", 1, "x")
    assert event.fields == json.loads(line)
    (folder.path / "events.jsonl").unlink()
    assert lines(folder, 0) == []


def flow(**more: Any) -> dict[str, Any]:
    return {
        "event": "flow",
        "verdict": "refuse",
        "protocol": "tcp",
        "name": "a.example.com",
        "port": 443,
        "reason": "no rule allows it",
        "hint": "a.example.com:443",
        **more,
    }


def test_refusals_are_told_once_each_and_since_when() -> None:
    events = [
        (1.0, flow(name="early.example.com")),
        (2.0, flow()),
        (3.0, flow()),
        (4.0, flow(verdict="allow", name="b.example.com")),
        (5.0, {"event": "state", "state": "running"}),
        (6.0, flow(name="", address="192.0.2.1", hint="--service x")),
        (7.0, flow(verdict="fail", name="c.example.com")),
    ]
    found = refusals(events, 2.0)
    assert found == (
        Refusal("a.example.com:443", "a.example.com:443", "no rule allows it", 2.0),
        Refusal("192.0.2.1:443", "", "no rule allows it", 6.0),
    )


def test_an_exit_code_is_checked() -> None:
    good = Completed("x", "/x", ("true",), 0, b"", b"", Usage(1.0))
    refused = refusals([(1.0, flow(name="", address="192.0.2.1", hint="")), (2.0, flow())], 0.0)
    assert checked(good, refused) is good
    bad = Completed("x", "/x", ("false", "y"), 9, b"out", b"err", Usage(1.0))
    with pytest.raises(CommandFailed, match="x: false y exited with 9") as caught:
        checked(bad, ())
    assert type(caught.value) is CommandFailed and caught.value.stderr == b"err"
    with pytest.raises(Refused, match=r"refused a\.example\.com:443") as told:
        checked(bad, refused)
    assert told.value.rule == told.value.what == "a.example.com:443"
    with pytest.raises(Refused) as told:
        checked(bad, refused[:1])
    assert told.value.rule == "" and told.value.hint == ""
