"""`events --verify`: a record, and every way of changing what it vouches for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wgcell.cell.events import EventLog
from wgcell.cell.folder import Folder, create
from wgcell.cell.vouched import file_digest, job_digests, record_digests, tree_digest, verify


def whole(tmp_path: Path) -> Folder:
    """A cell's folder as the supervisor leaves it."""
    image = tmp_path / "debian"
    image.mkdir()
    (image / "manifest.json").write_text("{}")
    cell = create(tmp_path, "x")
    cell.write("job.json", {"name": "x"})
    log = EventLog(cell.path / "events.jsonl", lambda event: None)
    log.append("state", state="preparing")
    log.append("job", **job_digests(cell.path, image))
    log.append("inputs", **file_digest(cell.path / "job.json"))
    (cell.path / "stdout.log").write_bytes(b"out\xff")
    (cell.path / "rogue.pcapng").write_bytes(b"frame")
    (cell.path / "outputs/sub").mkdir(parents=True)
    (cell.path / "outputs/sub/a").write_text("a")
    (cell.path / "outputs/link").symlink_to("sub/a")
    cell.write("result.json", {"outcome": "rogue"})
    log.append("records", **record_digests(cell.path))
    log.append("ended", outcome="rogue")
    log.close()
    return cell


def test_a_record_holds(tmp_path: Path) -> None:
    found = verify(whole(tmp_path))
    assert found.good, found.wrong
    for name in ("job.json", "stdout.log", "result.json", "rogue.pcapng", "outputs/", "image"):
        assert any(name in covered for covered in found.covered), name
    assert found.missing == ()
    assert found.head in found.lines()[-1]


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


HARM: dict[str, Callable[[Path], object]] = {
    "job.json": lambda p: append(p / "job.json"),
    "stdout.log": lambda p: append(p / "stdout.log"),
    "result.json": lambda p: (p / "result.json").write_text("{}"),
    "rogue.pcapng": lambda p: (p / "rogue.pcapng").unlink(),
    "stderr.log": lambda p: (p / "stderr.log").write_text("added"),
    "outputs/ ": lambda p: append(p / "outputs/sub/a"),
    "outputs/  ": lambda p: (p / "outputs/new").write_text(""),
    "outputs/   ": lambda p: (p / "outputs/sub/a").chmod(0o777),
    "outputs/    ": lambda p: (p / "outputs/sub/a").rename(p / "outputs/sub/b"),
    "outputs/     ": lambda p: [
        (p / "outputs/link").unlink(),
        (p / "outputs/link").symlink_to("x"),
    ],
    "has no end": lambda p: cut(p / "events.jsonl", 1),
    "line 2: its prev": lambda p: edit(p / "events.jsonl", 0),
    "line 3: its prev": lambda p: edit(p / "events.jsonl", 1),
    "no JSON": lambda p: append(p / "events.jsonl"),
    "no line": lambda p: (p / "events.jsonl").write_text(""),
}


def cut(path: Path, count: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-count]))


def edit(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"x-', b'"y-')
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("words", HARM)
def test_what_was_changed_is_found_and_named(tmp_path: Path, words: str) -> None:
    cell = whole(tmp_path)
    HARM[words](cell.path)
    found = verify(cell)
    assert not found.good
    assert words.strip() in " ".join(found.wrong)
    assert all(line.startswith("wrong: ") for line in found.lines())


def test_a_cell_that_died_is_whole_and_said_to_have_no_end(tmp_path: Path) -> None:
    cell = whole(tmp_path)
    cut(cell.path / "events.jsonl", 2)
    (cell.path / "result.json").unlink()
    found = verify(cell)
    assert found.good
    assert "no end" in " ".join(found.missing) and "digests" in " ".join(found.missing)


def test_a_hostile_record_leads_nowhere(tmp_path: Path) -> None:
    """Names that an event states are not opened; links and pipes are not followed."""
    cell = create(tmp_path, "x")
    (cell.path / "outputs").mkdir()
    os.mkfifo(cell.path / "outputs/pipe")
    os.mkfifo(cell.path / "stdout.log")
    log = EventLog(cell.path / "events.jsonl", lambda event: None)
    log.append("records", files={"/etc/passwd": {"sha256": ""}, "stdout.log": {}}, outputs={})
    log.append("records", files=[1], outputs=[2])
    log.append("ended")
    log.close()
    found = verify(cell)
    assert not found.good
    assert "passwd" not in " ".join((*found.wrong, *found.covered))
    assert json.dumps(record_digests(cell.path))
    assert tree_digest(cell.path / "outputs")["files"] == 0


def test_outputs_that_left_for_the_callers_folder_are_not_missed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    log = EventLog(tmp_path / "events.jsonl", lambda event: None)
    log.append("records", files={}, outputs={"sha256": "0" * 64, "leave_for": "/home/someone"})
    log.append("ended")
    log.close()
    verified = verify(Folder(tmp_path))
    assert verified.good
    assert any("/home/someone" in words for words in verified.missing)
