"""A network namespace of this process's own, without root: two threads live in it, the rest do not.

A user namespace (user_namespaces(7)) makes this process root over what it makes from then on, and
over nothing that was there before. A network namespace belongs to a thread: those in here make
interfaces, firewalls and sockets that nothing of the machine's reaches, and nothing there reaches
the machine. A socket stays in the namespace where it was made, whichever thread uses it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from wgcell.errors import HostError

__all__ = ["Apart"]

# linux/sched.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_USERNS_MEND = "allow unprivileged user namespaces, or take the embedded engine"

P = ParamSpec("P")
T = TypeVar("T")


class Apart:
    """The namespace and its threads; they end with the process, and what was started there with it.

    Must be made before the process has a second thread. Raises HostError where it can't be.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        self._ask("a user namespace", self._libc.unshare(_CLONE_NEWUSER))
        try:
            # A group is mapped only by who has given up setgroups(2).
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                Path("/proc/self", name).write_text(text)
        except OSError as error:
            raise HostError(f"no user namespace: {error}", mend=_USERNS_MEND) from error
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.do(self._leave)
        # A thread is in the namespace of the one that starts it.
        self._second = self.do(_started_pool)

    def _leave(self) -> None:
        self._ask("a network namespace", self._libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS))
        # wireguard-go and wg meet in /run/wireguard, which is root's, and one for all namespaces.
        self._ask("a /run of its own", self._libc.mount(b"wgcell", b"/run", b"tmpfs", 0, b""))
        Path("/run/wireguard").mkdir()

    def _ask(self, what: str, failed: int) -> None:
        if failed:
            why = os.strerror(ctypes.get_errno())
            raise HostError(f"this process can't have {what}: {why}", mend=_USERNS_MEND)

    def do(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``work``, done in the namespace; its errors are raised here."""
        return self._thread.submit(work, *args, **options).result()

    async def later(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The same without holding up this thread, or `do`."""
        return await asyncio.wrap_future(self._second.submit(work, *args, **options))


def _started_pool() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(max_workers=1)
    pool.submit(int).result()
    return pool
