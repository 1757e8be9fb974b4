"""The script that makes the outputs' tar, in a root that means harm, by the image's own busybox.

What this can't show: the binding over /run, and the guest's kernel (`tests/cells/test_results.py`).
"""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from wgcell.guest import scripts

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot"),
]

APPLETS = ("base64", "cat", "dd", "echo", "sh", "sort", "tar", "test", "tr")


@pytest.fixture
def left(busybox: Path, tmp_path: Path) -> Path:
    """A workload's root, with /run as the agent binds it; no proc is mounted there."""
    for name in ("run", "work", "proc", "dev"):
        (tmp_path / name).mkdir()
    for name, minor in (("null", 3), ("zero", 5)):
        os.mknod(tmp_path / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    shutil.copy(busybox, tmp_path / "run/busybox")
    for name in APPLETS:
        (tmp_path / "run" / name).symlink_to("busybox")
    (tmp_path / "run/collect").write_bytes(scripts()["bin/collect"])
    return tmp_path


def collected(root: Path, *paths: str) -> tuple[int, list[str]]:
    """tar's exit code, and the names in it."""
    argv = ["chroot", str(root), "/run/busybox", "sh", "/run/collect"]
    words = b"".join(base64.b64encode(path.encode()) + b"\n" for path in paths)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    subprocess.run([*argv, "list"], input=words, env=environment, check=True, timeout=30)
    done = subprocess.run([*argv, "tar"], env=environment, capture_output=True, timeout=30)
    with tarfile.open(fileobj=BytesIO(done.stdout)) as tar:
        return done.returncode, tar.getnames()


@pytest.mark.parametrize("paths", [("*",), ("nothing",)])
def test_nothing_that_the_workload_left_is_executed(
    left: Path, busybox: Path, paths: tuple[str, ...]
) -> None:
    """The working folder is the workload's, and a shell may look for a program there."""
    planted = '#!/run/busybox sh\n/run/busybox echo $0 >>/ran\nexec /run/busybox ${0##*/} "$@"\n'
    for name in APPLETS:
        (left / "work" / name).write_text(planted)
        (left / "work" / name).chmod(0o755)
    code, names = collected(left, *paths)
    ran = left / "ran"
    assert not ran.exists(), ran.read_text()
    assert (code, sorted(names)) == (0, [f"./{name}" for name in APPLETS] if "*" in paths else [])


def test_what_is_below_another_is_taken_once_and_odd_names_are_names(left: Path) -> None:
    (left / "work/a/b").mkdir(parents=True)
    (left / "work/a b").write_text("x")
    (left / "work/-C").write_text("x")
    (left / "work/a\nb").write_text("x")
    (left / "work/out").symlink_to("/")
    code, names = collected(left, "a", "a/b", "a*", "-C", "out", "*b")
    assert (code, sorted(names)) == (0, ["./-C", "./a", "./a b", "./a/b", "./out"])
