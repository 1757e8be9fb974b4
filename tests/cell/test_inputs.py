"""Packing inputs: what lands in the tar, and what is refused by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from wgcell.cell import packing, walk
from wgcell.cell.excludes import Excludes
from wgcell.cell.inputs import Input
from wgcell.cell.survey import Survey, take_survey
from wgcell.errors import InputFileError, StateError


def given(*paths: Path | str) -> list[Input]:
    return [Input.of(path, Path("/")) for path in paths]


def pack(paths: Sequence[Path | str], tar: Path, most: int = 1 << 30, *excludes: str) -> int:
    """As a job has it: a look before anything starts, and then the packing."""
    survey = take_survey(given(*paths), most, excludes)
    size = packing.pack(given(*paths), tar, most, excludes)
    assert size <= survey.bytes <= most
    return size


def look(*paths: Path | str, excludes: Sequence[str] = ()) -> Survey:
    return take_survey(given(*paths), excludes=excludes)


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


def test_a_folder_by_its_name_or_its_contents(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    for number, text in enumerate([f"{data}/.", f"{data}/./", f"{data}/sub/.."]):
        pack([text], tmp_path / f"{number}.tar")
        assert names(tmp_path / f"{number}.tar") == ["a.csv", "b.csv", "link", "sub", "sub/c"]
    pack([f"{data}/"], tmp_path / "named.tar")
    assert names(tmp_path / "named.tar")[0] == "data"


def test_two_inputs_that_would_be_one(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    with pytest.raises(InputFileError, match="would both be /work/sub"):
        look(f"{data}/.", data / "sub")


def test_links_that_lead_out_are_kept_and_counted(tmp_path: Path) -> None:
    """A virtual environment's python, and its kin: links all the same in the guest."""
    data = folder_of_inputs(tmp_path)
    links = {
        "python3": "/usr/bin/python3",
        "dangling": "nothing",
        "dangling-out": "/absent/nothing",
        "up": "../outside",
        "through": "sub/../../outside",
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    survey = look(data)
    assert [(one.count, one.reason) for one in survey.links_out] == [(4, walk.POINTS_OUT)]
    pack([data], tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar", "r:") as tar:
        for name, target in links.items():
            assert tar.getmember(f"data/{name}").linkname == target


def test_sockets_and_pipes_are_left_out_and_counted(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    for number in range(38):
        os.mkfifo(data / f"pipe{number}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(data / "sock"))
    survey = look(data)
    assert {one.reason: one.count for one in survey.left_out} == {
        "a named pipe": 38,
        "a socket": 1,
    }
    pack([data], tmp_path / "out.tar")
    assert len(names(tmp_path / "out.tar")) == 6


def test_excludes_in_gitignores_syntax(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    (data / "sub" / "keep.csv").touch()
    (data / "sub" / "x.log").touch()
    (data / ".wgcellignore").write_text("# mine\n*.csv\n!keep.csv\n/link\n")
    assert look(data).excluded == 3
    pack([data], tmp_path / "1.tar")
    assert names(tmp_path / "1.tar") == [
        "data", "data/.wgcellignore", "data/sub", "data/sub/c", "data/sub/keep.csv",
        "data/sub/x.log",
    ]  # fmt: skip
    # Relative to the working folder, and stronger than the file.
    pack([data], tmp_path / "2.tar", 1 << 30, "data/sub/", "!/data/a.csv")
    assert names(tmp_path / "2.tar") == ["data", "data/.wgcellignore", "data/a.csv"]
    pack([f"{data}/."], tmp_path / "3.tar", 1 << 30, "/sub", "a.*")
    assert names(tmp_path / "3.tar") == [".wgcellignore"]


def test_an_excluded_folder_is_not_even_read(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    (data / "sub" / "x").symlink_to("x")
    with pytest.raises(InputFileError, match="circle"):
        look(data)
    assert look(data, excludes=["sub"]).files == 2


@pytest.mark.parametrize(
    ("ignored", "words"),
    [
        (b"!\n", ":1: '!' is no pattern"),
        (b"a\n*a*a*a*b", ":2: "),
        (b"a/**/a/**/a/**/b", ":1: "),
        (b"\xff", "not UTF-8"),
        (b"#" * 70_000, "larger than 64 KiB"),
        (b"a\n" * 1001, "more than 1000 patterns"),
    ],
)
def test_an_ignore_file_that_is_none(tmp_path: Path, ignored: bytes, words: str) -> None:
    data = folder_of_inputs(tmp_path)
    (data / ".wgcellignore").write_bytes(ignored)
    with pytest.raises(InputFileError) as caught:
        look(data)
    assert words in str(caught.value)
    assert ".wgcellignore" in str(caught.value)


def test_hostile_names_and_patterns_end() -> None:
    hostile = Excludes(["*a*a*b"], ".wgcellignore", longest=0.05)
    with pytest.raises(InputFileError, match=r"wgcellignore: its patterns take more than 0\.05 s"):
        for number in range(100):
            hostile.verdict("a" * 250 + str(number))


def test_an_ignore_file_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    (data / ".wgcellignore").symlink_to("/etc/passwd")
    with pytest.raises(InputFileError, match="wgcellignore"):
        look(data)


LOOK = """
from pathlib import Path
from wgcell.cell.inputs import Input
from wgcell.cell.survey import take_survey
from wgcell.errors import InputFileError
try:
    take_survey([Input.of(name, Path.cwd()) for name in ("data", "absent")])
except InputFileError as error:
    print(error)
"""


def test_all_that_cant_be_read_is_named_at_once(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    (data / "a.csv").chmod(0o000)
    (data / "sub").chmod(0o000)
    # Root reads everything, unless it has no capabilities.
    argv = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if not os.getuid() else []
    argv += [sys.executable, "-c", LOOK]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    (data / "sub").chmod(0o755)
    assert done.stdout.splitlines() == [
        f"input {data}/a.csv, {data}/sub: Permission denied",
        f"input {tmp_path}/absent: No such file or directory",
    ]


def confined(base: Path, text: str = "data") -> list[Input]:
    return [Input.of(text, base / "job", base / "job")]


def test_a_job_files_input_may_be_a_link_within_its_folder(tmp_path: Path) -> None:
    (tmp_path / "job/real/deep").mkdir(parents=True)
    (tmp_path / "job/real/deep/x").write_text("x")
    (tmp_path / "job/data").symlink_to("real/deep")
    packing.pack(confined(tmp_path), tmp_path / "1.tar")
    assert names(tmp_path / "1.tar") == ["data", "data/x"]
    packing.pack(confined(tmp_path, "."), tmp_path / "2.tar")
    assert names(tmp_path / "2.tar") == ["data", "real", "real/deep", "real/deep/x"]


@pytest.mark.parametrize(
    ("link", "asked"),
    [("../home/.ssh", "data"), ("..", "data/home/.ssh"), ("../home", "data/.ssh"), ("/", "data")],
)
def test_a_job_files_input_leads_nowhere_else(tmp_path: Path, link: str, asked: str) -> None:
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "home/.ssh/key").write_text("secret")
    (tmp_path / "job").mkdir()
    (tmp_path / "job/data").symlink_to(link)
    for act in (take_survey, lambda given: packing.pack(given, tmp_path / "out.tar")):
        with pytest.raises(InputFileError, match="out of the job file's folder"):
            act(confined(tmp_path, asked))
    assert not (tmp_path / "out.tar").exists()


def test_who_swaps_a_folder_for_a_link_meanwhile_gains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way was resolved, and then changed: each part of it is opened beneath the last."""
    (tmp_path / "home/data").mkdir(parents=True)
    (tmp_path / "home/data/key").write_text("secret")
    (tmp_path / "job/way/data").mkdir(parents=True)
    resolve = os.path.realpath

    def resolved_then_swapped(path: os.PathLike[str], *, strict: bool = False) -> str:
        real = resolve(path, strict=strict)
        if str(path).endswith("data") and not (tmp_path / "job/way").is_symlink():
            (tmp_path / "job/way").rename(tmp_path / "job/away")
            (tmp_path / "job/way").symlink_to(tmp_path / "home")
        return real

    monkeypatch.setattr(os.path, "realpath", resolved_then_swapped)
    with pytest.raises(InputFileError):
        packing.pack(confined(tmp_path, "way/data"), tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()


def test_a_folder_swapped_during_the_walk_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder_of_inputs(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    budget = packing.Budget.add

    def swapped(self: packing.Budget, path: str, size: int, *words: str) -> None:
        budget(self, path, size, *words)
        if path.endswith("/sub"):
            (data / "sub").rename(tmp_path / "away")
            (data / "sub").symlink_to(tmp_path / "secret")

    monkeypatch.setattr(packing.Budget, "add", swapped)
    with pytest.raises(InputFileError):
        packing.pack(given(data), tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()


def test_a_file_that_grows_is_still_held_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"x")
    opened = os.open

    def grown(path: str, *words: int, **more: int) -> int:
        if path == "data" and "dir_fd" in more:
            os.truncate(data, 1 << 20)
        return opened(path, *words, **more)

    monkeypatch.setattr(os, "open", grown)
    with pytest.raises(InputFileError, match="over the limit"):
        packing.pack(given(data), tmp_path / "out.tar", 500_000)
    assert not (tmp_path / "out.tar").exists()


def test_the_cells_own_folder_is_not_packed_into_itself(tmp_path: Path) -> None:
    (tmp_path / "work/cells/one").mkdir(parents=True)
    (tmp_path / "work/x").touch()
    tar = tmp_path / "work/cells/one/inputs.tar"
    packing.pack(given(f"{tmp_path}/work/."), tar)
    assert names(tar) == ["cells", "x"]


def test_sixty_folders_deep_and_no_deeper_than_256(tmp_path: Path) -> None:
    deep = "data/" + "folder/" * 60 + "x"
    (tmp_path / deep).parent.mkdir(parents=True)
    (tmp_path / deep).touch()
    pack([tmp_path / "data"], tmp_path / "out.tar")
    assert deep in names(tmp_path / "out.tar")
    where = os.open(tmp_path, os.O_PATH)
    for _ in range(300):
        os.mkdir("d", dir_fd=where)
        below = os.open("d", os.O_PATH, dir_fd=where)
        os.close(where)
        where = below
    os.close(where)
    with pytest.raises(InputFileError, match="256 folders deep"):
        look(tmp_path / "d")


def test_no_control_character_of_a_name_reaches_the_terminal(tmp_path: Path) -> None:
    odd = tmp_path / "in\x1b[2J\u202e"
    odd.mkdir()
    (odd / "circle\x1b]0;x\x07").symlink_to("circle\x1b]0;x\x07")
    with pytest.raises(InputFileError) as caught:
        look(odd)
    assert str(caught.value).isprintable()


def test_what_was_seen_is_remembered(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    seen = take_survey(given(f"{data}/."), remember=True).seen
    assert list(seen) == ["a.csv", "b.csv", "link", "sub", "sub/c"]
    before = dict(seen)
    (data / "a.csv").write_text("A" * 600)
    seen = take_survey(given(f"{data}/."), remember=True).seen
    assert [name for name in seen if seen[name] != before[name]] == ["a.csv"]


def _missing(base: Path) -> None:
    (base / "in").rmdir()


def _circle(base: Path) -> None:
    (base / "in" / "x").symlink_to("y")
    (base / "in" / "y").symlink_to("x")


def _pipe(base: Path) -> None:
    (base / "in").rmdir()
    os.mkfifo(base / "in")


def _socket(base: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        (base / "in").rmdir()
        sock.bind(str(base / "in"))


def _itself(base: Path) -> None:
    (base / "in").rmdir()
    (base / "in").symlink_to("in")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing, "No such file"),
        (_circle, "circle"),
        (_pipe, "a named pipe"),
        (_socket, "a socket"),
        (_itself, "circle"),
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
        pack([data], tmp_path / "out.tar", 600)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    data = folder_of_inputs(tmp_path)
    with pytest.raises(StateError):
        pack([data], tmp_path / "missing" / "out.tar")
