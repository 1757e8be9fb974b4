"""QEMU's control group, where one is delegated to us: its memory, processes and CPU time bounded.

Only version 2, and only where whoever runs this system has handed a part of the tree over (Linux,
Documentation/admin-guide/cgroup-v2.rst, "Delegation"; systemd's ``Delegate=yes``): as an ordinary
user that is a folder we may write to, as root one that carries systemd's mark. Elsewhere resource
limits stand alone (`wgcell.vm.sandbox.jail.limits`), and `find` says why.

A group with processes of its own can't hand controllers on, so a cell's group is made beside ours
if our parent was delegated with its controllers on, else below ours, and then we step aside into a
leaf of our own first; that we do only if nobody else is there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bounds", "Cgroup", "Parent", "find", "make"]

CONTROLLERS = ("cpu", "memory", "pids")
_OWN = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")
_MARKS = ("user.delegate", "trusted.delegate")
_LEAF = "wgcell"
_PREFIX = "wgcell-"
_LEFT_BEHIND = 3600.0
"""Seconds after which an empty group of a cell that was killed is swept away."""
_EMPTY_WITHIN = 10.0
"""Seconds until a group is empty whose processes were killed; it takes some milliseconds."""

_OVERHEAD = 1536 << 20
"""Bytes of QEMU's own beside the guest's memory: TCG's translations alone may take 1 GiB."""
_PERIOD = 100_000
"""Microseconds."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one cell's QEMU may take: a guest of ``memory`` bytes and ``cpus``."""

    memory: int
    cpus: int
    processes: int = 128

    def files(self) -> Mapping[str, Mapping[str, str]]:
        """The contents of the group's files, by controller."""
        # Half a CPU more than the guest's: disks, network and monitor have threads of their own.
        quota = self.cpus * _PERIOD + _PERIOD // 2
        return {
            "cpu": {"cpu.max": f"{quota} {_PERIOD}"},
            "memory": {"memory.max": str(self.memory + _OVERHEAD), "memory.oom.group": "1"},
            "pids": {"pids.max": str(self.processes)},
        }


@dataclass(frozen=True, slots=True)
class Parent:
    """A group in which groups can be made.

    ``aside``: this process must leave it first, for a leaf of it.
    """

    folder: Path
    aside: bool
    controllers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cell's group; ``procs`` is a descriptor that moves a process that writes ``0`` to it."""

    folder: Path
    procs: int
    controllers: tuple[str, ...]

    def remove(self) -> None:
        """Kill the processes that are left in it, and remove the group. Raises OSError if it
        stays."""
        with contextlib.suppress(OSError):
            (self.folder / "cgroup.kill").write_text("1")
        with contextlib.suppress(OSError):
            os.close(self.procs)
        until = time.monotonic() + _EMPTY_WITHIN
        while True:
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.005)
            else:
                return


def find(own: str | None = None, mounts: str | None = None) -> Parent | str:
    """The group in which this process may make groups, or why there is none.

    ``own`` and ``mounts`` are the texts of /proc/self/cgroup and mountinfo unless given.
    """
    try:
        own = _OWN.read_text() if own is None else own
        mounts = _MOUNTS.read_text() if mounts is None else mounts
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::/")), None)
    root = _mounted(mounts)
    if path is None or root is None:
        return "this system has no cgroup v2"
    ours = root / path.lstrip("/")
    if path != "/" and _delegated(ours.parent):
        enabled = _words(ours.parent / "cgroup.subtree_control")
        if enabled:
            return Parent(ours.parent, False, enabled)
    if not _delegated(ours):
        return "no cgroup is delegated to us"
    available = _words(ours / "cgroup.controllers")
    if not available:
        return f"{ours} is delegated without cpu, memory or pids"
    if _pids(ours) - {os.getpid()}:
        return f"{ours} is delegated, and others are in it beside us"
    return Parent(ours, True, available)


def make(parent: Parent, name: str, bounds: Bounds) -> Cgroup:
    """A group for the cell ``name``. Raises OSError; what was made is gone again then."""
    _sweep(parent.folder)
    if parent.aside:
        leaf = parent.folder / _LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
        for controller in parent.controllers:
            (parent.folder / "cgroup.subtree_control").write_text(f"+{controller}")
    folder = parent.folder / f"{_PREFIX}{name}"
    folder.mkdir()
    try:
        for controller in parent.controllers:
            for file, value in bounds.files()[controller].items():
                (folder / file).write_text(value)
        procs = os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        folder.rmdir()
        raise
    return Cgroup(folder, procs, parent.controllers)


def _mounted(mounts: str) -> Path | None:
    """The mount point of cgroup2, from mountinfo (proc_pid_mountinfo(5))."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            return Path(before.split(" ")[4])
    return None


def _delegated(folder: Path) -> bool:
    asked = (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    if not all(os.access(path, os.W_OK) for path in asked):
        return False
    if os.geteuid() != 0:
        return True
    for mark in _MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, mark) == b"1":
                return True
    return False


def _words(file: Path) -> tuple[str, ...]:
    """The wanted controllers that a file names."""
    with contextlib.suppress(OSError):
        named = file.read_text().split()
        return tuple(controller for controller in CONTROLLERS if controller in named)
    return ()


def _pids(folder: Path) -> set[int]:
    return {int(word) for word in (folder / "cgroup.procs").read_text().split()}


def _sweep(folder: Path) -> None:
    """Groups of cells whose supervisor was killed: empty for an hour."""
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND:
                left.rmdir()
