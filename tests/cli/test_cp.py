"""`wgcell cp`: into a cell and out of it; hostile trees both ways; nothing half."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.support.cells import WGCELL
from tests.support.hubs import Running, running
from tests.support.ptys import at_a_terminal
from tests.support.tars import HOSTILE, member, tar_of, typed
from tests.support.waiting import GENEROUS, until

from wgcell.guest.frames import STDOUT

pytestmark = pytest.mark.process

DIRECTORY = typed(tarfile.DIRTYPE)


def argv(one: Running, source: str, target: str, *options: str) -> list[str]:
    place = ("--state-dir", str(one.cell.folder.path.parent))
    cell = f"{one.cell.folder.id}:"
    words = [text.replace("CELL:", cell, 1) for text in (source, target)]
    return [WGCELL, "cp", *place, *options, *words]


def cp(one: Running, source: str, target: str, *options: str, **how: Any) -> Any:
    how = {"capture_output": True, "timeout": GENEROUS, "input": b"", **how}
    return subprocess.run(argv(one, source, target, *options), **how)


def tree(folder: Path) -> dict[str, object]:
    """Everything below: contents, targets, None for a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def executable(info: tarfile.TarInfo) -> None:
    info.mode = 0o755


def folder(info: tarfile.TarInfo) -> None:
    DIRECTORY(info)
    info.mode = 0o750


TREE = tar_of(
    member("./out", change=folder),
    member("./out/run", b"#!/bin/sh\n", executable),
    member("./out/link", change=typed(tarfile.SYMTYPE, "run")),
    member("./out/sub", change=folder),
    member("./out/sub/empty"),
)
CONTENTS = {"link": "run", "run": b"#!/bin/sh\n", "sub": None, "sub/empty": b""}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the person stands in."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


# Out of a cell.


def test_a_folder_comes_under_its_name_or_another(tmp_path: Path, here: Path) -> None:
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars |= {"out": TREE, "/work/out/": TREE}
        assert cp(one, "CELL:out", ".").returncode == 0
        assert cp(one, "CELL:/work/out/", "new").returncode == 0
        assert tree(here / "out") == tree(here / "new") == CONTENTS
        assert (here / "out/run").stat().st_mode & 0o777 == 0o755
        assert (here / "out").stat().st_mode & 0o777 == 0o750
        assert sorted(os.listdir(here)) == ["new", "out"]


def test_the_contents_of_a_folder(tmp_path: Path, here: Path) -> None:
    inside = tar_of(member("./", change=folder), member("./a", b"1"), member("./b", b"2"))
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars["out/."] = inside
        (here / "there").mkdir()
        (here / "there/c").write_bytes(b"3")
        assert cp(one, "CELL:out/.", "there").returncode == 0
        assert cp(one, "CELL:out/.", "new").returncode == 0
        assert tree(here / "there") == {"a": b"1", "b": b"2", "c": b"3"}
        assert tree(here / "new") == {"a": b"1", "b": b"2"}
        mask = os.umask(0o022)
        os.umask(mask)
        assert stat.S_IMODE((here / "new").stat().st_mode) == 0o777 & ~mask


def test_a_file_comes_and_overwrites_nothing_unless_it_is_told_to(
    tmp_path: Path, here: Path
) -> None:
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars["a*b"] = tar_of(member("./a*b", b"new"))
        (here / "x").write_bytes(b"old")
        done = cp(one, "CELL:a*b", "x")
        assert done.returncode == 125 and b"--force overwrites" in done.stderr
        assert tree(here) == {"x": b"old"}
        assert cp(one, "CELL:a*b", "x", "--force").returncode == 0
        assert cp(one, "CELL:a*b", ".").returncode == 0
        assert tree(here) == {"x": b"new", "a*b": b"new"}


def test_a_tar_of_it_on_standard_output(tmp_path: Path, here: Path) -> None:
    """It is made here, of what came: nothing of the guest's own bytes but contents and names."""
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars["out"] = TREE
        done = cp(one, "CELL:out", "-")
        assert done.returncode == 0, done.stderr
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            names = {info.name: info for info in tar}
        assert set(names) == {"out", *(f"out/{name}" for name in CONTENTS)}
        assert {info.uid for info in names.values()} == {0}
        assert tree(here) == {}


WRONG = {
    "nothing there": ("CELL:absent", ".", "No such file or directory"),
    "no folder here": ("CELL:out", "no/such/", "no such folder"),
    "no folder above": ("CELL:out", "no/such/name", "no such folder"),
    "both in cells": ("CELL:out", "other:out", "both in cells"),
    "both here": ("a", "b", "both here"),
    "no cell of that name": ("nothing:out", ".", "there is no cell 'nothing'"),
    "a file that is not there": ("absent", "CELL:.", "No such file"),
    "no folder in the cell": ("x", "CELL:no/such/", "there is no folder"),
    "no folder above in the cell": ("x", "CELL:no/such", "No such file or directory"),
}


@pytest.mark.parametrize(("source", "target", "said"), WRONG.values(), ids=WRONG)
def test_what_can_not_be_copied_says_why(
    tmp_path: Path, here: Path, source: str, target: str, said: str
) -> None:
    (here / "x").write_bytes(b"x")
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars["out"] = TREE
        done = cp(one, source, target)
        assert done.returncode == 125 and said in done.stderr.decode(), done.stderr
        assert tree(here) == {"x": b"x"}


@pytest.mark.parametrize(("evil", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_tree_writes_nowhere_else(
    tmp_path: Path, here: Path, evil: Any, said: str
) -> None:
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars["results"] = tar_of(member("results/ok", b"ok"), evil)
        before = {str(path) for path in tmp_path.rglob("*")}
        done = cp(one, "CELL:results", ".")
        new = {str(path) for path in tmp_path.rglob("*")} - before
        inside = str(here / "results")
        assert all(path.startswith(inside) for path in new), new
        assert done.returncode == 125 and said in done.stderr.decode() and not new


CUT = {
    "in a header": TREE[:700],
    "in a content": TREE[: 512 * 3 + 5],
    "at its end mark": TREE.rstrip(b"\0") + bytes(600),
    "nothing": b"",
    "no tar": b"x" * 2000,
    "something behind": TREE + b"x" * 512,
    "a pax header": tar_of(member("out", b"x", lambda i: i.pax_headers.update(a="b")), style=2),
}


@pytest.mark.parametrize("raw", CUT.values(), ids=CUT)
def test_what_does_not_come_whole_does_not_come(tmp_path: Path, here: Path, raw: bytes) -> None:
    with running(tmp_path / "cells") as one:
        one.cell.guest.tars["out"] = raw
        done = cp(one, "CELL:out", ".")
        assert done.returncode == 125 and b"did not come whole" in done.stderr
        assert tree(here) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing(tmp_path: Path, here: Path, number: signal.Signals) -> None:
    """The guest sends a part, and then waits."""
    with running(tmp_path / "cells") as one:

        async def half(program: Any) -> int:
            await program.write(TREE[:1500], STDOUT)
            await program.hung_up.wait()
            return 0

        from tests.support import programs

        before = programs.PROGRAMS["Pack"]
        programs.PROGRAMS["Pack"] = half

        def arm() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        try:
            words = argv(one, "CELL:out", ".")
            with subprocess.Popen(words, preexec_fn=arm, stderr=subprocess.PIPE) as process:
                until(lambda: list(here.rglob("run")))
                process.send_signal(number)
                assert process.wait(GENEROUS) in (130, 128 + number)
        finally:
            programs.PROGRAMS["Pack"] = before
        assert tree(here) == {}
        until(lambda: len(one.cell.guest.programs) == 1)


def test_progress_is_said_of_what_takes_long(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb one can't draw it
    with running(tmp_path / "cells") as one:

        async def slow(program: Any) -> int:
            await program.write(TREE, STDOUT)
            await asked.wait()
            return 0

        import asyncio

        from tests.support import programs

        asked = one.call(asyncio.Event)
        before = programs.PROGRAMS["Pack"]
        programs.PROGRAMS["Pack"] = slow
        try:
            with at_a_terminal(*argv(one, "CELL:out", ".")) as person:
                person.look(b"MB/s")
                one.call(asked.set)
                assert person.ended() == 0
        finally:
            programs.PROGRAMS["Pack"] = before
        assert tree(here / "out") == CONTENTS


# Into a cell.


def came(one: Running, path: str) -> dict[str, object]:
    """What was sent into a folder of the cell's."""
    found: dict[str, object] = {}
    with tarfile.open(fileobj=io.BytesIO(one.cell.guest.folders[path])) as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            found[info.name] = file.read() if file else info.linkname or None
    return found


def test_into_a_folder_and_under_another_name(tmp_path: Path, here: Path) -> None:
    (here / "a").mkdir()
    (here / "a/.wgcellignore").write_text("*\n")
    (here / "a/b").write_bytes(os.urandom(100_000))
    (here / "a/to").symlink_to("b")
    whole = {"a": None, "a/.wgcellignore": b"*\n", "a/b": (here / "a/b").read_bytes(), "a/to": "b"}
    with running(tmp_path / "cells") as one:
        guest = one.cell.guest
        guest.folders |= {"there": b"", ".": b"", "/": b""}
        assert cp(one, "a", "CELL:there").returncode == 0
        assert came(one, "there") == whole
        assert cp(one, "a", "CELL:other").returncode == 0
        renamed = {name.replace("a", "other", 1): data for name, data in whole.items()}
        assert came(one, ".") == renamed
        assert cp(one, "a/b", "CELL:/c").returncode == 0
        assert came(one, "/") == {"c": whole["a/b"]}
        assert cp(one, "a/.", "CELL:there").returncode == 0
        assert came(one, "there") == {name[2:]: data for name, data in whole.items() if name != "a"}
        assert cp(one, "a", "CELL:").returncode == 0
        assert came(one, ".") == whole


def test_a_tar_from_standard_input(tmp_path: Path, here: Path) -> None:
    with running(tmp_path / "cells") as one:
        one.cell.guest.folders["there"] = b""
        done = cp(one, "-", "CELL:there", input=TREE)
        assert done.returncode == 0, done.stderr
        assert one.cell.guest.folders["there"] == TREE


NO_TARS = {
    "pax": (tar_of(member("x", b"", lambda i: i.pax_headers.update(a="b")), style=2), "type"),
    "compressed": (b"\x1f\x8b" + bytes(1000), "not a readable tar"),
    "cut short": (TREE[:1600], "cut short"),
    "nothing": (b"", "cut short"),
}


@pytest.mark.parametrize(("raw", "said"), NO_TARS.values(), ids=NO_TARS)
def test_what_is_no_tar_of_the_guests_kind(
    tmp_path: Path, here: Path, raw: bytes, said: str
) -> None:
    with running(tmp_path / "cells") as one:
        one.cell.guest.folders["there"] = b""
        done = cp(one, "-", "CELL:there", input=raw)
        assert done.returncode == 125 and said in done.stderr.decode()
        assert b"--format=gnu" in done.stderr


def test_what_no_tar_takes_along(tmp_path: Path, here: Path) -> None:
    (here / "a").mkdir()
    os.mkfifo(here / "a/pipe")
    (here / "a/circle").symlink_to("circle")
    with running(tmp_path / "cells") as one:
        one.cell.guest.folders["."] = b""
        done = cp(one, "a", "CELL:")
        assert done.returncode == 125 and b"circle" in done.stderr
        (here / "a/circle").unlink()
        assert cp(one, "a", "CELL:").returncode == 0
        assert came(one, ".") == {"a": None}
