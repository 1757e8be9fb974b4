"""Outputs on their way from the cell's folder to the caller's: what lands, and what never does."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tars import unpack

from wgcell.cell import changes, outputs
from wgcell.cell.archive import Unpacked
from wgcell.cell.changes import Action
from wgcell.cell.counts import Counted
from wgcell.cell.inputs import Input
from wgcell.cell.packing import pack
from wgcell.cell.survey import take_survey
from wgcell.errors import JobError, StateError

Tree = dict[str, str | None]
"""Paths and contents; None is a folder, and a content that begins with -> a link."""


def make(base: Path, tree: Tree) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
    return base


def tree_of(base: Path) -> Tree:
    found: Tree = {}
    for path in sorted(base.rglob("*")):
        name = str(path.relative_to(base))
        if path.is_symlink():
            found[name] = f"->{os.readlink(path)}"
        else:
            found[name] = None if path.is_dir() else path.read_text()
    return found


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """What a guest's outputs were unpacked to."""
    made = make(
        tmp_path / "cell/outputs",
        {"results/a": "A", "results/deep/b": "B", "results/link": "->a", "logs/x": "X"},
    )
    (made / "results/a").chmod(0o755)
    os.utime(made / "results/a", (1000, 1000))
    os.utime(made / "results/deep", (2000, 2000))
    return made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder that the caller is in."""
    return make(tmp_path / "here", {})


def test_outputs_land_where_one_looks(cell: Path, here: Path) -> None:
    landed = outputs.land(cell, here, False, ["results"])
    assert landed.whole
    assert landed.sentence == f"outputs: 3 files in {here}/results"
    assert tree_of(here) == {
        "results": None, "results/a": "A", "results/deep": None, "results/deep/b": "B",
        "results/link": "->a",
    }  # fmt: skip
    status = (here / "results/a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 1000)
    assert (here / "results/deep").stat().st_mtime == 2000
    # What was not asked for at the terminal stays in the cell's folder.
    assert (cell / "logs/x").read_text() == "X"


def test_outputs_that_are_there_already_are_not_called_missing(cell: Path, here: Path) -> None:
    (here / "results").mkdir(parents=True)
    shutil.copy2(cell / "results/a", here / "results/a")
    landed = outputs.land(cell, here, True, ["results/a"])
    assert landed == outputs.Landed(f"outputs: as they are in {here} already", True)
    assert outputs.land(cell, here, True, ["absent"]).sentence == "outputs: no file came"


def test_hidden_files_that_land_are_counted(cell: Path, here: Path) -> None:
    make(cell, {".git/hooks/post-checkout": "evil", "results/.envrc": "evil"})
    assert "6 files, 2 of them hidden, in" in outputs.land(cell, here, False, ["."]).sentence


def test_a_folder_that_is_not_there_yet_is_made(cell: Path, here: Path) -> None:
    landed = outputs.land(cell, here / "new/er", False, ["logs", "results/*", "absent"])
    assert landed.sentence == f"outputs: 4 files in {here}/new/er/logs, {here}/new/er"
    assert (here / "new/er/logs/x").read_text() == "X"


@pytest.mark.parametrize("there", ["results/a", "results/deep/b", "results/link"])
def test_nothing_is_overwritten_and_then_nothing_lands(cell: Path, here: Path, there: str) -> None:
    make(here, {there: "mine", "results/other": "mine"})
    landed = outputs.land(cell, here, False, ["results"])
    assert not landed.whole
    assert str(cell) in landed.sentence and there in landed.sentence
    assert "--force" in landed.sentence
    assert tree_of(here)[there] == "mine"
    assert not (here / "results/deep").is_dir() or there == "results/deep/b"
    assert (cell / "results/a").exists()
    forced = outputs.land(cell, here, True, ["results"])
    assert (forced.whole, forced.files) == (True, 3)
    assert tree_of(here)["results/a"] == "A"
    assert tree_of(here)["results/other"] == "mine"


def test_what_is_the_same_already_is_no_obstacle(cell: Path, here: Path) -> None:
    make(here, {"results/a": "A", "results/link": "->a"})
    (here / "results/a").chmod(0o755)
    assert outputs.land(cell, here, False, ["results"]).files == 1


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("where", ["results", "results/deep"])
def test_no_link_is_followed_on_the_way(
    tmp_path: Path, cell: Path, here: Path, where: str, force: bool
) -> None:
    outside = make(tmp_path / "outside", {"b": "mine"})
    make(here, {where: f"->{outside}"})
    landed = outputs.land(cell, here, force, ["results"])
    assert not landed.whole
    assert tree_of(outside) == {"b": "mine"}


def test_a_folder_is_never_replaced_by_a_file(cell: Path, here: Path) -> None:
    make(here, {"results/a/precious": "mine", "results/deep": "a file"})
    landed = outputs.land(cell, here, True, ["results"])
    assert not landed.whole
    assert changes.IN_THE_WAY in landed.sentence
    assert "results/link" not in tree_of(here)
    assert tree_of(here)["results/a/precious"] == "mine"
    assert tree_of(here)["results/deep"] == "a file"


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(
    tmp_path: Path, cell: Path, here: Path
) -> None:
    make(tmp_path, {"victim": "mine"})
    make(here, {"results/a": f"->{tmp_path}/victim"})
    assert outputs.land(cell, here, True, ["results"]).whole
    assert (tmp_path / "victim").read_text() == "mine"
    assert tree_of(here)["results/a"] == "A"


def _other_file_system(*words: object, **more: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("force", [False, True])
def test_another_file_system(
    cell: Path, here: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        make(here, {"results/a": "mine"})
    rename = os.rename
    monkeypatch.setattr(os, "link", _other_file_system)
    monkeypatch.setattr(
        os,
        "rename",
        lambda old, new, *, src_dir_fd, dst_dir_fd: (
            rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if src_dir_fd == dst_dir_fd
            else _other_file_system()
        ),
    )
    assert outputs.land(cell, here, force, ["results"]).files == 3
    status = (here / "results/a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 1000)
    assert tree_of(here)["results/link"] == "->a"
    assert not [path for path in here.rglob("*") if path.name.endswith(".part")]
    assert tree_of(cell / "results") == {"deep": None}


def test_a_real_other_file_system(cell: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == cell.stat().st_dev:
        pytest.skip("no second file system here")
    place = shared / f"wgcell-test-{os.getpid()}"
    try:
        assert outputs.land(cell, place, False, ["results"]).files == 3
        assert (place / "results/deep/b").read_text() == "B"
    finally:
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        place.rmdir()


def test_a_place_that_cant_be_written(cell: Path, here: Path) -> None:
    make(here, {"file": "mine"})
    with pytest.raises(StateError) as caught:
        outputs.land(cell, here / "file" / "below", False, ["results"])
    assert str(cell) in str(caught.value)


@pytest.mark.alone
def test_ten_thousand_files_and_sixty_folders_are_quick(tmp_path: Path, here: Path) -> None:
    base = tmp_path / "cell/outputs"
    deep = base / "results" / "/".join(f"folder{n}" for n in range(60))
    deep.mkdir(parents=True)
    for n in range(10_000):
        (deep / str(n)).touch()
    before = time.process_time()
    assert outputs.land(base, here, False, ["results"]).files == 10_000
    assert time.process_time() - before < 3


# Before anything starts.


@pytest.mark.parametrize(
    ("there", "names", "words"),
    [
        ({"results": "mine"}, ["results"], "would be overwritten"),
        ({"results/x": "mine"}, ["results"], "would be overwritten"),
        ({"results": "->elsewhere"}, ["results"], "is a link"),
        ({"results": "->."}, ["results/x"], "is a link"),
        ({"results": "mine"}, ["results/x"], "is a link or a file"),
    ],
)
def test_what_could_not_land_is_said_before_the_start(
    here: Path, there: Tree, names: list[str], words: str
) -> None:
    make(here, there)
    with pytest.raises(JobError, match=words):
        outputs.check(here, names, False)


def test_what_can_land_passes(here: Path) -> None:
    make(here, {"empty": None, "full/x": "mine", "results/other": "mine"})
    outputs.check(here, [".", "*", "full/*", "empty", "new", "results/new"], False)
    outputs.check(here, ["full"], True)
    outputs.check(here / "not/yet", ["new"], False)
    with pytest.raises(JobError, match="not a folder"):
        outputs.check(here / "full/x/y", ["new"], False)


# What is missing, in a sentence.


def unpacked(**changed: object) -> Unpacked:
    plain: dict[str, object] = {"files": 1, "folders": 0, "links": 0, "bytes": 1}
    plain |= {"refusals": (), "left_out": (), "missing": (), "stopped": ""}
    return Unpacked(**{**plain, **changed})  # type: ignore[arg-type]


REFUSED = Counted("its name is too long", 38, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("came", "sentence"),
    [
        (unpacked(), None),
        (unpacked(left_out=(Counted("a named pipe", 1, ("p",)),)), None),
        (unpacked(missing=("x",)), "the output x does not exist"),
        (unpacked(missing=("x", "y")), "2 of the 3 outputs do not exist: x, y"),
        (unpacked(missing=("x", "y", "z")), "none of the outputs exist: x, y, z"),
        (
            unpacked(refusals=(REFUSED,)),
            "38 files of the outputs were refused: 38 files (a, b, c, …): its name is too long",
        ),
        (unpacked(stopped="cut"), "the outputs did not come whole: cut"),
    ],
)
def test_the_verdict(came: Unpacked, sentence: str | None) -> None:
    assert outputs.verdict(came, ["x", "y", "z"]) == sentence


# A synced folder.


class Synced:
    """A folder that went in, what came of it in the guest, and the way back."""

    def __init__(self, base: Path, tree: Tree, excludes: tuple[str, ...] = ()) -> None:
        self.here = make(base / "here", tree)
        self.survey = take_survey(
            [Input(self.here, contents=True)], 1 << 30, excludes, remember=True
        )
        self.cell = make(base / "cell", {}) / "outputs"
        pack([Input(self.here, contents=True)], base / "in.tar", 1 << 30, excludes)
        with (base / "in.tar").open("rb") as stream:
            unpack(stream, self.cell, 1 << 30, allowed=["."])

    def back(
        self,
        agree: Callable[[str], bool] | None = lambda summary: True,
        force: bool = False,
        **more: object,
    ) -> outputs.Landed:
        return outputs.sync(
            self.cell,
            self.here,
            force,
            self.survey.seen,
            agree,
            kept_here=self.survey.kept_here,
            **more,  # type: ignore[arg-type]
        )


PROJECT: Tree = {
    "main.py": "1", "same": "same", "old": "old", "pkg/mod.py": "mod", "pkg/gone/x": "x",
    "python": "->/usr/bin/python3", "link": "->same", ".wgcellignore": "*.secret\n",
    "key.secret": "secret", "pkg/deep.secret": "secret",
}  # fmt: skip


def test_changes_come_back(tmp_path: Path) -> None:
    synced = Synced(tmp_path, PROJECT)
    make(synced.cell, {"main.py": "2", "new/file": "new"})
    (synced.cell / "old").unlink()
    (synced.cell / "pkg/gone/x").unlink()
    (synced.cell / "pkg/gone").rmdir()
    said: list[str] = []
    landed = synced.back(lambda summary: not said.append(summary))
    assert landed.whole
    assert landed.files == 4
    (shown,) = said
    for line in ("added: 1", "    new/file", "changed: 1", "    main.py", "deleted: 2", "    old"):
        assert line in shown
    after = {**PROJECT, "main.py": "2", "new": None, "new/file": "new", "pkg": None}
    del after["old"], after["pkg/gone/x"]
    assert tree_of(synced.here) == after


def test_nothing_changed_asks_nothing(tmp_path: Path) -> None:
    synced = Synced(tmp_path, PROJECT)
    landed = synced.back(None)
    assert (landed.whole, landed.files) == (True, 0)
    assert "nothing has changed" in landed.sentence


@pytest.mark.parametrize(("agree", "whole"), [(None, False), (lambda summary: False, True)])
def test_without_a_yes_changes_stay_in_the_cells_folder(
    tmp_path: Path, agree: Callable[[str], bool] | None, whole: bool
) -> None:
    """Nobody could say no: that is for a script to see. Somebody said no: that is as asked."""
    synced = Synced(tmp_path, PROJECT)
    make(synced.cell, {"main.py": "2"})
    before = tree_of(synced.here)
    landed = synced.back(agree)
    assert landed.whole is whole
    assert str(synced.cell) in landed.sentence
    assert tree_of(synced.here) == before
    assert (synced.cell / "main.py").read_text() == "2"


def test_what_changed_on_the_host_meanwhile_is_not_touched(tmp_path: Path) -> None:
    synced = Synced(tmp_path, PROJECT)
    make(synced.cell, {"main.py": "guest", "same": "guest", "created": "guest", "pkg/mod.py": "g"})
    (synced.cell / "old").unlink()
    make(synced.here, {"main.py": "host", "created": "host", "old": "host"})
    (synced.here / "pkg/mod.py").unlink()
    landed = synced.back()
    assert not landed.whole
    found = tree_of(synced.here)
    assert (found["main.py"], found["created"], found["old"]) == ("host", "host", "host")
    assert "pkg/mod.py" not in found
    assert found["same"] == "guest"
    for reason in (changes.CHANGED, changes.APPEARED, changes.DELETED):
        assert reason in landed.sentence
    assert synced.back(force=True).whole
    found = tree_of(synced.here)
    assert (found["main.py"], found["created"], found["pkg/mod.py"]) == ("guest", "guest", "g")
    assert "old" not in found


def test_what_changed_while_the_person_looked_is_not_touched(tmp_path: Path) -> None:
    synced = Synced(tmp_path, PROJECT)
    make(synced.cell, {"main.py": "guest", "new": "guest"})
    (synced.cell / "old").unlink()

    def slow(summary: str) -> bool:
        make(synced.here, {"main.py": "host", "new": "host", "old": "host"})
        return True

    assert not synced.back(slow).whole
    found = tree_of(synced.here)
    assert (found["main.py"], found["new"], found["old"]) == ("host", "host", "host")


def test_what_was_excluded_does_not_come_back(tmp_path: Path) -> None:
    synced = Synced(tmp_path, {**PROJECT, "cache/x": "mine"}, ("/cache",))
    make(
        synced.cell,
        {
            "key.secret": "guest",
            "pkg/new.secret": "guest",
            "cache/x": "guest",
            "cache/y": "guest",
            ".wgcellignore": "",
            "data.csv": "other input",
        },
    )
    landed = synced.back(others=["data.csv"])
    assert (landed.whole, landed.files) == (True, 1)
    found = tree_of(synced.here)
    assert found["key.secret"] == "secret"
    assert found["cache/x"] == "mine"
    assert not {"pkg/new.secret", "cache/y", "data.csv"} & set(found)


def test_what_is_none_of_the_folders_is_not_deleted_in_it(tmp_path: Path) -> None:
    """Another input, which the guest has deleted, and whose name is now in the folder, too."""
    synced = Synced(tmp_path, PROJECT)
    (synced.cell / "old").unlink()
    assert synced.back(others=["old"]).whole
    assert tree_of(synced.here)["old"] == "old"


def test_an_incomplete_tar_deletes_nothing(tmp_path: Path) -> None:
    synced = Synced(tmp_path, PROJECT)
    for path in (synced.cell / "old", synced.cell / "main.py"):
        path.unlink()
    assert synced.back(whole=False).files == 0
    assert tree_of(synced.here)["old"] == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_guest_writes_through_no_link_of_the_host(tmp_path: Path, force: bool) -> None:
    outside = make(tmp_path / "outside", {"x": "mine"})
    synced = Synced(tmp_path, {**PROJECT, "out": f"->{outside}"})
    make(synced.cell, {"out/x": "guest", "out/y": "guest", "swapped/x": "guest"})
    make(synced.here, {"swapped": f"->{outside}"})
    assert not synced.back(force=force).whole
    assert tree_of(outside) == {"x": "mine"}
    assert tree_of(synced.here)["out"] == f"->{outside}"


def test_hidden_files_are_shown_first_and_counted(tmp_path: Path) -> None:
    synced = Synced(tmp_path, {".git/config": "c", "a": "a"})
    make(synced.cell, {".git/hooks/pre-commit": "evil", "z\x1b[2J": "odd"})
    make(synced.cell, {f"file{n}": "x" for n in range(30)})
    said: list[str] = []
    synced.back(lambda summary: bool(said.append(summary)))
    lines = said[0].splitlines()
    assert lines[2] == "    .git/hooks/pre-commit"
    assert "look at them" in said[0]
    assert "and 22 more" in said[0]
    assert all(line.isprintable() for line in lines)


def test_every_action_is_in_the_plan(tmp_path: Path) -> None:
    synced = Synced(tmp_path, PROJECT)
    make(synced.cell, {"main.py": "2", "new": "n"})
    (synced.cell / "old").unlink()
    planned = changes.plan(
        synced.cell,
        synced.here,
        wanted=lambda parts: not synced.survey.kept_here("/".join(parts)),
        force=False,
        seen=synced.survey.seen,
        deletions=True,
    )
    assert {action: planned.files(action) for action in Action} == {
        Action.ADD: ["new"],
        Action.REPLACE: ["main.py"],
        Action.DELETE: ["old"],
    }
