from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from wgcell.cell import events
from wgcell.cell.events import EventLog, broken_link
from wgcell.cell.listening import RATES
from wgcell.errors import StateError


def written(path: Path, count: int) -> list[bytes]:
    told: list[dict[str, Any]] = []
    log = EventLog(path, told.append)
    for number in range(count):
        log.append("state", state=f"s{number}")
    log.close()
    assert [entry["seq"] for entry in told] == list(range(count))
    return path.read_bytes().splitlines(keepends=True)


def test_the_chain_holds(tmp_path: Path) -> None:
    lines = written(tmp_path / "events.jsonl", 5)
    assert broken_link(lines) is None
    assert json.loads(lines[0])["prev"] == "0" * 64


@pytest.mark.parametrize("harm", ["changed", "removed", "swapped", "garbage"])
def test_a_harmed_line_is_found(tmp_path: Path, harm: str) -> None:
    lines = written(tmp_path / "events.jsonl", 5)
    match harm:
        case "changed":
            lines[1] = lines[1].replace(b"s1", b"sX")
        case "removed":
            del lines[2]
        case "swapped":
            lines[1], lines[2] = lines[2], lines[1]
        case "garbage":
            lines[3] = b"\xff\n"
    assert broken_link(lines) is not None


def test_a_line_is_on_disk_before_anyone_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    found: list[bool] = []
    log = EventLog(path, lambda entry: found.append(entry["event"].encode() in path.read_bytes()))
    log.append("ended")
    log.close()
    assert found == [True]


def test_every_line_has_the_cells_id_the_first_its_folder_and_a_listener_the_very_bytes(
    tmp_path: Path,
) -> None:
    (tmp_path / "x-abcdef").mkdir()
    path = tmp_path / "x-abcdef/events.jsonl"
    told: list[events.Event] = []
    log = EventLog(path, told.append)
    log.append("state", state="\u00e9\ud800")
    log.append("state", state="two")
    log.close()
    assert b"".join(event.line + b"\n" for event in told) == path.read_bytes()
    assert [event["cell"] for event in told] == ["x-abcdef"] * 2
    assert [event.get("folder") for event in told] == [str(path.parent), None]


def test_an_existing_record_is_never_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("{}\n")
    with pytest.raises(StateError):
        EventLog(path, lambda entry: None)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", lambda entry: None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)
    os.close(full)
    with pytest.raises(StateError, match="No space left"):
        log.append("state")
    log.close()


def test_what_a_guest_causes_at_will_is_bounded_and_the_rest_counted(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", lambda entry: None)
    logged = sum(log.log_bounded("flow", n=n) for n in range(5000))
    log.append("state", state="ended")
    log.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert RATES["flow"].at_once <= logged < RATES["flow"].at_once + 1000
    assert broken_link(lines) is None
    unlogged = [json.loads(line) for line in lines if b'"unlogged"' in line]
    assert sum(one["counts"]["flow"] for one in unlogged) == 5000 - logged
