"""Hostile tars, by name. Whatever they hold, nothing lands outside the outputs' folder."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.tars import (
    EXTENSIONS,
    HOSTILE,
    MIB,
    WHOLE,
    Change,
    endless,
    member,
    tar_of,
    typed,
    unpack,
)

from wgcell.cell.archive import Unpacked
from wgcell.cell.counts import Counted
from wgcell.errors import ArchiveError


def run(folder: Path, raw: bytes, limit: int = MIB, members: int = 100) -> Unpacked:
    folder.mkdir(exist_ok=True)
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
    HOSTILE,
    ids=lambda value: value if isinstance(value, str) else ascii(value[0][:24]),
)
def test_a_hostile_member_is_skipped_and_counted(
    tmp_path: Path, hostile: tuple[str, bytes, Change], reason: str
) -> None:
    raw = tar_of(member("results/ok", b"ok"), hostile, hostile, member("results/after", b"x"))
    unpacked = run(tmp_path, raw)
    (counted,) = unpacked.refusals
    assert reason in counted.reason
    assert (counted.count, unpacked.refused, unpacked.complete) == (2, 2, True)
    assert all(name.isprintable() and name.isascii() for name in counted.examples)
    assert held(tmp_path) == ["outputs/results", "outputs/results/after", "outputs/results/ok"]
    assert (tmp_path / "outputs/results/ok").read_bytes() == b"ok"


@pytest.mark.parametrize(
    ("empty", "reason"),
    [
        (member("results/x", change=typed(tarfile.CHRTYPE)), "character device"),
        (member("results/x", change=typed(tarfile.BLKTYPE)), "block device"),
        (member("results/x", change=typed(tarfile.FIFOTYPE)), "named pipe"),
        (member("results/x", change=typed(tarfile.SYMTYPE, "/etc")), "points out"),
        (member("results/x", change=typed(tarfile.SYMTYPE, "")), "points out"),
        (member("results/x", change=typed(tarfile.SYMTYPE, "../other")), "points out"),
        (member("results/x", change=typed(tarfile.SYMTYPE, "../../etc")), "points out"),
        (member("results/x", change=typed(tarfile.SYMTYPE, "up/../../etc")), "points out"),
        (member("results/x", change=typed(tarfile.SYMTYPE, "a\x1b[2J")), "points out"),
    ],
)
def test_a_member_without_content_is_left_out_and_counted(
    tmp_path: Path, empty: tuple[str, bytes, Change], reason: str
) -> None:
    unpacked = run(tmp_path, tar_of(empty, member("results/after", b"x")))
    assert [(c.count, reason in c.reason) for c in unpacked.left_out] == [(1, True)]
    assert (unpacked.refused, unpacked.complete) == (0, True)
    assert held(tmp_path) == ["outputs/results", "outputs/results/after"]


def test_links_within_the_outputs_stay(tmp_path: Path) -> None:
    links = {
        "results/x": "ok",
        "results/deep/y": "../ok",
        "results/deep/z": "./er/../y",  # refused: it climbs behind a name
        "results/dangling": "later",
        "results/across": "../a/b/c.txt",
        "results/circle": "circle",
        "results/folder": ".",
    }
    members = [member(name, change=typed(tarfile.SYMTYPE, to)) for name, to in links.items()]
    unpacked = run(tmp_path, tar_of(member("results/ok", b"ok"), *members))
    del links["results/deep/z"]
    assert unpacked.links == len(links)
    for name, to in links.items():
        assert os.readlink(tmp_path / "outputs" / name) == to
    assert [counted.count for counted in unpacked.left_out] == [1]


def test_no_chain_of_links_leads_out_of_the_outputs(tmp_path: Path) -> None:
    """By lexical rules alone ``deep/er/up/../../..`` stays inside, and on a disk it does not."""
    raw = tar_of(
        member("results/deep/er/up", change=typed(tarfile.SYMTYPE, "../..")),
        member("results/out", change=typed(tarfile.SYMTYPE, "deep/er/up/../../../secret")),
        member("results/up/x", change=typed(tarfile.SYMTYPE, "../deep/er/up/ok")),
    )
    run(tmp_path, raw)
    root = (tmp_path / "outputs/results").resolve()
    for path in root.rglob("*"):
        assert path.resolve().is_relative_to(root)
    assert not os.path.lexists(root / "out")


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
            st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=6),
        ),
        max_size=8,
    )
)
def test_wherever_links_lead_it_is_inside(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[list[str], list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("links")
    members = [
        member("results/" + "/".join(at), change=typed(tarfile.SYMTYPE, "/".join(to)))
        for at, to in links
    ]
    run(folder, tar_of(*members))
    root = os.path.realpath(folder / "outputs/results")
    for above, folders, files in os.walk(root):
        for name in folders + files:
            where = os.path.realpath(os.path.join(above, name))
            assert where == root or where.startswith(root + "/")


def test_a_link_that_went_in_like_that_needs_no_mention(tmp_path: Path) -> None:
    raw = tar_of(
        member("results/python", change=typed(tarfile.SYMTYPE, "/usr/bin/python3")),
        member("results/other", change=typed(tarfile.SYMTYPE, "/usr/bin/perl")),
    )
    known = frozenset({("results/python", "/usr/bin/python3"), ("results/other", "/bin/other")})
    unpacked = unpack(
        io.BytesIO(raw), tmp_path / "outputs", MIB, allowed=["results"], known_links=known
    )
    (counted,) = unpacked.left_out
    assert counted.examples == ("results/other",)


def test_hard_links_become_files(tmp_path: Path) -> None:
    raw = tar_of(
        member("results/one", b"content"),
        member("results/deep/two", change=typed(tarfile.LNKTYPE, "results/one")),
        member("results/three", change=typed(tarfile.LNKTYPE, "./results/deep/two")),
    )
    unpacked = run(tmp_path, raw)
    assert (unpacked.files, unpacked.bytes, unpacked.refused) == (3, 21, 0)
    for name in ("one", "deep/two", "three"):
        path = tmp_path / "outputs/results" / name
        assert path.read_bytes() == b"content"
        assert path.stat().st_nlink == 1


def test_hard_links_count_as_bytes(tmp_path: Path) -> None:
    link = typed(tarfile.LNKTYPE, "results/one")
    many = [member(f"results/{n}", change=link) for n in range(50)]
    unpacked = run(tmp_path, tar_of(member("results/one", bytes(100_000)), *many))
    assert not unpacked.complete
    assert unpacked.bytes <= MIB
    assert "limit" in unpacked.refusals[0].reason


def test_a_hard_link_is_not_followed_through_a_symbolic_one(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "outputs/results").mkdir()
    (tmp_path / "outputs/results/way").symlink_to(tmp_path)
    (tmp_path / "outputs/results/last").symlink_to(tmp_path / "secret")
    raw = tar_of(
        member("results/x", change=typed(tarfile.LNKTYPE, "results/way/secret")),
        member("results/y", change=typed(tarfile.LNKTYPE, "results/last")),
    )
    unpacked = run(tmp_path, raw)
    assert (unpacked.files, unpacked.refused) == (0, 2)


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


def test_modes_and_times_are_kept_but_for_setuid_setgid_and_sticky(tmp_path: Path) -> None:
    def given_as(mode: int, mtime: int, kind: bytes = tarfile.REGTYPE, to: str = "") -> Change:
        def change(info: tarfile.TarInfo) -> None:
            info.mode, info.mtime, info.type, info.linkname = mode, mtime, kind, to

        return change

    raw = tar_of(
        member("results", change=given_as(0o1555, 1_000, tarfile.DIRTYPE)),
        member("results/a", b"x", given_as(0o6755, 2_000)),
        member("results/b", b"y", given_as(0o000, 3_000)),
        member("results/l", change=given_as(0o777, 4_000, tarfile.SYMTYPE, "a")),
        member("results/h", change=given_as(0o640, 5_000, tarfile.LNKTYPE, "results/a")),
        member("results/d/c", b"z", given_as(0o604, 6_000)),
        member("results/t", b"", given_as(0o644, 2**62)),
    )
    run(tmp_path, raw)
    found = {
        path.name: (stat.S_IMODE(path.lstat().st_mode), int(path.lstat().st_mtime))
        for path in (tmp_path / "outputs").rglob("*")
    }
    assert found.pop("d")[0] & 0o700 == 0o700
    assert found.pop("t")[1] > 2**31
    assert found == {
        # The owner of a folder can always delete what is in it, and read every file.
        "results": (0o755, 1_000),
        "a": (0o755, 2_000),
        "b": (0o400, 3_000),
        "l": (0o777, 4_000),
        "h": (0o640, 5_000),
        "c": (0o604, 6_000),
    }


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT])
def test_sixty_folders_deep(tmp_path: Path, style: int) -> None:
    deep = "results/" + "folder/" * 60 + "x"
    unpacked = run(tmp_path, tar_of(member(deep, b"x"), style=style))
    assert (unpacked.files, unpacked.refused) == (1, 0)
    assert (tmp_path / "outputs" / deep).read_bytes() == b"x"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    raw = tar_of(
        member("a", change=typed(tarfile.DIRTYPE)),
        member("a/x.csv", b"x"),
        member("results", change=typed(tarfile.DIRTYPE)),
        member("pipe", change=typed(tarfile.FIFOTYPE)),
    )
    asked = ["results", "a/*.csv", "a/*.txt", "a/b", "pipe", "other"]
    unpacked = unpack(io.BytesIO(raw), tmp_path / "outputs", MIB, allowed=asked)
    assert unpacked.missing == ("a/*.txt", "a/b", "pipe", "other")
    assert unpack(io.BytesIO(tar_of()), tmp_path / "none", MIB, allowed=["."]).missing == (".",)


def test_globs_and_the_whole_working_folder(tmp_path: Path) -> None:
    raw = tar_of(member("a.csv", b"1"), member("b.txt", b"2"), member("./d/c.csv", b"3"))
    some = unpack(io.BytesIO(raw), tmp_path / "some", MIB, allowed=["*.csv", "[a-d]/*"])
    assert (some.files, some.refused) == (2, 1)
    every = unpack(io.BytesIO(raw), tmp_path / "every", MIB, allowed=["/work"])
    assert (every.files, every.refused, every.missing) == (3, 0, ())


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


def test_many_refusals_are_one_line_each_reason(tmp_path: Path) -> None:
    raw = tar_of(*(member(f"/{n}") for n in range(150)), *(member(f"x{n}") for n in range(38)))
    unpacked = run(tmp_path, raw, members=1000)
    assert unpacked.refused == 188
    assert unpacked.refusals == (
        Counted("an absolute path", 150, ("/0", "/1", "/2")),
        Counted("not an output that was asked for", 38, ("x0", "x1", "x2")),
    )
    assert str(unpacked.refusals[1]) == (
        "38 files (x0, x1, x2, …): not an output that was asked for"
    )


def test_a_tar_cut_anywhere_is_never_complete(tmp_path: Path) -> None:
    """Every boundary of a block, and a byte to each side of it; up to the end mark's own end."""
    end = len(WHOLE.rstrip(b"\0"))
    end += -end % 512 + 1024
    assert run(tmp_path / "whole", WHOLE).complete
    assert run(tmp_path / "end", WHOLE[:end]).complete
    for block in range(0, end, 512):
        for cut in {max(block - 1, 0), block, block + 1} - {end}:
            unpacked = run(tmp_path / str(cut), WHOLE[:cut])
            assert not unpacked.complete, cut
            assert unpacked.stopped


def test_a_file_cut_short_is_not_kept(tmp_path: Path) -> None:
    raw = tar_of(member("results/ok", b"ok"), member("results/cut", bytes(100_000)))
    unpacked = run(tmp_path, raw[:20_000])
    assert not unpacked.complete
    assert held(tmp_path) == ["outputs/results", "outputs/results/ok"]


def test_two_tars_behind_each_other_are_not_one(tmp_path: Path) -> None:
    unpacked = run(tmp_path, tar_of(member("results/a", b"x")) + tar_of(member("results/b", b"x")))
    assert (unpacked.files, unpacked.complete) == (1, False)
    assert "behind the tar's end" in unpacked.stopped


class Broken(io.BytesIO):
    """A stream that says at its end what was wrong with it."""

    def __init__(self, raw: bytes, error: Exception) -> None:
        super().__init__(raw)
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data and size:
            raise self._error
        return data


@pytest.mark.parametrize("error", [ArchiveError("another SHA-256"), OSError(5, "Input/output")])
def test_the_stream_is_read_to_its_end_and_its_word_counts(
    tmp_path: Path, error: Exception
) -> None:
    unpacked = unpack(Broken(WHOLE, error), tmp_path / "outputs", MIB, allowed=["results"])
    assert (unpacked.files, unpacked.complete) == (4, False)
    assert any(words in unpacked.stopped for words in ("another SHA-256", "Input/output"))


def test_the_tar_of_another_program_with_these_members(tmp_path: Path) -> None:
    """GNU tar's own bytes: names over 100 bytes, hard and symbolic links, padding to 10 KiB."""
    tree = tmp_path / "tree/results"
    deep = tree / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 5000)
    os.link(deep / "file", tree / "hard")
    (tree / "link").symlink_to(f"{'d' * 120}/{'e' * 120}/file")
    raw = subprocess.run(
        ["tar", "-c", "--format=gnu", "-C", str(tmp_path / "tree"), "results"],
        capture_output=True,
        check=True,
    ).stdout
    unpacked = run(tmp_path, raw)
    assert (unpacked.files, unpacked.links, unpacked.refused) == (2, 1, 0)
    assert unpacked.complete
    assert (tmp_path / "outputs/results/link").read_bytes() == b"x" * 5000


def test_a_compressed_tar_is_not_taken_for_one(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("results/x"))
    unpacked = run(tmp_path, out.getvalue())
    assert (unpacked.files, unpacked.complete) == (0, False)


# What each extension of tar could cost: a header, and a MiB of what may follow it.


class Endless(io.RawIOBase):
    """48 MiB, made as they are read: what grows is not the test's."""

    def __init__(self, start: bytes, block: bytes) -> None:
        self._pieces = endless(start, block)
        self._left = b""
        self.given = 0

    def read(self, size: int = -1, /) -> bytes:
        while len(self._left) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._left += piece
        data, self._left = self._left[:size], self._left[size:]
        self.given += len(data)
        return data


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_extension_takes_memory_or_time(tmp_path: Path, extension: str) -> None:
    """Of 48 MiB of each: at most 8 MiB of memory, and 0.1 s of processor time for each MiB read."""
    start, block, words = EXTENSIONS[extension]
    stream = Endless(start, block)
    tracemalloc.start()
    try:
        before = time.process_time()
        unpacked = unpack(stream, tmp_path / "outputs", 2**30, 5_000, ["results"])
        spent = time.process_time() - before
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert words in unpacked.stopped
    assert peak < 8 * MIB
    # tracemalloc itself makes it some four times slower.
    assert spent < 0.5 * (1 + stream.given / MIB)
    if words:
        assert stream.given < 64 * 1024


def test_no_tar_at_all(tmp_path: Path) -> None:
    assert run(tmp_path, b"").files == 0
    assert not run(tmp_path, os.urandom(4096)).complete


_BASE = tar_of(
    member("results/a", b"a" * 700),
    member("results/" + "n" * 120, b"x"),
    member("results/link", change=typed(tarfile.SYMTYPE, "/etc")),
)


@settings(max_examples=examples(150), deadline=None)
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
