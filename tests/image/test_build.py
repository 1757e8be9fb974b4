"""What the stock image is made of. tests/cells/test_guest.py looks at it from inside."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import ModuleType

import pytest

from wgcell.errors import ImageError
from wgcell.image import build, debian, initramfs


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((debian, name) for name in ("SUITE", "KERNEL_PACKAGE", "PACKAGES")),
        *((debian, name) for name in ("COMPILE_PYTHON", "TAKE_KERNEL")),
        *((initramfs, name) for name in ("TOOLS", "LIBRARY", "EXTENSIONS", "EARLY", "LATE")),
        (initramfs, "COMPILE"),
    ],
)
def test_every_table_of_the_base_is_in_its_key(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build.base_key()
    value = getattr(module, name)
    monkeypatch.setattr(module, name, f"{value} " if isinstance(value, str) else value[1:])
    assert build.base_key() != before


def test_a_changed_setting_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.base_key()
    monkeypatch.setattr(debian, "SETTINGS", {"etc/pip.conf": ""})
    assert build.base_key() != before


def test_the_agents_modules_are_compiled_and_never_go_stale(tmp_path: Path) -> None:
    """By a hash that nobody checks (PEP 552): a source with another date makes no difference."""
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "one/__init__.py").write_text("'words'\nassert False\n")
    (tmp_path / "one/two/__init__.py").write_text("A = 'é'\n")
    argv = [sys.executable, "-I", "-S", "-B", "-c", initramfs.COMPILE, str(tmp_path)]
    subprocess.run(argv, check=True)
    assert list(tmp_path.rglob("*.py")) == []
    for compiled in tmp_path.rglob("*.pyc"):
        assert compiled.read_bytes()[:8] == MAGIC_NUMBER + (1).to_bytes(4, "little")
    shown = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import one.two, one; "
    shown += "print(one.two.A, one.__doc__, one.__file__)"
    argv = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", shown]
    done = subprocess.run(argv, check=True, capture_output=True, encoding="utf-8")
    assert done.stdout == f"é None {tmp_path}/one/__init__.pyc\n"


def test_what_people_expect_is_in_the_image() -> None:
    assert {"ca-certificates", "curl", "git", "python3-pip", "python3-venv"} <= set(debian.PACKAGES)


@pytest.mark.parametrize("mirror", ["--customize-hook=echo", "/etc/apt/sources.list", "-", "x"])
def test_what_is_no_mirror_is_refused(mirror: str) -> None:
    """mmdebstrap would read a path as a file, and a word with a dash as an option."""
    with pytest.raises(ImageError):
        debian.bootstrap([mirror])


def test_a_mirror_is_a_url_or_a_line() -> None:
    lines = ["http://mirror.example.com/debian", "deb http://mirror.example.com/debian a main"]
    assert debian.bootstrap(lines)[0] == "mmdebstrap"


def test_an_ordinary_users_root_keeps_its_modes() -> None:
    """As another user, if this one is root, whose tar keeps them anyhow."""
    modes = {"setuid": 0o4755, "setgid": 0o2755, "plain": 0o666, "sticky": 0o1777}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with tarfile.open(folder / "root.tar", "w") as tar:
            for name, mode in modes.items():
                entry = tarfile.TarInfo(name)
                entry.mode = mode
                entry.type = tarfile.DIRTYPE if name == "sticky" else tarfile.REGTYPE
                tar.addfile(entry, io.BytesIO())
        for place, mode in ((folder, 0o755), (folder / "root.tar", 0o644), (folder / "to", 0o777)):
            place.mkdir(exist_ok=True) if place.suffix == "" else None
            place.chmod(mode)
        argv = [*debian.UNPACK, "-f", str(folder / "root.tar"), "-C", str(folder / "to")]
        who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(argv, check=True, umask=0o077, **who)  # type: ignore[call-overload]
        found = {path.name: path.stat().st_mode & 0o7777 for path in (folder / "to").iterdir()}
    assert found == modes
