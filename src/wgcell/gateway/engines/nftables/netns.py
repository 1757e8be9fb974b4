"""A private network namespace of this process, without root: two threads live in it, no others.

A user namespace (user_namespaces(7)) makes this process root over what it makes from then on, and
over nothing older. A network namespace belongs to a thread. The threads in it make interfaces,
firewalls and sockets that nothing of the machine reaches, and that reach nothing of the machine. A
socket stays in the namespace where it was made, whichever thread uses it.
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
from wgcell.net import linux

__all__ = ["PrivateNetns"]

_USERNS_HINT = "allow unprivileged user namespaces, or take the embedded engine"

P = ParamSpec("P")
T = TypeVar("T")


class PrivateNetns:
    """The namespace and its threads. They end with the process, and so does what they started.

    It must be made before the process has a second thread: unshare(2) makes no user namespace
    otherwise. Raises HostError where the kernel or its settings allow none.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        self._check("a user namespace", self._libc.unshare(linux.CLONE_NEWUSER))
        try:
            # A group may be mapped only after setgroups(2) was given up.
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                Path("/proc/self", name).write_text(text)
        except OSError as error:
            raise HostError(f"no user namespace: {error}", hint=_USERNS_HINT) from error
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.run(self._enter)
        # A new thread is in the namespace of the thread that starts it.
        self._second = self.run(_started_pool)

    def _enter(self) -> None:
        self._check(
            "a network namespace", self._libc.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWNS)
        )
        # wireguard-go and wg meet in /run/wireguard, which belongs to root and is one for all
        # namespaces.
        self._check("a /run of its own", self._libc.mount(b"wgcell", b"/run", b"tmpfs", 0, b""))
        Path("/run/wireguard").mkdir()

    def _check(self, what: str, failed: int) -> None:
        if failed:
            why = os.strerror(ctypes.get_errno())
            raise HostError(f"this process can't have {what}: {why}", hint=_USERNS_HINT)

    def run(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``work``, done in the namespace. Raises what ``work`` raises."""
        return self._thread.submit(work, *args, **options).result()

    async def run_aside(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The same in the second thread: it blocks neither this thread nor `run`."""
        return await asyncio.wrap_future(self._second.submit(work, *args, **options))


def _started_pool() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(max_workers=1)
    pool.submit(int).result()
    return pool
