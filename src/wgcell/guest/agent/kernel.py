"""Linux's system calls that Python 3.11's `os` lacks, on x86-64.

By `_ctypes` alone: `ctypes`, which is built on it, takes an emulated guest 40 ms to load.
"""

from __future__ import annotations

import _struct as struct
import os
import time
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, dlopen, dlsym, get_errno

__all__ = [
    "BIND",
    "LIVELY",
    "NEWIPC",
    "NEWNET",
    "NEWNS",
    "NEWPID",
    "NEWUTS",
    "READ_ONLY",
    "bring_clock_to",
    "correction",
    "hide_memory",
    "keep_capabilities",
    "mount",
    "move_to_root",
    "privately",
    "setns",
    "unmount",
    "unshare",
]

# <linux/mount.h>
READ_ONLY, BIND = 0x1, 0x1000
_MOVE, _REC, _PRIVATE = 0x2000, 0x4000, 0x40000
LIVELY = 0x2 | 0x4 | 0x8
"""No setuid, no devices, no programs: how a file system of the kernel's own is mounted."""
# <linux/sched.h>
NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
# <linux/prctl.h>, <linux/capability.h>
_SET_DUMPABLE, _CAPBSET_DROP = 4, 24
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64
_EINVAL = 22
# <linux/timex.h>: slow down or speed up until the offset is made good.
_SINGLESHOT = 0x8001


class _Function(CFuncPtr):
    """A function of the C library that sets errno. Its integers are C's int."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO


_LIBRARY = dlopen("libc.so.6", os.RTLD_NOW)


def _call(name: str, *words: int | bytes | None) -> None:
    """Call the C library's function ``name``. Raises OSError."""
    function = _Function(dlsym(_LIBRARY, name))
    if function(*words) < 0:
        code = get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    try:
        _call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {source} on {target}") from None


def unmount(target: str) -> None:
    """umount(2)."""
    _call("umount", target.encode())


def privately() -> None:
    """Nothing that is mounted from here on, or taken away, is so elsewhere."""
    mount("none", "/", flags=_REC | _PRIVATE)


def move_to_root() -> None:
    """Move the mount that is the working folder over the root."""
    mount(".", "/", flags=_MOVE)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _call("unshare", flags)


def setns(namespace: int, kind: int) -> None:
    """setns(2): enter the namespace behind a descriptor."""
    _call("setns", namespace, kind)


def hide_memory() -> None:
    """Nobody but root of the first user namespace, with its capability to trace, reads or traces
    this process, until it executes a program. A fork's memory is the agent's: it holds keys.
    """
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)


def keep_capabilities(kept: frozenset[int]) -> None:
    """Lose every other capability, for good: root that this process executes has no more either."""
    for number in range(_MOST_CAPABILITIES):
        if number not in kept:
            try:
                _call("prctl", _CAPBSET_DROP, number, 0, 0, 0)
            except OSError as error:
                if error.errno == _EINVAL:  # the kernel has no more of them
                    break
                raise
    low = sum(1 << number for number in kept)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable: the lower half of each, then the upper.
    _call("capset", header, struct.pack("<6I", low, low, 0, 0, 0, 0))


_MOST_BEHIND = 0.5
"""Seconds. A line takes some ten milliseconds to come through, and a busy guest longer to read."""


def correction(host: float, here: float) -> str:
    """The way that brings this clock to the host's: ``set``, ``slow`` or none.

    The clock is set forward only, never back: a WireGuard peer refuses an initiation that is not
    newer than the last of the same key (whitepaper, 5.1), and this clock dates it. A clock that is
    ahead goes 500 parts in a million slower until both agree (adjtime), so it still grows. Timers
    and CLOCK_MONOTONIC don't see a clock that is set.
    """
    if host - here > _MOST_BEHIND:
        return "set"
    return "slow" if here - host > _MOST_BEHIND else ""


def bring_clock_to(host: float) -> None:
    """Bring this clock to the host's: Unix time, in seconds."""
    here = time.time()
    match correction(host, here):
        case "set":
            time.clock_settime(time.CLOCK_REALTIME, host)
        case "slow":
            # struct timex: modes, offset in microseconds, and 192 bytes that are the kernel's to
            # fill. adjtime(3) would refuse more than 2145 seconds.
            offset = int((host - here) * 1e6)
            _call("adjtimex", struct.pack("<Iiq192x", _SINGLESHOT, 0, offset))
