"""How a child dies with its parent, whatever it does meanwhile.

The kernel sends a child a signal when its parent dies, if the child has asked for it (prctl(2),
PR_SET_PDEATHSIG). One that starts children of its own before they ask for theirs leaves them
behind. The *keeper* of a process closes that: it makes it the first of a pid namespace, and the
kernel ends a namespace whole with its first process (pid_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

from wgcell import programs

__all__ = ["die_with_parent", "keeper"]

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a child runs before exec: SIGKILL when ``parent`` dies, even if it is dead already."""

    def arm() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


def keeper(*, root: bool) -> tuple[str, ...]:
    """The command before another, which then is the first process of a pid namespace.

    util-linux's ``unshare``: it waits outside, dies of what kills its child, and takes it along
    when it is killed itself. It holds open what it inherits until then. ``root``: whether the one
    who runs it is root; who is not makes a user namespace first, and is root in that.
    """
    right = () if root else ("--user", "--map-root-user")
    return (programs.path_of("unshare"), *right, "--pid", "--fork", "--kill-child", "--")
