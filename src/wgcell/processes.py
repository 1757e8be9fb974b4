"""How a child process dies with its parent, whatever the child does meanwhile.

The kernel sends a child a signal when its parent dies, if the child has asked for that signal
(prctl(2), PR_SET_PDEATHSIG). A child that starts its own children before they have asked leaves
them behind. A *namespace holder* closes that gap: the process after it is the first of a pid
namespace, and the kernel ends a whole namespace with its first process (pid_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

from wgcell import programs
from wgcell.net.linux import PR_SET_PDEATHSIG

__all__ = ["die_with_parent", "namespace_holder"]

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> Callable[[], None]:
    """A child's first step before exec: SIGKILL when ``parent`` dies, even if it is dead
    already."""

    def arm() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


def namespace_holder(*, root: bool) -> tuple[str, ...]:
    """The command before another command, which then is the first process of a pid namespace.

    This is util-linux's ``unshare``. It waits outside, dies of the signal that kills its child,
    and takes the child along when it is killed itself. Until then it holds open whatever it
    inherits. ``root`` says whether the caller is root; any other user makes a user namespace first
    and is root in that.
    """
    right = () if root else ("--user", "--map-root-user")
    return (programs.path_of("unshare"), *right, "--pid", "--fork", "--kill-child", "--")
