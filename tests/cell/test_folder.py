from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from wgcell.cell.events import EventLog
from wgcell.cell.folder import (
    CappedLog,
    Folder,
    all_cells,
    check_writable,
    create,
    find,
    state_folder,
    state_folders,
)
from wgcell.errors import StateError


def test_two_cells_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    one, two = create(tmp_path, "train"), create(tmp_path, "train")
    assert one.path != two.path
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o700


def test_the_lock_tells_the_living_from_the_dead(tmp_path: Path) -> None:
    cell = create(tmp_path, "train")
    fd = cell.hold()
    assert cell.alive and cell.supervisor() == os.getpid()
    with pytest.raises(StateError, match="is running"):
        cell.remove()
    os.close(fd)
    assert not cell.alive
    assert cell.status() == "died"
    cell.write("result.json", {"outcome": "completed"})
    assert cell.status() == "completed"
    cell.remove()
    assert all_cells(tmp_path) == []


def test_find_by_id_name_and_beginning(tmp_path: Path) -> None:
    cell = create(tmp_path, "train")
    os.close(cell.hold())
    for wanted in (cell.id, "train", cell.id[:7]):
        assert find(tmp_path, wanted) == cell
    for wanted in ("", "nothing"):
        with pytest.raises(StateError, match="no cell"):
            find(tmp_path, wanted)


def cells_of(folder: Path, *names: str) -> list[Folder]:
    made = [create(folder, name) for name in names]
    for cell in made:
        os.close(cell.hold())
    return made


@pytest.mark.parametrize("wanted", ["train", "tr", "t"])
def test_what_names_two_cells_is_an_error_that_lists_them(tmp_path: Path, wanted: str) -> None:
    cells = cells_of(tmp_path, "train", "train", "other")
    with pytest.raises(StateError, match="any of 2 cells") as caught:
        find(tmp_path, wanted)
    for cell in cells[:2]:
        assert cell.id in str(caught.value)
        assert find(tmp_path, cell.id) == cell
    assert cells[2].id not in str(caught.value)


def test_cells_are_found_in_several_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    folders = (tmp_path / "a", tmp_path / "b", tmp_path / "absent")
    one, two = *cells_of(folders[0], "one"), *cells_of(folders[1], "two")
    assert {cell.id for cell in all_cells(*folders)} == {one.id, two.id}
    assert find(folders, "two") == two


@pytest.mark.skipif(os.geteuid() != 0, reason="root's view")
def test_root_sees_all_users_unless_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / ".local/state/wgcell/cells"
    theirs.mkdir(parents=True)
    user = pwd.struct_passwd(("u", "x", 1234, 1234, "", str(tmp_path), ""))
    monkeypatch.setattr(pwd, "getpwall", lambda: [user, user])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("WGCELL_STATE_DIR", raising=False)
    assert state_folders() == (tmp_path / "own/wgcell/cells", theirs)
    assert state_folders(tmp_path) == (tmp_path,)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert state_folders() == (tmp_path / "own/wgcell/cells",)


def test_a_lock_that_names_anothers_process_leads_to_no_signal(tmp_path: Path) -> None:
    """Root stops another user's cell: the pid is that user's word."""
    cell = create(tmp_path, "x")
    fd = cell.hold()
    if os.geteuid() == 0:
        os.fchown(fd, 12345, -1)
    # Ours, which is not the owner's (or, for an ordinary user, root's kernel threads).
    others = os.getpid() if os.geteuid() == 0 else 2
    for pid in (b"1", b"0", b"-1", b"999999999", b"x", str(others).encode()):
        os.ftruncate(fd, 0)
        os.pwrite(fd, pid, 0)
        assert cell.supervisor() is None
    os.close(fd)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "large", "deep"])
def test_what_is_no_record_is_not_read(tmp_path: Path, kind: str) -> None:
    (cell,) = cells_of(tmp_path, "x")
    record = cell.path / "result.json"
    (tmp_path / "secret").write_text('{"outcome": "secret"}')
    match kind:
        case "link":
            record.symlink_to(tmp_path / "secret")
        case "pipe":
            os.mkfifo(record)
        case "folder":
            record.mkdir()
        case "large":
            with record.open("wb") as file:
                file.truncate(1 << 40)
        case "deep":
            record.write_bytes(b"[" * 1_000_000)
    assert cell.read("result.json") is None
    assert cell.status() == "died"


def test_only_what_is_named_as_a_cell_is_one(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "x")
    for name in ("faults", "x-ABCDEF", "\x1b[2J-abcdef", "x-abcdef\n", ".x-abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").write_text("")
    (tmp_path / "l-abcdef").symlink_to(cell.path)
    assert all_cells(tmp_path) == [cell]


def test_a_frozen_cell_says_so(tmp_path: Path) -> None:
    cell = create(tmp_path, "x")
    fd = cell.hold()
    log = EventLog(cell.path / "events.jsonl", lambda event: None)
    log.append("state", state="running")
    log.append("flow", name='"event":"frozen"')
    assert cell.status() == "running"
    log.append("frozen", reason="x")
    assert cell.status() == "frozen"
    log.close()
    os.close(fd)


def test_a_probe_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose name was foreseen."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    cells = tmp_path / "cells"
    cells.mkdir()
    monkeypatch.setattr("secrets.token_hex", lambda size: "foreseen")
    (cells / ".probe-foreseen").symlink_to(victim)
    (cells / f".probe-{os.getpid()}").symlink_to(victim)
    with pytest.raises(StateError, match="File exists"):
        check_writable(cells)
    assert victim.read_text() == "mine"
    (cells / ".probe-foreseen").unlink()
    check_writable(cells)
    assert victim.read_text() == "mine"
    assert [path.name for path in cells.iterdir()] == [f".probe-{os.getpid()}"]


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        create(tmp_path / "file", "train")


def test_where_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WGCELL_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "wgcell" / "cells"
    monkeypatch.setenv("WGCELL_STATE_DIR", str(tmp_path / "named"))
    assert state_folder() == tmp_path / "named"
    assert state_folder(tmp_path / "chosen") == tmp_path / "chosen"


def test_a_log_is_capped(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", cap=10)
    for _ in range(1000):
        log.write(b"12345678")
    log.close()
    content = (tmp_path / "log").read_bytes()
    assert content.startswith(b"1234567812\n[wgcell:")
    assert len(content) < 100
