"""A running QEMU: started, spoken to over QMP, frozen or killed.

It is killed by pidfd, so a recycled pid can never be hit, and it is told by the kernel to die with
its parent: a supervisor that is gone leaves no machine behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from wgcell.errors import LaunchError
from wgcell.machine.argv import Accelerator, MachineSpec, qemu_argv
from wgcell.machine.cgroup import Cgroup
from wgcell.machine.jail import Jail, bwrap_argv, closed_filter, limits

__all__ = ["Machine", "die_with_parent", "find_qemu"]

_PR_SET_PDEATHSIG = 1
_DIES_WITHIN = 0.02
"""Seconds that a machine takes to die of SIGKILL, and more."""
_STOPS_WITHIN = 0.2
"""Seconds that a process takes to stop, and more."""
KVM_DEVICE = Path("/dev/kvm")
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child runs before exec: SIGKILL when ``parent`` dies, even if it is dead already."""

    def arm() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


def find_qemu() -> str:
    """QEMU's path. Raises LaunchError that names the mend."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise LaunchError(
            "qemu-system-x86_64 is not installed",
            mend="apt-get install qemu-system-x86 (wgcell doctor lists what is missing)",
        )
    return str(Path(path).resolve())


def _before_qemu(
    jail: Jail, memory: int, disk: int, parent: int, cgroup: Cgroup | None
) -> Callable[[], None]:
    """What QEMU's process does before exec: bounds, an unprivileged user, death with us."""
    bounds = limits(memory, disk)
    armed = die_with_parent(parent)

    def arm() -> None:
        if cgroup is not None:
            os.write(cgroup.procs, b"0")
        for limit, value in bounds:
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        if jail.user is not None:
            os.setgroups(jail.groups)
            os.setresgid(jail.user, jail.user, jail.user)
            os.setresuid(jail.user, jail.user, jail.user)
        armed()

    return arm


def _kill_starting(pid: int) -> None:
    """Kill a jail's first process and its child, which outlives it until it has asked the kernel
    to die with it, shortly before it becomes QEMU."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + _STOPS_WITHIN
        while _state(pid) not in "TZX" and time.monotonic() < end:
            time.sleep(0.0005)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            os.kill(one, signal.SIGKILL)


def _state(pid: int) -> str:
    """One letter; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Machine:
    """One QEMU process. ``stderr`` is a pipe for the caller to drain."""

    def __init__(
        self, process: asyncio.subprocess.Process, inner: int, qmp_socket: socket.socket
    ) -> None:
        self.process = process
        self.pid = inner
        """QEMU's own, seen from here; ``process`` may be the jail's first process."""
        self._pidfds = [os.pidfd_open(pid) for pid in dict.fromkeys((inner, process.pid))]
        self._qmp_socket = qmp_socket
        self._qmp = QMPClient("wgcell")

    @classmethod
    async def start(
        cls,
        spec: MachineSpec,
        qmp_socket: socket.socket,
        jail: Jail,
        disk: int,
        cgroup: Cgroup | None = None,
    ) -> Machine:
        """Start QEMU for ``spec``, its processor stopped; ``qmp_socket`` is our end of its monitor.

        ``disk`` is the most bytes any file it writes may have; ``cgroup`` is where it lives, the
        caller's to remove. Raises LaunchError, with QEMU's own words, if it can't be started.
        """
        argv = qemu_argv(spec)
        inherited = list(spec.fds)
        info, told = os.pipe()
        ours = [told]
        try:
            if jail.bwrap is not None:
                device = KVM_DEVICE if spec.accelerator is Accelerator.KVM else None
                ours.append(closed_filter())
                inherited += ours
                argv = bwrap_argv(jail, argv, filter_fd=ours[1], info_fd=told, device=device)
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=inherited,
                cwd="/",
                start_new_session=True,
                preexec_fn=_before_qemu(jail, spec.memory << 20, disk, os.getpid(), cgroup),
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(info)
            raise LaunchError(f"QEMU did not start: {error}", argv=argv) from error
        finally:
            for fd in ours:
                os.close(fd)
        with os.fdopen(info, "rb") as file:
            try:
                said = await asyncio.to_thread(file.read)
            except BaseException:
                # Cancelled half way: nobody else knows of it. Dead before the file is closed, for
                # the thread that reads it holds its lock until then.
                _kill_starting(process.pid)
                await process.wait()
                raise
        if jail.bwrap is None:
            return cls(process, process.pid, qmp_socket)
        try:
            return cls(process, int(json.loads(said)["child-pid"]), qmp_socket)
        except (ValueError, KeyError, TypeError):
            code = await process.wait()
            output = (await process.stderr.read(4096)).decode() if process.stderr else ""
            raise LaunchError(
                "the jail did not start", argv=argv, exit_code=code, output=output
            ) from None

    async def connect_monitor(self) -> None:
        """Speak QMP, and make sure that the machine has the one network card we gave it.

        No instruction of the guest's has run yet. Raises LaunchError if QEMU has any other network
        backend.
        """
        try:
            await asyncio.wait_for(self._qmp.connect(self._qmp_socket), 20)
            seen = await self._qmp.execute(
                "human-monitor-command", {"command-line": "info network"}
            )
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise LaunchError(f"QEMU's monitor did not answer: {error}") from error
        backends = [line for line in str(seen).splitlines() if "index=" in line and "type=" in line]
        if len(backends) != 2 or not any("type=stream" in line for line in backends):
            raise LaunchError("QEMU has network backends that were not asked for", output=str(seen))

    async def go(self) -> None:
        """Let the guest's first instruction run. Raises LaunchError if QEMU does not answer."""
        try:
            await asyncio.wait_for(self._qmp.execute("cont"), 20)
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise LaunchError(f"QEMU's monitor did not answer: {error}") from error

    async def freeze(self) -> bool:
        """Stop the virtual CPUs, keep the memory. False if QEMU does not answer."""
        try:
            await asyncio.wait_for(self._qmp.execute("stop"), 5)
        except (QMPError, OSError, EOFError, TimeoutError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, at once; harmless if it is dead already."""
        for pidfd in self._pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    async def dead(self) -> None:
        """Wait until it is dead, jail and all: the jail's first process goes before QEMU has."""
        for pidfd in self._pidfds:
            # Readable when its process is dead, a few milliseconds after the kill: no thread for
            # that at once, nor asyncio's word, which waits for all that QEMU had open.
            if not select.select([pidfd], [], [], _DIES_WITHIN)[0]:
                await asyncio.to_thread(select.select, [pidfd], [], [], 5)

    async def reap(self) -> int:
        """Wait until it is dead, and let go of it; the exit code (negative: a signal)."""
        await self.dead()
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()
        return await self.process.wait()

    async def hang_up(self) -> None:
        """Close the monitor, once the machine is dead."""
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.CancelledError):
            await self._qmp.disconnect()
