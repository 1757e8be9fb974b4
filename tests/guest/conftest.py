"""What a workload's root is made of: one static program, or the image's own busybox."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.inner import CONFINED, OPEN, Inner, config
from tests.support.openers import Opener

from wgcell.errors import ImageError
from wgcell.guest.agent import root
from wgcell.image import store

SEE = Path(__file__).parents[1] / "support/see.c"


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The initramfs's."""
    folder = tmp_path_factory.mktemp("initramfs")
    try:
        base = store.load("debian").folder / "base.cpio"
    except ImageError:
        pytest.skip("no image")
    argv = ["cpio", "-i", "-d", "--quiet", "--no-absolute-filenames", "-F", str(base)]
    subprocess.run([*argv, "bin/busybox"], cwd=folder, check=True)
    return folder / "bin/busybox"


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs nothing beside itself."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("static") / "see"
    argv = [compiler, "-static", "-O1", "-o", str(program), str(SEE)]
    subprocess.run(argv, check=True, capture_output=True)
    return program


@pytest.fixture
def bare(static: Path, tmp_path: Path) -> Path:
    """A root with one program in it, and the folders that the agent makes."""
    inside = tmp_path / "root"
    inside.mkdir()
    shutil.copy(static, inside / "see")
    (inside / "text").write_text("no program\n")
    root.make_folders(str(inside))
    return inside


@pytest.fixture
def furnished(bare: Path, busybox: Path) -> Path:
    """A root with a shell and its programs, too."""
    (bare / "bin").mkdir()
    shutil.copy(busybox, bare / "bin/busybox")
    listed = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            (bare / "bin" / applet).symlink_to("busybox")
    (bare / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nsomeone:x:1000:1001::/tmp:/bin/sh\n"
    )
    (bare / "etc/group").write_text("root:x:0:\nothers:x:1002:someone\n")
    os.chmod(bare / "tmp", 0o1777)
    return bare


@pytest.fixture(params=[CONFINED, OPEN], ids=["confined", "open"])
def inner(furnished: Path, request: pytest.FixtureRequest) -> Iterator[Inner]:
    """A guest without a command, with and without the wall."""
    with Inner(furnished, config(walls=request.param)) as made:
        yield made


@pytest.fixture
def opener(inner: Inner) -> Opener:
    """Whoever opens sessions in it."""
    return inner.opener


@pytest.fixture
def confined(furnished: Path) -> Iterator[Opener]:
    """The opener of one with the wall."""
    with Inner(furnished, config()) as made:
        yield made.opener
