"""Checks of this machine: each finds one thing that a cell needs, or that makes it better.

`wgcell doctor` prints the findings. Each has the command that fixes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wgcell import programs
from wgcell.cell import emulation
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.folder import all_cells, state_folders
from wgcell.cell.provider import load_provider
from wgcell.cli.cells import frozen_hint
from wgcell.errors import LaunchError, WgcellError
from wgcell.gateway import words as gateway_words
from wgcell.gateway.model.keys import generate_private_key
from wgcell.home import config_path
from wgcell.image import store
from wgcell.relay import control as relay_words
from wgcell.relay.seal import unprivileged_id
from wgcell.vm import backends
from wgcell.vm.sandbox import cgroup
from wgcell.vm.sandbox.jail import find_jail
from wgcell.vm.spec import Accelerator

__all__ = ["Finding", "examine", "why_no_namespace_engine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. ``needed``: without it no cell runs."""

    subject: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def _program(name: str, package: str) -> Callable[[], Finding]:
    """A check that the program is installed."""

    def check() -> Finding:
        path = programs.find(name)
        return Finding(name, path is not None, path or "not found", f"apt-get install {package}")

    return check


def _machine() -> Finding:
    """The programs of the backend that runs the machines: one that is missing, or the first."""
    known = backends.default().programs
    name = next((one for one in known if programs.find(one) is None), next(iter(known)))
    return _program(name, known[name])()


def _namespaces() -> Finding:
    try:
        argv = [programs.path_of("unshare"), "--user", "--map-root-user", "--net"]
        done = subprocess.run(
            [*argv, programs.path_of("true")],
            capture_output=True,
            text=True,
            check=False,
            env=programs.environment(),
        )
        ok, found = done.returncode == 0, done.stderr.strip() or "work"
    except OSError as error:
        ok, found = False, str(error)
    return Finding("user namespaces", ok, found, _namespaces_fix(), needed=False)


def _image() -> Finding:
    try:
        image = store.load("debian")
    except WgcellError as error:
        return Finding("image debian", False, error.message, "wgcell image build")
    return Finding("image debian", True, f"whole, kernel {image.manifest.get('kernel_version')}")


def _kvm() -> Finding:
    try:
        image = store.load("debian")
        cache = store.cache_folder().parent
        chosen, reason = backends.default().probe(image.kernel, cache)
    except WgcellError as error:
        return Finding("KVM", False, f"not probed: {error.message}", needed=False)
    if chosen is Accelerator.KVM:
        return Finding("KVM", True, "boots a guest")
    found = f"{reason}: {emulation.MEANING}"
    return Finding("KVM", False, found, emulation.remedy(reason), needed=False)


def _namespaces_fix() -> str:
    """The fix for user namespaces, by the setting with which this system restricts them."""
    for setting, closed, fix in (
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "=0, or AppArmor profiles for unshare and bwrap",
        ),
        ("user/max_user_namespaces", "0", "=15000"),
        ("kernel/unprivileged_userns_clone", "0", "=1"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", setting).read_text().strip() == closed:
                return f"sysctl {setting.replace('/', '.')}{fix}"
    return "user namespaces must be allowed to this user"


def _seal() -> Finding:
    try:
        missing = asyncio.run(_sealed())
    except (WgcellError, OSError, TimeoutError) as error:
        return Finding("wall: seal", False, str(error), needed=False)
    if not missing:
        return Finding("wall: seal", True, "whole")
    extra = set(missing) == {"landlock"}
    found = "; ".join(f"{stage}: {why}" for stage, why in missing.items())
    fix = "an older kernel has no Landlock: an extra, never the wall"
    if "namespaces" in missing:
        fix = _namespaces_fix()
    if "seccomp" in missing:
        fix = "apt-get install libseccomp2"
    return Finding("wall: seal", extra, found, fix, needed=False)


async def _sealed() -> Mapping[str, str]:
    """Start a relay without a guest; the stages of its seal that are missing, and why."""
    nic, ours = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))  # sends nothing
    asked = relay_words.Configure(bytes(32), bytes(32), mtu=1420)
    with ours:
        relay = await RelayProcess.start(nic, udp, asked)
        await relay.quit()
        relay.close()
    return relay.missing


def _jail() -> Finding:
    jail = find_jail(unprivileged_id("doctor"), None)
    if jail.bwrap is not None:
        return Finding("wall: jail", True, "works")
    fix = "apt-get install bubblewrap libseccomp2"
    if "not installed" not in jail.missing:
        fix = _namespaces_fix()
    return Finding("wall: jail", False, jail.missing, fix, needed=False)


def _cgroup() -> Finding:
    place = cgroup.find()
    if not isinstance(place, str):
        return Finding("limits: cgroup", True, ", ".join(place.controllers))
    fix = "an extra: systemd-run --user --scope -p Delegate=yes wgcell run …"
    return Finding("limits: cgroup", False, place, fix, needed=False)


def _gateway() -> Finding:
    """Start the namespace engine without a peer: it reports what it lacks."""
    subject = "gateway: namespace"
    why = why_no_namespace_engine()
    if why:
        found, _, fix = why.partition("\n")
        fix = _namespaces_fix() if "namespace:" in found else fix.strip()
        instead = "until then the embedded engine, whose refusals are late or silent"
        return Finding(subject, False, found, f"{fix or 'fix that'}; {instead}", needed=False)
    return Finding(subject, True, "works")


def why_no_namespace_engine() -> str:
    """Why the namespace engine can't run here, and the fix in a second line; empty if it can."""
    try:
        asyncio.run(_started_and_ended())
    except TimeoutError:
        return "it did not start in time"
    except LaunchError as error:
        return error.output or error.message
    return ""


async def _started_and_ended() -> None:
    asked = gateway_words.Configure(private_key=generate_private_key(), listen="127.0.0.1:0")
    gateway = await GatewayProcess.start(asked, "namespace")
    await gateway.quit()


def _configuration() -> Finding:
    """The provider's file: an error in it stops every cell."""
    subject = "configuration"
    try:
        place = config_path()
        load_provider(place)
    except WgcellError as error:
        fix = error.hint or "correct the file, or take it away: every cell is refused until then"
        return Finding(subject, False, error.message, fix)
    return Finding(subject, True, str(place) if place.exists() else f"the defaults: no {place}")


def _frozen() -> Finding:
    subject = "frozen machines"
    try:
        waiting = [cell for cell in all_cells(*state_folders()) if cell.status() == "frozen"]
    except WgcellError as error:
        return Finding(subject, False, error.message, error.hint)
    found = ", ".join(cell.id for cell in waiting) or "none"
    fix = "\n".join(map(frozen_hint, waiting))
    return Finding(subject, not waiting, found, fix, needed=False)


CHECKS: tuple[Callable[[], Finding], ...] = (
    _machine,
    _program("mke2fs", "e2fsprogs"),
    _program("mmdebstrap", "mmdebstrap"),
    _program("mkfs.erofs", "erofs-utils"),
    _namespaces,
    _image,
    _kvm,
    _seal,
    _jail,
    _gateway,
    _cgroup,
    _configuration,
    _frozen,
)


def examine() -> list[Finding]:
    """Run every check once. A check that fails is a finding too."""
    return [_finding(check) for check in CHECKS]


def _finding(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (WgcellError, OSError) as error:
        subject = check.__name__.strip("_")
        return Finding(subject, False, f"can't be checked: {error}", needed=False)
