"""A running QEMU: started, spoken to over QMP, frozen or killed.

It is killed by pidfd, so a recycled pid can never be hit, and it is told by the kernel to die with
its parent: a supervisor that is gone leaves no machine behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
from collections.abc import Callable

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from wgcell.errors import LaunchError
from wgcell.machine.argv import MachineSpec, qemu_argv

__all__ = ["Machine", "die_with_parent", "find_qemu"]

_PR_SET_PDEATHSIG = 1
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
    return path


class Machine:
    """One QEMU process. ``stderr`` is a pipe for the caller to drain."""

    def __init__(self, process: asyncio.subprocess.Process, qmp_socket: socket.socket) -> None:
        self.process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._qmp_socket = qmp_socket
        self._qmp = QMPClient("wgcell")

    @classmethod
    async def start(cls, spec: MachineSpec, qmp_socket: socket.socket) -> Machine:
        """Start QEMU for ``spec``; ``qmp_socket`` is our end of its monitor.

        Raises LaunchError, with QEMU's own words, if it can't be started.
        """
        argv = qemu_argv(spec)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=spec.fds,
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),
            )
        except OSError as error:
            raise LaunchError(f"QEMU did not start: {error}", argv=argv) from error
        return cls(process, qmp_socket)

    async def connect_monitor(self) -> None:
        """Speak QMP, and make sure that the machine has the one network card we gave it.

        Raises LaunchError if QEMU has any other network backend.
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

    async def freeze(self) -> bool:
        """Stop the virtual CPUs, keep the memory. False if QEMU does not answer."""
        try:
            await asyncio.wait_for(self._qmp.execute("stop"), 5)
        except (QMPError, OSError, EOFError, TimeoutError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, at once; harmless if it is dead already."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def reap(self) -> int:
        """Wait for the process's end, close what we hold; the exit code (negative: a signal)."""
        code = await self.process.wait()
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.CancelledError):
            await self._qmp.disconnect()
        with contextlib.suppress(OSError):
            os.close(self._pidfd)
        return code
