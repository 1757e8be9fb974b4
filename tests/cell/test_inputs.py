"""Packing inputs: what lands in the tar, and what is refused by name."""

from __future__ import annotations

import os
import socket
import tarfile
from pathlib import Path

import pytest

from wgcell.cell.inputs import pack
from wgcell.errors import InputFileError, StateError


def names(path: Path) -> list[str]:
    with tarfile.open(path, "r:") as tar:
        return tar.getnames()


def folder_of_inputs(base: Path) -> Path:
    data = base / "data"
    (data / "sub").mkdir(parents=True)
    (data / "b.csv").write_text("b")
    (data / "a.csv").write_text("a" * 600)
    (data / "sub" / "c").write_text("c")
    (data / "link").symlink_to("sub/c")
    return data


def test_order_owners_and_padding(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    size = pack([data], tmp_path / "out.tar")
    assert size == (tmp_path / "out.tar").stat().st_size
    assert size % 512 == 0
    assert names(tmp_path / "out.tar") == [
        "data",
        "data/a.csv",
        "data/b.csv",
        "data/link",
        "data/sub",
        "data/sub/c",
    ]
    with tarfile.open(tmp_path / "out.tar", "r:") as tar:
        assert {(info.uid, info.gid, info.uname) for info in tar} == {(0, 0, "")}
        assert tar.getmember("data/link").linkname == "sub/c"


def test_long_and_odd_names_keep_their_bytes(tmp_path: Path) -> None:
    odd = tmp_path / "in" / ("d" * 150) / os.fsdecode(b"n" * 150 + b"\xff\xc3\xa9")
    odd.parent.mkdir(parents=True)
    odd.write_text("x")
    pack([tmp_path / "in"], tmp_path / "out.tar")
    assert str(odd.relative_to(tmp_path)) in names(tmp_path / "out.tar")


def test_the_same_inputs_make_the_same_bytes(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    pack([data], tmp_path / "1.tar")
    pack([data], tmp_path / "2.tar")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_a_link_named_as_an_input_brings_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "v2").write_text("two")
    (tmp_path / "current").symlink_to("v2")
    pack([tmp_path / "current"], tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar", "r:") as tar:
        assert tar.getmember("current").isreg()


def _missing(base: Path) -> None:
    (base / "in").rmdir()


def _link_out(base: Path) -> None:
    (base / "in" / "x").symlink_to("../../secret")


def _link_absolute(base: Path) -> None:
    (base / "in" / "x").symlink_to(base / "in")


def _link_through_a_link(base: Path) -> None:
    (base / "in" / "up").symlink_to(".")
    (base / "in" / "x").symlink_to("up/../../secret")


def _circle(base: Path) -> None:
    (base / "in" / "x").symlink_to("y")
    (base / "in" / "y").symlink_to("x")


def _pipe(base: Path) -> None:
    os.mkfifo(base / "in" / "x")


def _socket(base: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(base / "in" / "x"))


def _folder_link(base: Path) -> None:
    (base / "in").rmdir()
    (base / "in").symlink_to("/etc")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing, "No such file"),
        (_link_out, "out of its folder"),
        (_link_absolute, "out of its folder"),
        (_link_through_a_link, "out of its folder"),
        (_circle, "circle"),
        (_pipe, "a named pipe"),
        (_socket, "a socket"),
        (_folder_link, "out of its folder"),
    ],
)
def test_refused_by_name(tmp_path: Path, spoil: object, words: str) -> None:
    (tmp_path / "in").mkdir()
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(InputFileError) as caught:
        pack([tmp_path / "in"], tmp_path / "out.tar")
    assert words in str(caught.value)
    assert str(tmp_path / "in") in str(caught.value)
    assert not (tmp_path / "out.tar").exists()


def test_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="character device"):
        pack([Path("/dev/null")], tmp_path / "out.tar")


def test_over_the_limit(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    with pytest.raises(InputFileError, match="over the limit"):
        pack([data], tmp_path / "out.tar", most_bytes=600)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    with pytest.raises(StateError):
        pack([data], tmp_path / "missing" / "out.tar")
