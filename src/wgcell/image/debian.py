"""The root file system and the kernel, both from one Debian suite, by mmdebstrap alone.

Any Debian or Ubuntu can build them, as root or as an ordinary user: mmdebstrap brings its own
configuration of apt. The kernel's package is unpacked and not installed, because a root needs
neither a kernel nor the programs that would make it boot.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from wgcell.errors import ImageError
from wgcell.image.commands import run
from wgcell.image.modules import module_name, modules_needed

__all__ = [
    "COMPILE_PYTHON",
    "KERNEL_PACKAGE",
    "PACKAGES",
    "SETTINGS",
    "SUITE",
    "TAKE_KERNEL",
    "UNPACK",
    "Kernel",
    "add_test_modules",
    "bootstrap",
    "pack_root",
    "take_kernel",
    "unpack_root",
    "versions",
]

SUITE = "bookworm"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "iputils-ping",
    "nftables",
    "python3",
    "python3-pip",
    "python3-venv",
    "util-linux",
    "wireguard-tools",
)
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "etc/pip.conf": "[global]\nbreak-system-packages = true\nroot-user-action = ignore\n"
        "disable-pip-version-check = true\n"
    }
)
"""Settings that differ from Debian's own, by path. A cell's root is discarded with the packages
that pip installs, so Debian's protection of its own packages (PEP 668) has no use in it."""
UNPACK = ("tar", "-x", "-p", "--no-same-owner")
"""tar, so that modes are the archive's: without -p it applies an ordinary user's umask, and drops
the setuid, setgid and sticky bits. The file system's builder makes root the owner of each file."""

_KERNEL = "wgcell-kernel"
"""The folder in the root for the kernel's package, until `take_kernel`."""
TAKE_KERNEL = (
    f'set -e; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; mkdir "$1/{_KERNEL}"; cd "$1/{_KERNEL}"; '
    f"name=$(apt-cache depends --important {KERNEL_PACKAGE} | sed -n 's/^ *Depends: //p'); "
    'apt-get download -q "${name%% *}"'
)
"""A hook of mmdebstrap: download the kernel's package, by the apt that has filled the root."""
COMPILE_PYTHON = (
    'chroot "$1" sh -c "exec python3 -m compileall -q -f -j 0'
    ' --invalidation-mode unchecked-hash /usr/lib/python3*"'
)
"""A hook of mmdebstrap: compile Python's library anew, by the root's own Python. dpkg's .pyc files
record the dates of their sources, and `mkfs.erofs -T0` changes these: each import would compile
again. A .pyc file with an unchecked hash stays valid."""

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_TEST_MODULES = ("llc", "stp", "bridge", "macvlan")
"""Modules that a hostile root could bring, for `wgcell prove` alone."""
_TEST_MODULES_FOLDER = "usr/lib/modules/wgcell-prove"


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package: its ``release``, as ``uname -r`` prints it, and its files."""

    release: str
    image: Path
    modules: Path
    package: str
    package_version: str


def bootstrap(mirrors: Sequence[str]) -> list[str]:
    """The command that makes the root, without its suite, its target and its mirrors.

    Raises ImageError for a mirror that mmdebstrap would read as an option or as a file.
    """
    for mirror in mirrors:
        if "://" not in mirror or mirror.startswith("-"):
            raise ImageError(
                f"no mirror: {mirror[:80]!r}",
                hint="a URL such as http://mirror.example.com/debian, or a line of a sources.list",
            )
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
    argv += [f"--customize-hook={hook}" for hook in (COMPILE_PYTHON, TAKE_KERNEL)]
    # Ubuntu's apt does not trust Debian's keys; the package debian-archive-keyring has them.
    return [*argv, f"--keyring={_KEYRING}"] if Path(_KEYRING).exists() else argv


def unpack_root(root: Path, temporary: Path, mirrors: Sequence[str]) -> None:
    """Make the root file system in the folder ``root``, with `SETTINGS`. Raises ImageError."""
    root.mkdir()
    tar = temporary / "root.tar"
    # An ordinary user's mmdebstrap works in a user namespace, and must be able to enter.
    temporary.chmod(0o755)
    run(
        [*bootstrap(mirrors), SUITE, str(tar), *mirrors],
        hint="an ordinary user needs user namespaces and the package uidmap",
    )
    run([*UNPACK, "-f", str(tar), "-C", str(root), "--exclude=./dev/*"])
    for path, text in SETTINGS.items():
        (root / path).write_text(text)


def take_kernel(root: Path, folder: Path) -> Kernel:
    """Unpack the kernel's package from ``root`` to ``folder``, and remove it from ``root``.

    Raises ImageError if the suite has no such package.
    """
    downloaded = root / _KERNEL
    deb = next(downloaded.glob("*.deb"), None)
    if deb is None:
        raise ImageError(f"the suite {SUITE} has no {KERNEL_PACKAGE}")
    run(["dpkg-deb", "-x", str(deb), str(folder)])
    shown = ["dpkg-deb", "-W", "--showformat=${Package}\n${Version}\n", str(deb)]
    package, package_version = run(shown).split()
    shutil.rmtree(downloaded)
    release = next((folder / "lib/modules").iterdir()).name
    # A newer Debian's depmod looks below /usr.
    (folder / "usr").mkdir(exist_ok=True)
    if not (folder / "usr/lib").exists():
        (folder / "usr/lib").symlink_to("../lib")
    run(["depmod", "-b", str(folder), release], hint="apt-get install kmod")
    return Kernel(
        release,
        folder / f"boot/vmlinuz-{release}",
        folder / "lib/modules" / release,
        package,
        package_version,
    )


def add_test_modules(root: Path, modules: Path) -> None:
    """Copy the modules for `wgcell prove` to the root."""
    (root / _TEST_MODULES_FOLDER).mkdir(parents=True)
    for path in modules_needed((modules / "modules.dep").read_text(), _TEST_MODULES):
        if module_name(path) in _TEST_MODULES:
            shutil.copy(modules / path, root / _TEST_MODULES_FOLDER)


def pack_root(root: Path, target: Path) -> None:
    """Write ``root`` to ``target`` as an erofs file system. Raises ImageError."""
    run(
        ["mkfs.erofs", "-zlz4hc", "--all-root", "-T0", str(target), str(root)],
        hint="apt-get install erofs-utils",
    )


def versions(root: Path) -> dict[str, str]:
    """Every installed package and its version, from dpkg's status file."""
    found: dict[str, str] = {}
    for paragraph in (root / "var/lib/dpkg/status").read_text(encoding="utf-8").split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and line[0] != " "
        )
        if "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "?")
    return found
