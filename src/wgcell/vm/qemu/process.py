"""A running QEMU: started, spoken to over QMP, frozen or killed.

It is killed by pidfd, so that a recycled pid is never hit. The kernel kills it with its parent: a
supervisor that dies leaves no machine behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from wgcell import programs
from wgcell.acquiring import acquired, to_its_end
from wgcell.errors import HostError, LaunchError
from wgcell.processes import die_with_parent, namespace_holder
from wgcell.vm.qemu.argv import QemuSpec, qemu_argv
from wgcell.vm.qemu.boot import BootFiles
from wgcell.vm.sandbox.cgroup import Cgroup
from wgcell.vm.sandbox.jail import CHILDREN, Jail, bwrap_argv, closed_filter, limits
from wgcell.vm.spec import Accelerator

__all__ = ["KVM_DEVICE", "PACKAGE", "QEMU", "QemuMachine", "find_qemu"]

_DIES_WITHIN = 0.02
"""Seconds that a machine takes to die of SIGKILL, and more."""
_DIES_AT_ALL = 20.0
"""Seconds after which one that is not dead hangs in the kernel: in a disk that does not answer."""
KVM_DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
"""Debian's, that has it."""


def find_qemu() -> str:
    """QEMU's path. Raises LaunchError that names the hint."""
    path = programs.find(QEMU)
    if path is None:
        raise LaunchError(
            f"{QEMU} is not installed",
            hint=f"apt-get install {PACKAGE} (wgcell doctor lists what is missing)",
        )
    return str(Path(path).resolve())


def _before_qemu(
    jail: Jail, memory: int, disk: int, parent: int, cgroup: Cgroup | None
) -> Callable[[], None]:
    """The steps of QEMU's process before exec: bounds, an unprivileged user, death with its
    parent."""
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


def _kept(argv: Sequence[str]) -> list[str]:
    """``argv``, bubblewrap's, after a namespace holder and a shell that writes and reads a line.

    bubblewrap's child sets PDEATHSIG only just before it execs QEMU: hence the namespace holder.
    The holder's child sets it at once, but not before its first instruction: hence the shell. If
    the supervisor is dead by then, the shell reads no line and starts nothing.
    """
    shell = ("sh", "-c", 'echo && read -r _ && exec "$@" </dev/null >/dev/null', "sh")
    return [*namespace_holder(root=False), *shell, *argv]


async def _discard_group(process: asyncio.subprocess.Process) -> None:
    """Kill a start that nobody else knows of: its whole process group, for the namespace holder's
    child may not have set PDEATHSIG yet."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.communicate()


def _read_to(last: bytes, info: IO[bytes]) -> None:
    """Read lines up to that one, or until none is to come: to the end would be to the holder's."""
    while (line := info.readline()) and line != last:
        pass


def _jailed(holder: int) -> tuple[int, int]:
    """The ids of QEMU and of bubblewrap, below their namespace holder, as they are here.

    bubblewrap itself reports QEMU's id as the inner namespace has it. Raises OSError or
    ValueError if there is no such line.
    """
    line = [holder]
    for _ in range(2):
        (child,) = Path(CHILDREN.format(line[-1])).read_text().split()
        line.append(int(child))
    return line[2], line[1]


async def _started(
    spec: QemuSpec, jail: Jail, disk: int, cgroup: Cgroup | None
) -> tuple[asyncio.subprocess.Process, Sequence[str]]:
    """QEMU's process, or its jail's once QEMU is in it, and its argv. Raises LaunchError."""
    argv = qemu_argv(spec)
    inherited = list(spec.fds)
    ends = (asyncio.subprocess.DEVNULL, asyncio.subprocess.DEVNULL)
    info, reporting = os.pipe()
    ours = [reporting]
    try:
        if jail.bwrap is not None:
            device = KVM_DEVICE if spec.accelerator is Accelerator.KVM else None
            ours.append(closed_filter())
            inherited += ours
            argv = bwrap_argv(jail, argv, filter_fd=ours[1], info_fd=reporting, device=device)
            argv, ends = _kept(argv), (asyncio.subprocess.PIPE, reporting)
        starting = asyncio.create_subprocess_exec(
            *argv,
            stdin=ends[0],
            stdout=ends[1],
            stderr=asyncio.subprocess.PIPE,
            pass_fds=inherited,
            cwd="/",
            env=programs.environment(),
            start_new_session=True,
            preexec_fn=_before_qemu(jail, spec.memory << 20, disk, os.getpid(), cgroup),
        )
        process = await acquired(starting, _discard_group)
    except (OSError, subprocess.SubprocessError) as error:
        os.close(info)
        raise LaunchError(f"QEMU did not start: {error}", argv=argv) from error
    except BaseException:
        os.close(info)
        raise
    finally:
        for fd in ours:
            os.close(fd)
    await _release(process, info)
    return process, argv


async def _release(process: asyncio.subprocess.Process, info: int) -> None:
    """Let the shell go on, and wait until its child is there. Closes ``info``."""
    with os.fdopen(info, "rb") as file:
        try:
            await asyncio.to_thread(_read_to, b"\n", file)
            if process.stdin is not None:
                process.stdin.write(b"\n")
                process.stdin.close()
            await asyncio.to_thread(_read_to, b"}\n", file)
        except BaseException:
            # Cancelled half way. The process must be dead before the file is closed: the thread
            # that reads the file holds its lock until then.
            await to_its_end(_discard_group(process))
            raise


class QemuMachine:
    """One QEMU process: a `wgcell.vm.machine.Machine`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        qmp_socket: socket.socket,
        jailed: tuple[int, ...] = (),
        channels: Mapping[str, socket.socket] = MappingProxyType({}),
        boot: BootFiles | None = None,
    ) -> None:
        self.process = process
        self._channels = dict(channels)
        self._boot = boot
        inner = (*jailed, process.pid)
        self.pid = inner[0]
        """QEMU's own, seen from here; with a jail, ``process`` is the jail's namespace holder."""
        self._pidfds = [os.pidfd_open(pid) for pid in inner]
        self._qmp_socket = qmp_socket
        self._qmp = QMPClient("wgcell")

    @classmethod
    async def start(
        cls,
        spec: QemuSpec,
        qmp_socket: socket.socket,
        jail: Jail,
        disk: int,
        cgroup: Cgroup | None = None,
        *,
        channels: Mapping[str, socket.socket] = MappingProxyType({}),
        boot: BootFiles | None = None,
    ) -> QemuMachine:
        """Start QEMU for ``spec``, its processor stopped.

        ``qmp_socket`` is the host's end of its monitor, ``channels`` are those of everything else,
        ``boot`` has its kernel and initramfs. ``disk`` is the most bytes of any file that it
        writes; ``cgroup`` is its cgroup, which the caller removes. Raises LaunchError, with QEMU's
        own words, if it can't be started.
        """
        process, argv = await _started(spec, jail, disk, cgroup)
        if jail.bwrap is None:
            return cls(process, qmp_socket, (), channels, boot)
        try:
            return cls(process, qmp_socket, _jailed(process.pid), channels, boot)
        except (OSError, ValueError) as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = await process.wait()
            output = (await process.stderr.read(4096)).decode() if process.stderr else ""
            raise LaunchError(
                "the jail did not start", argv=argv, exit_code=code, output=output or str(error)
            ) from None

    def take(self, channel: str) -> socket.socket:
        """The host's end of a channel; the caller closes it. Each can be taken once."""
        return self._channels.pop(channel)

    @property
    def diagnostics(self) -> asyncio.StreamReader | None:
        """QEMU's standard error, for the caller to drain."""
        return self.process.stderr

    async def attest(self) -> None:
        """Connect to the monitor, and make sure that the machine has the one network card it was
        given.

        No instruction of the guest has run yet. Raises LaunchError if QEMU has any other network
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
        """Wait until QEMU and its jail are dead. Raises HostError if SIGKILL does not kill them."""
        for pidfd in self._pidfds:
            # Readable when its process is dead, a few milliseconds after the kill: no thread for
            # that at once, nor asyncio's word, which waits for all that QEMU had open.
            if select.select([pidfd], [], [], _DIES_WITHIN)[0]:
                continue
            if not (await asyncio.to_thread(select.select, [pidfd], [], [], _DIES_AT_ALL))[0]:
                raise HostError(f"QEMU did not die of SIGKILL within {_DIES_AT_ALL:g} s")

    async def ended(self) -> int:
        """Wait until the process ends by itself; the exit code (negative: a signal)."""
        return await self.process.wait()

    async def reap(self) -> int:
        """Wait until it is dead, and let go of its processes; the exit code."""
        await self.dead()
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()
        return await self.process.wait()

    def booted(self) -> None:
        """Give back the copies of the kernel and the initramfs."""
        if self._boot is not None:
            self._boot.forget()

    async def close(self) -> None:
        """Close the monitor, the boot files and the channels that nobody took, once it is dead."""
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.CancelledError):
            await self._qmp.disconnect()
        self._qmp_socket.close()
        self.booted()
        for channel in self._channels.values():
            channel.close()
