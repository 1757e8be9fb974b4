"""What the stock image is made of. tests/vm/test_guest.py looks at it from inside."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from wgcell.errors import ImageError
from wgcell.image import build, suite


@pytest.mark.parametrize("name", ["PACKAGES", "TOOLS", "EARLY", "LATE", "COMPILE_PYTHON"])
def test_whatever_shapes_the_base_is_in_its_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._base_key()
    value = getattr(build, name)
    monkeypatch.setattr(build, name, f"{value} " if isinstance(value, str) else value[1:])
    assert build._base_key() != before


def test_another_suite_is_another_base(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._base_key()
    monkeypatch.setattr(suite, "SUITE", "trixie")
    assert build._base_key() != before


def test_a_changed_setting_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._base_key()
    monkeypatch.setattr(build, "SETTINGS", {"etc/pip.conf": ""})
    assert build._base_key() != before


def test_what_people_expect_is_in_the_image() -> None:
    assert {"ca-certificates", "curl", "git", "python3-pip", "python3-venv"} <= set(build.PACKAGES)


NONE = suite.Mirrors()
BOTH = suite.Mirrors("http://a.example.com/d", "http://b.example.com/s")


@pytest.mark.parametrize(
    ("asked", "archive", "security"),
    [
        ("http://a.example.com/debian", "", "http://a.example.com/debian-security"),
        ("http://a.example.com/debian/", "", "http://a.example.com/debian-security"),
        (
            "http://a.example.com/d,http://b.example.com/s",
            "http://a.example.com/d",
            "http://b.example.com/s",
        ),
        ("file:///srv/debian", "", "file:///srv/debian-security"),
    ],
)
def test_a_mirror_that_is_asked_for(
    asked: str, archive: str, security: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = suite.Mirrors(archive or asked, security)
    assert suite.mirrors(asked) == expected
    monkeypatch.setenv("WGCELL_MIRROR", asked)
    assert suite.mirrors() == expected


@pytest.mark.parametrize(
    "asked",
    [
        *(
            "x",
            "http://",
            "ftp://a.example.com/debian",
            "http://a,http://b,http://c",
            ",",
            "http://a,",
        ),
        *(
            "http://a [trusted=yes]",
            "http://a/[trusted=yes]",
            "http://a\ndeb http://b",
            "http://a/\x1b",
        ),
    ],
)
def test_what_is_no_mirror_is_refused(asked: str) -> None:
    with pytest.raises(ImageError, match="is no mirror"):
        suite.parse_mirrors(asked)


@pytest.mark.parametrize(
    ("targets", "archive", "security"),
    [
        ("", "", ""),
        ("Ubuntu|Ubuntu|http://u.example.com/ubuntu/\n", "", ""),
        (
            "Else|Debian|http://e.example.com/\nDebian|Debian-Security|http://s.example.com/s/\n"
            "Debian|Debian|http://d.example.com/d/\nDebian|Debian|http://second.example.com/\n",
            "http://d.example.com/d/",
            "http://s.example.com/s/",
        ),
        ("Debian|Debian|cdrom:[Debian 13]/\n", "", ""),
    ],
)
def test_a_debians_own_mirror_is_taken(targets: str, archive: str, security: str) -> None:
    """Whatever suite it is of: the image's is the same everywhere."""
    assert suite._of_targets(targets) == suite.Mirrors(archive, security)


def test_each_source_is_of_the_one_suite_and_signed() -> None:
    lines = BOTH.sources()
    assert [line.split()[3] for line in lines] == [
        suite.SUITE + behind for behind in ("", "-updates", "-security")
    ]
    assert not NONE.sources()
    assert all(line.split()[1] == f"[signed-by={suite.KEYRING}]" for line in lines)


def test_nothing_but_a_mirrors_address_comes_from_the_hosts_apt() -> None:
    """The fault was a kernel by the host's `apt-get download`: another Debian, another kernel."""
    source = Path(build.__file__).read_text()
    assert "apt-get" not in source.replace("apt-get install", "").replace("apt-get update", "")
    assert "apt-cache" not in source
    hook = suite.fetch_kernel("linux-image-cloud-amd64")
    assert hook.index("APT_CONFIG=") < hook.index("apt-cache") < hook.index("apt-get download")
    assert shlex.split(hook)


@pytest.mark.parametrize("there", ["lib", "usr/lib"])
def test_modules_are_found_in_either_folder(tmp_path: Path, there: str) -> None:
    (tmp_path / there / "modules/6.1").mkdir(parents=True)
    build._one_module_folder(tmp_path)
    for folder in ("lib", "usr/lib"):
        assert [path.name for path in (tmp_path / folder / "modules").iterdir()] == ["6.1"]


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
        argv = [*build.UNPACK, "-f", str(folder / "root.tar"), "-C", str(folder / "to")]
        who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(argv, check=True, umask=0o077, **who)  # type: ignore[call-overload]
        found = {path.name: path.stat().st_mode & 0o7777 for path in (folder / "to").iterdir()}
    assert found == modes
