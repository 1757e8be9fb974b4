"""Where the workload and all sessions run: the root, the namespaces, and forks of the agent there.

With the wall "privileges", a pid namespace whose init is a fork of the agent: it made the other
namespaces and waits. Each program is then a child of the agent that enters them by descriptors
which are older than anything of the workload's. Init's end is all the others' end, and Linux
lets init end once the agent has reaped its own children there.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from wgcell.errors import GuestError
from wgcell.guest.agent import execution, kernel

__all__ = ["CAPABILITIES", "Confined", "Enclosure", "Unconfined"]

# docker's list, without NET_RAW, MKNOD and AUDIT_WRITE: chown, dac_override, fowner, fsetid, kill,
# setgid, setuid, setpcap, net_bind_service, sys_chroot, setfcap (<linux/capability.h>).
CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31})
_TMP = "/tmp"
# What root may write in /proc without a capability, though it reaches beyond its namespaces: a
# helper that the kernel starts (core_pattern, modprobe), a card's settings, the machine's end.
_READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus")
_OTHERS = {"uts": kernel.NEWUTS, "ipc": kernel.NEWIPC, "mnt": kernel.NEWNS}
"""The namespaces of which a fork enters each; the last is where paths lead elsewhere."""
_STANDS = b"\n"
_SAY = 3
"""The descriptor by which init says that its namespaces stand."""
_LONGEST = 4096
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.execution import Program

    Streams = tuple[int, int, int]
    """Standard input, output and error, as descriptors of the agent's."""
    Inside = Callable[[Callable[[], int]], int]
    """Does something in the workload's network namespace; a child that is forked stays there."""


class Unconfined:
    """The root alone: programs have all of root's privileges, in the agent's own namespaces."""

    init: int | None = None
    """The process id of the init whose end is that of all others, if there is one."""

    def __init__(self, root: str, inside: Inside) -> None:
        for name in ("proc", "sys"):
            kernel.mount(f"/{name}", f"{root}/{name}", flags=kernel.BIND)
        self._root, self._inside = root, inside
        self.terminals = os.open(f"{root}/dev/pts", os.O_PATH | os.O_DIRECTORY)
        """The root's devpts."""

    def start(self, program: Program, streams: Streams) -> int:
        """The process id of a child that becomes ``program``. Raises OSError."""
        return self._inside(lambda: execution.forked(lambda: self._enter(program, streams)))

    def _enter(self, program: Program, streams: Streams) -> None:
        execution.take(streams)
        os.chdir(self._root)
        execution.become(program, None)


class Confined:
    """Few capabilities, and pid, mount, UTS and IPC namespaces of its own. As `Unconfined`."""

    def __init__(self, root: str, inside: Inside) -> None:
        self._inside = inside
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.init: int | None = _init(root, self._own, inside)
        own = f"/proc/{self.init}"
        self._pids = os.open(f"{own}/ns/pid", os.O_RDONLY)
        self._others = [
            (os.open(f"{own}/ns/{name}", os.O_RDONLY), kind) for name, kind in _OTHERS.items()
        ]
        # By way of init, so that a terminal's name is the one that it has in that namespace.
        self.terminals = os.open(f"{own}/cwd/dev/pts", os.O_PATH | os.O_DIRECTORY)

    def start(self, program: Program, streams: Streams) -> int:
        """The process id of a child that becomes ``program``. Raises OSError."""
        kernel.setns(self._pids, kernel.NEWPID)
        try:
            return self._inside(lambda: execution.forked(lambda: self._enter(program, streams)))
        finally:
            kernel.setns(self._own, kernel.NEWPID)

    def _enter(self, program: Program, streams: Streams) -> None:
        execution.take(streams)
        for namespace, kind in self._others:
            kernel.setns(namespace, kind)
        execution.become(program, CAPABILITIES)


Enclosure = Unconfined | Confined


def _init(root: str, own: int, inside: Inside) -> int:
    """The process id of an init whose namespaces stand. Raises GuestError."""
    reading, writing = os.pipe()
    kernel.unshare(kernel.NEWPID)
    try:
        pid = inside(lambda: execution.forked(lambda: _be_init(root, writing)))
    finally:
        kernel.setns(own, kernel.NEWPID)
        os.close(writing)
    said = os.read(reading, _LONGEST)
    os.close(reading)
    if said != _STANDS:
        os.waitpid(pid, 0)
        reason = said.decode("utf-8", "backslashreplace")
        raise GuestError(f"the workload's namespaces could not be made: {reason}")
    return pid


def _be_init(root: str, say: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    execution.take((null, null, null))
    os.dup2(say, _SAY)
    os.closerange(_SAY + 1, os.sysconf("SC_OPEN_MAX"))
    try:
        _make_namespaces(root)
    except OSError as error:
        os.write(_SAY, str(error).encode("utf-8", "backslashreplace")[:_LONGEST])
        return
    # Orphans are nobody's to wait for, and no signal is of any concern to it but SIGKILL.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    os.write(_SAY, _STANDS)
    os.close(_SAY)
    while True:
        _signal.pause()


def _make_namespaces(root: str) -> None:
    kernel.unshare(kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC)
    kernel.privately()
    proc, sys = f"{root}/proc", f"{root}/sys"
    kernel.mount("proc", proc, "proc", kernel.LIVELY)
    kernel.mount("sys", sys, "sysfs", kernel.LIVELY | kernel.READ_ONLY)
    # A proc of its own, read-only, from which the places come.
    kernel.mount("proc", _TMP, "proc", kernel.LIVELY | kernel.READ_ONLY)
    for place in _READ_ONLY_PROC:
        if os.path.exists(f"{_TMP}/{place}"):  # a kernel may be without one
            kernel.mount(f"{_TMP}/{place}", f"{proc}/{place}", flags=kernel.BIND)
    # Below the new root nothing of the initramfs can be reached any more. And nothing of its proc
    # and sysfs may be left in this namespace: whoever sees one in full, under whatever, may mount
    # another in a user namespace of his own.
    for place in (_TMP, "/proc", "/sys"):
        kernel.unmount(place)
    os.chdir(root)
    kernel.move_to_root()
