from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from wgcell.cell.folder import CappedLog, all_cells, create, find, state_folder
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
