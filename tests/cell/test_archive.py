"""Hostile tars, by name. Whatever they hold, nothing lands outside the outputs' folder."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgcell.cell.archive import MOST_REFUSALS, Unpacked, unpack

MIB = 1 << 20
Change = Callable[[tarfile.TarInfo], None]


def member(name: str, data: bytes = b"", change: Change | None = None) -> tuple[str, bytes, Change]:
    return name, data, change or (lambda info: None)


def typed(kind: bytes, linkname: str = "") -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, linkname

    return change


def tar_of(*members: tuple[str, bytes, Change], style: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=style) as tar:
        for name, data, change in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            change(info)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def run(folder: Path, raw: bytes, limit: int = MIB, members: int = 100) -> Unpacked:
    return unpack(io.BytesIO(raw), folder / "outputs", limit, members, ["results", "a/b/c.txt"])


def held(folder: Path) -> list[str]:
    """Every path below ``folder``, but the outputs' folder itself."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path != folder / "outputs"
    )


def test_what_was_asked_for_comes_home(tmp_path: Path) -> None:
    raw = tar_of(
        member("results", change=typed(tarfile.DIRTYPE)),
        member("results/one.csv", b"1,2\n"),
        member("results/deep/two.csv", b"3"),
        member("a/b/c.txt", b"c"),
    )
    unpacked = run(tmp_path, raw)
    assert (unpacked.files, unpacked.bytes, unpacked.refused) == (3, 6, 0)
    assert unpacked.complete
    assert (tmp_path / "outputs/results/one.csv").read_bytes() == b"1,2\n"
    assert (tmp_path / "outputs/a/b/c.txt").read_bytes() == b"c"


def test_a_leading_dot_is_the_same_path(tmp_path: Path) -> None:
    assert run(tmp_path, tar_of(member("./results/x", b"x"))).files == 1
    assert (tmp_path / "outputs/results/x").exists()


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (member("/etc/passwd", b"x"), "absolute"),
        (member("../evil", b"x"), "climbs out"),
        (member("results/../../evil", b"x"), "climbs out"),
        (member("results/link", change=typed(tarfile.SYMTYPE, "/etc")), "symbolic link"),
        (member("results/hard", change=typed(tarfile.LNKTYPE, "results/ok")), "hard link"),
        (member("results/tty", change=typed(tarfile.CHRTYPE)), "character device"),
        (member("results/disk", change=typed(tarfile.BLKTYPE)), "block device"),
        (member("results/pipe", change=typed(tarfile.FIFOTYPE)), "named pipe"),
        (member("results/what", change=typed(b"Z")), "unknown type"),
        (member("results/a\nb", b"x"), "control characters"),
        (member("results/\x1b[2J", b"x"), "control characters"),
        (member("results/" + "n" * 256, b"x"), "too long"),
        (member("results/" + "/".join(["d" * 200] * 6), b"x"), "too long"),
        (member("results/" + "d/" * 40 + "x", b"x"), "too deeply"),
        (member("results/ok", b"again"), "overwrite"),
        (member("results/ok/below", b"x"), "a file stands"),
        (member("other", b"x"), "not an output"),
        (member("resultsnot", b"x"), "not an output"),
        (member("a/b/d.txt", b"x"), "not an output"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0][:24],
)
def test_a_hostile_member_is_skipped_and_named(
    tmp_path: Path, hostile: tuple[str, bytes, Change], reason: str
) -> None:
    raw = tar_of(member("results/ok", b"ok"), hostile, member("results/after", b"x"))
    unpacked = run(tmp_path, raw)
    assert [refusal.reason for refusal in unpacked.refusals if reason in refusal.reason]
    assert unpacked.refused == 1
    assert all(refusal.member.isprintable() for refusal in unpacked.refusals)
    assert held(tmp_path) == ["outputs/results", "outputs/results/after", "outputs/results/ok"]
    assert (tmp_path / "outputs/results/ok").read_bytes() == b"ok"


def test_a_file_through_a_link_of_the_same_tar_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    raw = tar_of(
        member("results/link", change=typed(tarfile.SYMTYPE, str(tmp_path / "target"))),
        member("results/link/evil", b"x"),
    )
    run(tmp_path, raw)
    assert held(tmp_path / "target") == []
    assert not (tmp_path / "outputs/results/link").is_symlink()


def test_an_outputs_folder_that_is_already_poisoned_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "outputs/results").symlink_to(tmp_path / "target")
    unpacked = run(tmp_path, tar_of(member("results/evil", b"x")))
    assert unpacked.refused == 1
    assert held(tmp_path / "target") == []


def test_setuid_and_the_guests_other_bits_are_dropped(tmp_path: Path) -> None:
    def suid(info: tarfile.TarInfo) -> None:
        info.mode = 0o6777

    run(tmp_path, tar_of(member("results/x", b"x", suid), member("results/y", b"y")))
    modes = [stat.S_IMODE((tmp_path / f"outputs/results/{n}").stat().st_mode) for n in "xy"]
    assert modes == [0o700, 0o600]


def test_a_bomb_over_the_limit_of_bytes_ends_it_and_keeps_what_came_before(tmp_path: Path) -> None:
    raw = tar_of(
        member("results/ok", b"ok"), member("results/bomb", bytes(MIB)), member("results/z")
    )
    unpacked = run(tmp_path, raw, limit=MIB)
    assert not unpacked.complete
    assert "limit" in unpacked.refusals[0].reason
    assert held(tmp_path) == ["outputs/results", "outputs/results/ok"]


def test_too_many_members_end_it(tmp_path: Path) -> None:
    unpacked = run(tmp_path, tar_of(*(member(f"results/{n}") for n in range(50))), members=10)
    assert (unpacked.files, unpacked.complete) == (10, False)


def test_refusals_are_bounded_and_counted(tmp_path: Path) -> None:
    raw = tar_of(*(member(f"/{n}") for n in range(150)))
    unpacked = run(tmp_path, raw, members=1000)
    assert unpacked.refused == 150
    assert len(unpacked.refusals) <= MOST_REFUSALS


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_an_enormous_extended_header_is_not_read(tmp_path: Path, style: int) -> None:
    raw = tar_of(member("results/" + "n" * 200_000, b"x"), style=style)
    unpacked = run(tmp_path, raw)
    assert (unpacked.files, unpacked.complete) == (0, False)
    assert "extended header" in unpacked.refusals[0].reason


def test_a_file_cut_short_is_not_kept(tmp_path: Path) -> None:
    raw = tar_of(member("results/ok", b"ok"), member("results/cut", bytes(100_000)))
    unpacked = run(tmp_path, raw[:20_000])
    assert not unpacked.complete
    assert held(tmp_path) == ["outputs/results", "outputs/results/ok"]


def test_a_compressed_tar_is_not_taken_for_one(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("results/x"))
    unpacked = run(tmp_path, out.getvalue())
    assert (unpacked.files, unpacked.complete) == (0, False)


def test_no_tar_at_all(tmp_path: Path) -> None:
    assert run(tmp_path, b"").files == 0
    assert not run(tmp_path, os.urandom(4096)).complete


_BASE = tar_of(
    member("results/a", b"a" * 700),
    member("results/" + "n" * 120, b"x"),
    member("results/link", change=typed(tarfile.SYMTYPE, "/etc")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_BASE) - 1), st.integers(0, 255)), max_size=12))
def test_no_bytes_raise(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    raw = bytearray(_BASE)
    for place, value in changes:
        raw[place] = value
    folder = tmp_path_factory.mktemp("fuzz")
    run(folder, bytes(raw))
    assert all(path == folder / "outputs" for path in folder.iterdir())
