"""What a taken-over unpacking leaves in its folder is found, and what an honest one leaves passes.

What this can't show: a taken-over unpacking that leaves other *contents* than the tar had. Those
are the guest's either way.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.tars import HOSTILE, WHOLE, member, tar_of, unpack
from tests.support.unpackings import stand_in, tree, unpacked

from wgcell.cell import inspection
from wgcell.cell.archive import Unpacked
from wgcell.cell.inspection import inspect
from wgcell.errors import GuestError, StateError

pytestmark = pytest.mark.process

ASKED = ("results", "a/b/c.txt")
HONEST = Unpacked(1, 1, 1, 1, (), (), (), "")
LEAVES = (
    "os.mkdir('results', 0o755, dir_fd=root)",
    "os.symlink('a', 'results/l', dir_fd=root)",
    "file('results/a', b'x')",
)
"""What `HONEST` tells of."""


def taken_over(monkeypatch: pytest.MonkeyPatch, told: Unpacked, *does: str) -> None:
    """An unpacking behind its walls that does this and then says ``told``."""
    lines = [
        "root = _[1]",
        "def file(name, data=b'', mode=0o600):",
        "    fd = os.open(name, os.O_WRONLY | os.O_CREAT, mode, dir_fd=root)",
        "    os.write(fd, data)",
        "    os.close(fd)",
        *does,
        f"return archive.{told!r}",
    ]
    stand_in(monkeypatch, "\n".join(lines), "from wgcell.cell.archive import Unpacked")


def test_the_control_what_is_honest_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_over(monkeypatch, HONEST, *LEAVES)
    assert unpacked(tmp_path / "o", [WHOLE]) == HONEST
    assert set(tree(tmp_path / "o")) == {"results", "results/a", "results/l"}


ATTACKS: dict[str, tuple[tuple[str, ...], Unpacked, str]] = {
    # What it does besides `LEAVES`, what it says, and what is found.
    "a link to the host": (
        ("os.symlink('/etc/passwd', 'results/evil', dir_fd=root)",),
        replace(HONEST, links=2),
        "points out",
    ),
    "a link that climbs": (
        ("os.symlink('../../../.ssh', 'results/evil', dir_fd=root)",),
        replace(HONEST, links=2),
        "points out",
    ),
    "a link that climbs behind a name": (
        ("os.symlink('l/../../..', 'results/evil', dir_fd=root)",),
        replace(HONEST, links=2),
        "points out",
    ),
    "a link to what was not asked for": (
        ("os.symlink('../other', 'results/evil', dir_fd=root)",),
        replace(HONEST, links=2),
        "points out",
    ),
    "a link to an odd name": (
        ("os.symlink('\\x1b[2J', 'results/evil', dir_fd=root)",),
        replace(HONEST, links=2),
        "points out",
    ),
    "a file that was not asked for": (
        ("file('.bashrc', b'evil')",),
        replace(HONEST, files=2, bytes=5),
        "asked for",
    ),
    "a folder that was not asked for": (
        ("os.mkdir('other', 0o755, dir_fd=root)",),
        replace(HONEST, folders=2),
        "asked for",
    ),
    "a file above an output": (
        ("os.mkdir('a', 0o755, dir_fd=root)", "file('a/b')"),
        replace(HONEST, folders=2, files=2),
        "asked for",
    ),
    "an odd name": (
        (r"file('results/\x1b[2J')",),
        replace(HONEST, files=2),
        "control characters",
    ),
    "no UTF-8": (
        (r"file(b'results/\xff')",),
        replace(HONEST, files=2),
        "not UTF-8",
    ),
    "folders without end": (
        (
            "at = os.open('results', os.O_RDONLY, dir_fd=root)",
            "for n in range(300):",
            "    os.mkdir('d', 0o755, dir_fd=at)",
            "    below = os.open('d', os.O_RDONLY, dir_fd=at)",
            "    os.close(at)",
            "    at = below",
        ),
        replace(HONEST, folders=301),
        "nested too deeply",
    ),
    "a folder nobody can enter": (
        ("os.mkdir('results/d', 0, dir_fd=root)",),
        replace(HONEST, folders=2),
        "of the mode 0",
    ),
    "a file nobody can read": (
        ("file('results/b', mode=0)",),
        replace(HONEST, files=2),
        "of the mode 0",
    ),
    "more files than it states": (("file('results/b')",), HONEST, "more than it stated"),
    "more folders": (("os.mkdir('results/d', 0o755, dir_fd=root)",), HONEST, "more than it stated"),
    "more links": (("os.symlink('a', 'results/m', dir_fd=root)",), HONEST, "more than it stated"),
    "more bytes": (("file('results/a', b'xx')",), HONEST, "more than it stated"),
    "a hole": (
        (
            "fd = os.open('results/a', os.O_WRONLY, dir_fd=root)",
            "os.lseek(fd, 1 << 20, 0)",
            "os.write(fd, b'x')",
        ),
        HONEST,
        "more than it stated",
    ),
    "fewer files": ((), replace(HONEST, files=2), "less than it stated"),
    "fewer bytes": ((), replace(HONEST, bytes=2), "less than it stated"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_taken_over_unpacking_leaves_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    does, told, words = ATTACKS[attack]
    taken_over(monkeypatch, told, *LEAVES, *does)
    with pytest.raises(GuestError, match=words):
        unpacked(tmp_path / "o", [WHOLE])


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_the_inspection_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    """The control: the walls let each of them through, and its word is one that could be."""
    does, told, _ = ATTACKS[attack]
    taken_over(monkeypatch, told, *LEAVES, *does)
    monkeypatch.setattr("wgcell.cell.unpacking.inspect", lambda *_: None)
    assert unpacked(tmp_path / "o", [WHOLE]) == told


# What its walls refuse it as well: the inspection stands by itself.


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What `HONEST` tells of, made here."""
    folder = tmp_path / "o"
    (folder / "results").mkdir(parents=True)
    (folder / "results/a").write_bytes(b"x")
    (folder / "results/l").symlink_to("a")
    inspect(folder, ASKED, HONEST)
    return folder


def test_no_device_no_pipe_no_socket(left: Path) -> None:
    os.mkfifo(left / "results/p")
    with pytest.raises(GuestError, match="neither a file"):
        inspect(left, ASKED, replace(HONEST, files=2))


def test_no_second_name_of_a_file(left: Path) -> None:
    """It could be one that is not below the folder."""
    os.link(left / "results/a", left / "results/b")
    with pytest.raises(GuestError, match="another name"):
        inspect(left, ASKED, replace(HONEST, files=2, bytes=2))


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX])
@pytest.mark.parametrize("name", ["results", "results/a"])
def test_no_mode_that_gives_rights(left: Path, name: str, bit: int) -> None:
    (left / name).chmod(0o755 | bit)
    with pytest.raises(GuestError, match="of the mode"):
        inspect(left, ASKED, HONEST)


def test_a_folder_may_inherit_its_group(tmp_path: Path) -> None:
    """A state folder that has the bit gives it to all that are made in it."""
    (tmp_path / "o").mkdir()
    (tmp_path / "o").chmod(0o2700)
    assert unpacked(tmp_path / "o", [tar_of(member("a/b/c.txt", b"x"))]).complete
    assert (tmp_path / "o/a").stat().st_mode & stat.S_ISGID


def test_a_disk_that_cant_be_read_is_the_hosts(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(StateError, match="Input/output error"):
        inspect(left, ASKED, HONEST)


def test_no_descriptor_is_left(left: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    (left / "results/deep/er").mkdir(parents=True)
    (left / "results/deep/er/evil").symlink_to("/")
    with pytest.raises(GuestError):
        inspect(left, ASKED, replace(HONEST, folders=3, links=2))
    assert set(os.listdir("/proc/self/fd")) == before


def test_it_never_looks_at_more_than_was_told(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(100):
        (left / f"results/{n}").touch()
    looked: list[None] = []
    wrong = inspection._wrong

    def counted(*args: object) -> str:
        looked.append(None)
        return wrong(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(inspection, "_wrong", counted)
    with pytest.raises(GuestError, match="more than it stated"):
        inspect(left, ASKED, HONEST)
    assert len(looked) < 6


# Whatever tar comes: what an honest unpacking leaves of it passes.


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_an_honest_unpacking_of_a_hostile_tar_passes(tmp_path: Path, number: int) -> None:
    raw = tar_of(member("results/before", b"1"), HOSTILE[number][0], member("results/after", b"2"))
    came = unpacked(tmp_path / "o", [raw])
    inspect(tmp_path / "o", ASKED, came)


@pytest.mark.parametrize("cut", range(0, len(WHOLE), 256))
def test_a_tar_cut_anywhere_leaves_what_passes(tmp_path: Path, cut: int) -> None:
    came = unpack(io.BytesIO(WHOLE[:cut]), tmp_path / "o", 1 << 30, allowed=ASKED)
    inspect(tmp_path / "o", ASKED, came)
