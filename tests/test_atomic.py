"""A file is there whole, or as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wgcell import atomic


def test_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content, mode in ((b"one", 0o600), (b"two", 0o600)):
        atomic.write(file, content, mode)
        assert file.read_bytes() == content and file.stat().st_mode & 0o777 == mode
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, file = tmp_path / "target", tmp_path / "file"
    target.write_bytes(b"kept")
    file.symlink_to(target)
    atomic.write(file, b"new")
    assert target.read_bytes() == b"kept" and not file.is_symlink()


def test_what_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    (folder / "full").mkdir(parents=True)
    with pytest.raises(OSError):
        atomic.write(folder, b"a folder is not replaced by a file")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(OSError):
        atomic.write(tmp_path / "no such folder" / "file", b"")


def test_a_name_of_any_length_and_any_bytes(tmp_path: Path) -> None:
    for name in ("a" * 255, "\udcff" * 255, "\u00e9" * 127):
        atomic.write(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
