"""The results of a workload: why the kernel killed it, and its outputs, for the host to judge."""

from __future__ import annotations

import os
from binascii import b2a_base64

try:
    from _sha2 import sha256  # type: ignore[import-not-found]  # Python 3.12 and later
except ImportError:
    from _sha256 import sha256  # type: ignore[import-not-found]

from wgcell.guest import protocol
from wgcell.guest.agent import kernel, tools
from wgcell.guest.agent.root import ROOT
from wgcell.guest.agent.streams import Stream

__all__ = ["Outputs", "kills", "victim"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.agent.loop import Loop


def kills(vmstat: str) -> int:
    """How many processes the kernel killed for want of memory, from /proc/vmstat."""
    for line in vmstat.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def victim(log: str) -> str:
    """The name of the last one, from the kernel's log."""
    last = log.rpartition("Killed process ")[2]
    return last.partition("(")[2].partition(") total-vm")[0] if last != log else ""


class Outputs:
    """A tar of the outputs, on its way. The workload is dead: nothing changes them any more.

    busybox's tar makes it, within the workload's root, of which nothing is executed: busybox and
    the script are the initramfs's, bound over its /run.
    """

    def __init__(self, loop: Loop, paths: tuple[str, ...], run: int, port: int) -> None:
        # By a descriptor of the folder: whatever the workload made of its name, it is not followed.
        kernel.mount("/bin", f"/proc/self/fd/{run}", flags=kernel.BIND)
        named = [b2a_base64(path.encode("utf-8", "surrogateescape")) for path in paths]
        # What it could not list, tar can't read either, and tar's exit code is the host's to judge.
        tools.code(*_collect("list"), given=b"".join(named).decode("ascii"))
        reading, writing = os.pipe()
        self._digest = sha256()
        self._tar = tools.start(_collect("tar"), stdout=writing)
        os.close(writing)
        self._stream = Stream(loop, reading, port, self._digest.update)

    @property
    def sent(self) -> bool:
        """Whether the port has taken all of it."""
        return self._stream.ended

    def statement(self) -> protocol.Outputs:
        """The statement about the outputs, once they are sent."""
        status = tools.ended(self._tar)
        return protocol.Outputs(self._stream.count, status, self._digest.hexdigest())


def _collect(what: str) -> tuple[str, ...]:
    return ("chroot", ROOT, "/run/busybox", "sh", "/run/collect", what)
