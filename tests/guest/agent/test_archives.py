"""Files of a workload's root as a tar, on this kernel and without a machine."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from tests.support.inner import CONFINED, OPEN, Inner, config, shell

from wgcell.guest.channel import WINDOW
from wgcell.guest.frames import Pack, Unpack

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts in the first user namespace"),
]


def packed(files: dict[str, bytes]) -> bytes:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o664
            tar.addfile(member, BytesIO(data))
    return made.getvalue()


def unpacked(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        return {member.name: member for member in tar}


@pytest.fixture(params=[CONFINED, OPEN], ids=["confined", "open"])
def files(bare: Path, busybox: Path, request: pytest.FixtureRequest) -> Iterator[Inner]:
    """A guest whose root has none of the programs that this needs; its own tar is elsewhere."""
    before = f"from wgcell.guest.agent import archives; archives._BUSYBOX = {str(busybox)!r}"
    with Inner(bare, config(walls=request.param), before=before) as made:
        yield made


def test_files_go_in_and_out_with_nothing_of_the_roots(files: Inner, bare: Path) -> None:
    (bare / "work/in").mkdir()
    sent = {"a": b"text", "below/b": os.urandom(2 * WINDOW), "-c": b""}
    heard = files.opener.run(Unpack("in"), packed(sent))
    assert (heard.code, heard.stderr) == (0, b"")
    assert (bare / "work/in/below/b").read_bytes() == sent["below/b"]
    assert (bare / "work/in/a").stat().st_mode & 0o777 == 0o664
    heard = files.opener.run(Pack("in"))
    assert (heard.code, heard.stderr) == (0, b"")
    assert unpacked(heard.stdout).keys() == {
        "./in",
        "./in/a",
        "./in/below",
        "./in/below/b",
        "./in/-c",
    }


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("in/a", {"./a"}),
        ("/work/in/a", {"./a"}),
        ("in/", {"./in", "./in/a", "./in/-c"}),
        ("in/.", {".", "./a", "./-c"}),
        (".", {".", "./in", "./in/a", "./in/-c"}),
        ("in/-c", {"./-c"}),
        ("in/../in/a", {"./a"}),
        ("/see", {"./see"}),
        ("../see", {"./see"}),
        ("../../../../../see", {"./see"}),
    ],
)
def test_a_path_is_named_by_its_last_part(
    files: Inner, bare: Path, path: str, names: set[str]
) -> None:
    (bare / "work/in").mkdir()
    for name in ("a", "-c"):
        (bare / "work/in" / name).write_text(name)
    heard = files.opener.run(Pack(path))
    assert heard.code == 0 and unpacked(heard.stdout).keys() == names, heard.stderr


def test_links_lead_nowhere_but_within_the_root(files: Inner, bare: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    (bare / "work/out").symlink_to(outside)
    (bare / "work/up").symlink_to("../../..")
    heard = files.opener.run(Pack("out/secret"))
    assert heard.code == 126 and b"wgcell: out: No such file or directory" in heard.stderr
    heard = files.opener.run(Pack("up/see"))
    assert heard.code == 0 and unpacked(heard.stdout).keys() == {"./see"}
    heard = files.opener.run(Pack("out"))
    assert unpacked(heard.stdout)["./out"].issym()
    heard = files.opener.run(Unpack("out"), packed({"a": b"x"}))
    assert heard.code == 126 and [*outside.iterdir()] == [outside / "secret"]
    heard = files.opener.run(Unpack("."), packed({"../../../../escaped": b"x"}))
    assert not (tmp_path / "escaped").exists() and not (tmp_path.parent / "escaped").exists()


def test_what_tar_can_not_do_it_says_and_its_code_is_the_sessions(files: Inner) -> None:
    heard = files.opener.run(Pack("none"))
    assert heard.code == 1 and b"./none: No such file or directory" in heard.stderr
    heard = files.opener.run(Unpack("none"), b"")
    assert heard.code == 126 and heard.stderr == b"wgcell: none: No such file or directory\n"
    heard = files.opener.run(Unpack("."), b"no tar at all" * 100)
    assert heard.code == 1 and b"tar" in heard.stderr


def test_what_runs_can_not_be_written_to(furnished: Path, busybox: Path) -> None:
    """A process of the workload's may keep what another runs, and write once that has ended."""
    before = f"from wgcell.guest.agent import archives; archives._BUSYBOX = {str(busybox)!r}"
    digest = busybox.read_bytes()
    with Inner(furnished, config(), before=before) as inner:
        opener = inner.opener
        tar = opener.open(Unpack("."))
        opener.write(tar, b"x")
        keep = (
            "for f in /proc/[0-9]*/exe; do readlink $f | grep -q memfd && exec 3<$f && break; done"
        )
        keeper = opener.open(shell(f"until {{ {keep}; }}; do :; done; echo on; read a;"
                                   "echo x >/proc/self/fd/3", stdin=True))  # fmt: skip
        opener.until(lambda: opener.heard[keeper].stdout)
        opener.end(tar)
        opener.until_over(tar)
        opener.write(keeper, b"\n")
        heard = opener.until_over(keeper)
        assert heard.code == 1 and b"Operation not permitted" in heard.stderr, heard
    assert busybox.read_bytes() == digest


def test_a_packed_tar_asks_for_no_program_of_the_roots(furnished: Path, busybox: Path) -> None:
    for name in ("gunzip", "gzip", "zcat", "unxz", "bunzip2"):
        for folder in ("bin", "work"):
            place = furnished / folder / name
            place.unlink(missing_ok=True)
            place.write_text("#!/bin/sh\necho >/work/ran\n")
            place.chmod(0o755)
    before = f"from wgcell.guest.agent import archives; archives._BUSYBOX = {str(busybox)!r}"
    with Inner(furnished, config(), before=before) as inner:
        for open_ in (gzip.compress, lzma.compress, bz2.compress):
            inner.opener.run(Unpack("."), open_(packed({"a": b"x"})))
    assert not (furnished / "work/ran").exists()
