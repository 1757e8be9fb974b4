"""The seal: after it, this process can read and write three descriptors, and nothing else.

The supervisor has resolved, vetted and connected the UDP socket, and all code is loaded and warm.
Then, in this order, because each stage needs a right that a later one takes away:

1. *user*        started by root, it becomes an unprivileged user that owns no file;
2. *namespaces*  own user, mount, pid, ipc, uts and network namespace. The network is empty: an
                 inherited socket keeps the namespace it was born in, a new one reaches nothing.
                 A pid namespace begins with a child, so the relay has been started as the first
                 process of one, by its *namespace holder*, which waits outside and takes it along;
3. *root*        an empty, read-only tmpfs is the whole file system;
4. *limits*      no core, no file, no process, no more descriptors, memory bounded;
5. *rights*      no capability, no_new_privs, not dumpable (no ptrace, no pidfd_getfd by a sibling);
6. *landlock*    no file and no TCP, where the kernel has it: on top, never the wall;
7. *seccomp*     the list of system calls below, arguments pinned; anything else kills.

A connected UDP socket alone seals nothing: ``sendto`` and ``sendmsg`` with an address override the
peer. So ``sendmsg`` is not on the list, and ``sendto`` passes with a null address only.

What could not be built here is said in ``Seal.missing`` and never passed over in silence.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field

from wgcell.net import linux

__all__ = ["RULES", "STAGES", "Descriptors", "Seal", "load", "seal", "unprivileged_id"]

STAGES = ("user", "namespaces", "root", "limits", "rights", "landlock", "seccomp")

_NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWNET
)

_SOL_UDP = 17
_MEMORY_ABOVE = 128 << 20
"""Bytes of address space beyond those that are mapped when the seal closes."""

_NOBODY = 65534
_FIRST_ID = 0x70000000
"""The first id that no user has: each cell of root's has one of its own."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The relay's three descriptors, by number, and the kill switch, which it can only close."""

    nic: int
    udp: int
    control: int
    kill_switch: int = -1


@dataclass(slots=True)
class Seal:
    """The stages that stand, and why the others don't."""

    missing: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether the wall stands; Landlock is an extra that an older kernel lacks."""
        return not set(self.missing) - {"landlock"}


# A system call, and which argument must equal what: a number, or the name of a descriptor. Of one
# call each line allows a case of its own. Python's loop needs no more than this.
RULES: tuple[tuple[str, dict[int, int | str]], ...] = (
    ("recvfrom", {0: "nic"}),
    ("recvfrom", {0: "control"}),
    ("recvmsg", {0: "control"}),  # a fresh socket for a changed network comes here, and only here
    ("recvmmsg", {0: "udp"}),
    ("sendto", {0: "udp", 4: 0}),
    ("sendto", {0: "control", 4: 0}),
    ("writev", {0: "udp"}),
    ("writev", {0: "nic"}),
    ("setsockopt", {0: "udp", 1: _SOL_UDP, 2: linux.UDP_SEGMENT}),
    ("setsockopt", {0: "udp", 1: _SOL_UDP, 2: linux.UDP_GRO}),
    ("setsockopt", {0: "udp", 1: socket.SOL_SOCKET, 2: socket.SO_SNDTIMEO}),
    ("setsockopt", {0: "udp", 1: socket.SOL_SOCKET, 2: socket.SO_RCVBUF}),
    ("dup3", {1: "udp"}),  # the fresh socket takes the old one's number
    *(
        (name, {})
        for name in (
            *("poll", "close", "clock_gettime", "gettimeofday"),
            *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield"),
            *("exit", "exit_group", "rt_sigreturn", "restart_syscall"),
        )
    ),
)
_NEVER_EXECUTABLE = ("mmap", "mprotect")


def unprivileged_id(tag: str) -> int | None:
    """The user that root becomes: one that owns no file here, from a cell's six hexadecimal digits.

    None if there is no other user to become: this process is not root, or it is the root of a user
    namespace that holds nobody else, and so already an ordinary user of the host's.
    """
    if os.geteuid() != 0:
        return None
    try:
        wanted = _FIRST_ID + int(tag[-6:], 16)
    except ValueError:
        wanted = _NOBODY
    lines = (tuple(map(int, line.split())) for line in _proc("uid_map").splitlines())
    mapped = [(inside, inside + count) for inside, _, count in lines]
    for candidate in (wanted, _NOBODY):
        if any(first <= candidate < end for first, end in mapped):
            return candidate
    return None


def load() -> None:
    """Load what the last stage needs, while there are files."""
    # pyseccomp finds its libraries by a module that loads a dozen others, for good, and starts
    # ldconfig. The loader knows their names.
    lookup = types.ModuleType("ctypes.util")
    vars(lookup)["find_library"] = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}.get
    sys.modules["ctypes.util"] = vars(ctypes)["util"] = lookup
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        import pyseccomp  # noqa: F401


def seal(owned: Descriptors, tag: str = "") -> Seal:
    """Seal this process, with the descriptors ``owned``. ``tag`` is the cell's id.

    Raises nothing for a stage that can't be built here: it is in the result's ``missing``, and the
    stages after it are built all the same.
    """
    done = Seal()
    stages: tuple[tuple[str, Callable[[], None]], ...] = (
        ("user", lambda: _become_nobody(tag)),
        ("namespaces", _enter_namespaces),
        ("root", _empty_root),
        ("limits", lambda: _limit(owned)),
        ("rights", _give_up_rights),
        ("landlock", _landlock),
        ("seccomp", lambda: _filter(owned)),
    )
    for stage, build in stages:
        if stage == "root" and "namespaces" in done.missing:
            done.missing[stage] = "needs a namespace of its own"
            continue
        try:
            build()
        except (OSError, ImportError, RuntimeError) as error:
            done.missing[stage] = str(error) or type(error).__name__
    return done


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def _proc(name: str, text: str | None = None) -> str:
    """Read this process's file in /proc, or write ``text`` to it; pathlib would stay loaded."""
    descriptor = os.open(f"/proc/self/{name}", os.O_RDONLY if text is None else os.O_WRONLY)
    try:
        if text is None:
            return os.read(descriptor, 1 << 16).decode()
        os.write(descriptor, text.encode())
        return text
    finally:
        os.close(descriptor)


def _become_nobody(tag: str) -> None:
    chosen = unprivileged_id(tag)
    if chosen is None:
        return
    os.setgroups([])
    os.setresgid(chosen, chosen, chosen)
    os.setresuid(chosen, chosen, chosen)
    # Changing the user has made us undumpable, and /proc/self root's; the maps are still to come.
    _prctl(linux.PR_SET_DUMPABLE, 1)
    _prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # which the change has cleared


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NAMESPACES), "unshare")
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        _proc(file, text)
    if os.getpid() != 1:
        raise OSError("it is not the first process of a pid namespace: unshare(1) made none")


def _empty_root() -> None:
    number = linux.PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root has no number here for {platform.machine()}")
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    place, nothing = b"/proc", ctypes.c_void_p()
    _check(_libc.mount(b"none", b"/", nothing, linux.MS_REC | linux.MS_PRIVATE, nothing), "mount /")
    _check(_libc.mount(b"tmpfs", place, b"tmpfs", flags, b"size=4k,mode=555"), "mount tmpfs")
    os.chdir(place)
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", linux.MNT_DETACH), "umount the old root")
    os.chdir("/")
    remount = linux.MS_REMOUNT | linux.MS_RDONLY | flags
    _check(_libc.mount(b"tmpfs", b"/", nothing, remount, nothing), "remount")


def _limit(owned: Descriptors) -> None:
    # One descriptor more than the highest: a fresh socket has to arrive somewhere.
    descriptors = max(owned.nic, owned.udp, owned.control, owned.kill_switch) + 2
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, descriptors),
        (resource.RLIMIT_AS, _MAPPED + _MEMORY_ABOVE),
    ):
        resource.setrlimit(limit, (value, value))


def _mapped() -> int:
    return int(_proc("statm").split()[0]) * resource.getpagesize()


_MAPPED = _mapped()


def _give_up_rights() -> None:
    header = struct.pack("Ii", linux.CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")
    _prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    _prctl(linux.PR_SET_DUMPABLE, 0)


def _landlock() -> None:
    """Handle every right that this kernel's Landlock knows, and allow none."""
    abi = _check(
        _libc.syscall(linux.LANDLOCK_CREATE_RULESET, None, 0, 1), "landlock is not in this kernel"
    )
    rights = 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)
    attributes = struct.pack("QQ", (1 << rights) - 1, 3 if abi >= 4 else 0)
    size = 16 if abi >= 4 else 8
    ruleset = _check(_libc.syscall(linux.LANDLOCK_CREATE_RULESET, attributes, size, 0), "landlock")
    try:
        _check(_libc.syscall(linux.LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock")
    finally:
        os.close(ruleset)


def _filter(owned: Descriptors) -> None:
    from pyseccomp import ALLOW, EQ, KILL_PROCESS, MASKED_EQ, Arg, Attr, SyscallFilter

    made = SyscallFilter(KILL_PROCESS)
    made.set_attr(Attr.ACT_BADARCH, KILL_PROCESS)
    for name, pinned in RULES:
        arguments = (
            Arg(at, EQ, getattr(owned, value) if isinstance(value, str) else value)
            for at, value in pinned.items()
        )
        made.add_rule(ALLOW, name, *arguments)
    for name in _NEVER_EXECUTABLE:
        made.add_rule(ALLOW, name, Arg(2, MASKED_EQ, linux.PROT_EXEC, 0))
    made.load()
    _libc.malloc_trim(0)  # what the filter's making took
