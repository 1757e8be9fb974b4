"""``wgcell doctor``: what is missing here, and the command that mends it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from wgcell.cli.terminal import console
from wgcell.errors import WgcellError
from wgcell.image import store
from wgcell.machine.accelerator import choose
from wgcell.machine.argv import Accelerator
from wgcell.machine.process import find_qemu

__all__ = ["Finding", "doctor", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``needed``: without it no cell runs."""

    what: str
    good: bool
    found: str
    mend: str = ""
    needed: bool = True


def _program(name: str, package: str) -> Callable[[], Finding]:
    def look() -> Finding:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        return Finding(name, path is not None, path or "not found", f"apt-get install {package}")

    return look


def _namespaces() -> Finding:
    try:
        argv = ["unshare", "--user", "--map-root-user", "--net", "true"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        good, found = done.returncode == 0, done.stderr.strip() or "work"
    except OSError as error:
        good, found = False, str(error)
    mend = "building an image as an ordinary user needs them: sysctl user.max_user_namespaces=15000"
    return Finding("user namespaces", good, found, mend, needed=False)


def _image() -> Finding:
    try:
        image = store.load("debian")
    except WgcellError as error:
        return Finding("image debian", False, error.message, "wgcell image build")
    return Finding("image debian", True, f"whole, kernel {image.manifest.get('kernel_version')}")


def _kvm() -> Finding:
    try:
        image = store.load("debian")
        chosen, reason = choose(find_qemu(), image.kernel, store.cache_folder().parent)
    except WgcellError as error:
        return Finding("KVM", False, f"not probed: {error.message}", needed=False)
    mend = "cells run emulated: slower, and no security boundary in QEMU's own terms"
    good = chosen is Accelerator.KVM
    return Finding("KVM", good, "boots a guest" if good else reason, mend, needed=False)


def _not_built(wall: str) -> Callable[[], Finding]:
    mend = "this version does not build that wall; result.json says so for every cell"
    return lambda: Finding(wall, False, "not up", mend, needed=False)


LOOKS: tuple[Callable[[], Finding], ...] = (
    _program("qemu-system-x86_64", "qemu-system-x86"),
    _program("mke2fs", "e2fsprogs"),
    _program("mmdebstrap", "mmdebstrap"),
    _program("mkfs.erofs", "erofs-utils"),
    _namespaces,
    _image,
    _kvm,
    _not_built("wall: seal"),
    _not_built("wall: jail"),
)


def examine() -> list[Finding]:
    """Look at everything once."""
    return [look() for look in LOOKS]


def doctor(
    install: Annotated[
        bool, typer.Option("--print-mends", help="Only the commands that mend, one a line.")
    ] = False,
) -> None:
    """Say what is missing on this machine, and the command that mends it.

    Exits 0 when a cell can run here, 1 when something needed is missing.
    """
    findings = examine()
    if install:
        for finding in findings:
            if not finding.good and finding.needed:
                print(finding.mend)
    else:
        for finding in findings:
            mark = "[green]ok[/]     " if finding.good else "[yellow]note[/]   "
            if not finding.good and finding.needed:
                mark = "[red]missing[/]"
            console.print(f"{mark} {finding.what:<20} {finding.found}", markup=True)
            if not finding.good and finding.mend:
                console.print(f"        {'':<20} {finding.mend}")
    if any(not finding.good and finding.needed for finding in findings):
        raise typer.Exit(1)
