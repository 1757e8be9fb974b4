"""The walls of a process that may write below one folder and do nothing else.

The parent compiles the filter (`filter_of_calls`) and hands over descriptors; the child loads all
its code and then calls `confine`, whose stages are built in this order:

1. *root*      user, mount and ipc namespace of its own, in which the folder is the whole file
               system. Its user stays what it is, so that files are the caller's;
2. *limits*    no core, no process, few descriptors, files and memory bounded. Processor time is
               the parent's to bound (prlimit(2)): it knows how much there is to do;
3. *rights*    no capability, no_new_privs, not dumpable;
4. *landlock*  no file but below the folder, no TCP, no signal: Landlock, any ABI;
5. *seccomp*   the calls of `CALLS`; `KILLED` kills, all others are answered EPERM.

A path is nothing that a filter can judge. So either the folder is the root, or Landlock holds the
files and the filter what Landlock does not know (modes, owners, times): `Confined.holds`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass

from wgcell.net import linux

__all__ = ["CALLS", "KILLED", "STAGES", "Confined", "Filters", "confine", "filter_of_calls"]

STAGES = ("root", "landlock", "seccomp")
"""Those that a machine may lack."""

# linux/landlock.h
_RULE_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
_BELOW = _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM
_ABI_NET, _ABI_SCOPE = 4, 6

_AT_EMPTY_PATH = 0x1000
_RIGHTS = 0o7000
"""Set-user-ID, set-group-ID, sticky: a new file belongs to this user, and must never run as this
user."""
_F_DUPFD_CLOEXEC, _F_GETFD, _F_GETFL = 1030, 1, 3
_DESCRIPTORS = 320
"""A folder may be 256 deep, each with a descriptor; and a few beside."""
_MEMORY_ABOVE = 64 << 20
"""Bytes of address space beyond those that are mapped when the process is confined."""
_PLACE = b"/proc"
"""A folder that is there wherever this runs: ours is mounted on it before it becomes the root."""

_Rule = tuple[str, tuple[tuple[int, int, int], ...]]

CALLS: tuple[_Rule, ...] = (
    # A call, and for an argument (its place, a mask, what must be under it).
    # Before ABI 3, Landlock does not know truncation. The mode is 0 where no file is made.
    ("openat", ((2, os.O_TRUNC, 0), (3, _RIGHTS, 0))),
    ("mkdirat", ((2, _RIGHTS, 0),)),
    ("symlinkat", ()),
    ("unlinkat", ()),
    ("fchmod", ((1, _RIGHTS, 0),)),
    ("newfstatat", ((3, _AT_EMPTY_PATH, _AT_EMPTY_PATH),)),
    ("fcntl", ((1, 0xFFFFFFFF, _F_DUPFD_CLOEXEC),)),
    ("fcntl", ((1, 0xFFFFFFFF, _F_GETFD),)),
    ("fcntl", ((1, 0xFFFFFFFF, _F_GETFL),)),
    ("mmap", ((2, linux.PROT_EXEC, 0),)),
    ("mprotect", ((2, linux.PROT_EXEC, 0),)),
    *(
        (name, ())
        for name in (
            *("read", "write", "close", "fstat", "lseek"),
            *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield"),
            *("clock_gettime", "gettimeofday", "exit", "exit_group"),
            *("rt_sigreturn", "restart_syscall"),
        )
    ),
)
"""All that the unpacking needs, but for the times that it sets: see `filter_of_calls`."""

KILLED = (
    *("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4"),
    *("sendto", "sendmsg", "sendmmsg", "recvmsg", "execve", "execveat", "fork", "vfork", "clone"),
    *("clone3", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kill", "tgkill"),
    *("mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "move_mount", "open_tree"),
    *("open_by_handle_at", "bpf", "userfaultfd", "perf_event_open", "io_uring_setup"),
    *("keyctl", "add_key", "request_key", "init_module", "finit_module", "kexec_load"),
    *("linkat", "renameat2", "mknodat", "fchmodat", "fchownat", "truncate", "setxattr"),
)
"""Calls that no honest unpacking makes: a process that makes one has been taken over."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Confined:
    """``root`` is the folder's descriptor from now on; ``missing`` are stages that are not there,
    and why."""

    root: int
    missing: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether this process can write nowhere but below the folder."""
        return "root" not in self.missing or not {"landlock", "seccomp"} & set(self.missing)


def filter_of_calls(*, names: bool) -> bytes:
    """The compiled filter. ``names``: times may be set by a path, as those of a link must be.

    Raises OSError, ImportError or RuntimeError where libseccomp can't be used.
    """
    from pyseccomp import ALLOW, EQ, ERRNO, KILL_PROCESS, MASKED_EQ, Arg, Attr, SyscallFilter

    made = SyscallFilter(ERRNO(errno.EPERM))
    made.set_attr(Attr.ACT_BADARCH, KILL_PROCESS)
    for name in KILLED:
        made.add_rule(KILL_PROCESS, name)
    for name, pinned in CALLS:
        made.add_rule(ALLOW, name, *(Arg(at, MASKED_EQ, mask, is_) for at, mask, is_ in pinned))
    made.add_rule(ALLOW, "utimensat", *(() if names else (Arg(1, EQ, 0),)))
    with os.fdopen(os.memfd_create("filter"), "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


@dataclass(frozen=True, slots=True)
class Filters:
    """Compiled filters: for a process whose root is its folder, and for one whose root is not.

    Empty: there is none, for libseccomp can't be used here.
    """

    rooted: bytes = b""
    other: bytes = b""

    @classmethod
    def compiled(cls) -> Filters:
        """Both of them, where they can be made."""
        try:
            return cls(filter_of_calls(names=True), filter_of_calls(names=False))
        except (OSError, ImportError, RuntimeError):
            return cls()


def confine(folder: int, filters: Filters, largest_file: int) -> Confined:
    """Confine this process, which has one thread, to the folder with that descriptor, and close it.

    ``largest_file`` is in bytes. The result has the stages that can't be built here. Raises OSError
    if the rights can't be given up, or the limits can't be set.
    """
    missing: dict[str, str] = {}
    root = folder
    most_memory = _mapped() + _MEMORY_ABOVE

    def built(stage: str, build: Callable[[], None]) -> None:
        try:
            build()
        except OSError as error:
            missing[stage] = error.strerror or str(error)

    def entered() -> None:
        nonlocal root
        _enter(folder)
        # The old descriptor's ".." is the old root.
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.close(folder)

    built("root", entered)
    _limit(largest_file, most_memory)
    _give_up_rights()
    built("landlock", lambda: _landlock(root))
    built("seccomp", lambda: _filter(filters.other if "root" in missing else filters.rooted))
    return Confined(root, missing)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, *values: object) -> None:
    _check(_libc.prctl(option, *values, *(0,) * (4 - len(values))), f"prctl {option}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _enter(folder: int) -> None:
    """Make the folder the root of a mount namespace of our own."""
    number = linux.PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"pivot_root has no number here for {platform.machine()}")
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWIPC), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    nothing = ctypes.c_void_p()
    _check(_libc.mount(b"none", b"/", nothing, linux.MS_REC | linux.MS_PRIVATE, nothing), "mount /")
    # The descriptor is of a mount in the namespace that we left; this one is of our copy of it.
    here = os.open(_path_of(folder), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(folder), os.fstat(here)):
            raise OSError(errno.ESTALE, "the folder was moved away")
        source = f"/proc/self/fd/{here}".encode()
        _check(_libc.mount(source, _PLACE, nothing, linux.MS_BIND, nothing), "mount the folder")
    finally:
        os.close(here)
    os.chdir(_PLACE)
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", linux.MNT_DETACH), "umount the old root")
    os.chdir("/")


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  # pathlib is not loaded


def _limit(largest_file: int, most_memory: int) -> None:
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_FSIZE, largest_file),
        (resource.RLIMIT_AS, most_memory),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _mapped() -> int:
    """Bytes of this process's address space (proc_pid_statm(5))."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(descriptor, 256).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def _give_up_rights() -> None:
    header = struct.pack("Ii", linux.CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")
    _prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    _prctl(linux.PR_SET_DUMPABLE, 0)


def _landlock(root: int) -> None:
    """Handle every right that this kernel's Landlock knows; allow some below ``root``."""
    abi = _check(
        _libc.syscall(linux.LANDLOCK_CREATE_RULESET, None, 0, 1), "landlock is not in this kernel"
    )
    rights = 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)
    attributes = struct.pack("QQQ", (1 << rights) - 1, 3, 3)
    size = 24 if abi >= _ABI_SCOPE else 16 if abi >= _ABI_NET else 8
    ruleset = _check(_libc.syscall(linux.LANDLOCK_CREATE_RULESET, attributes, size, 0), "landlock")
    try:
        rule = struct.pack("=Qi", _BELOW, root)
        _check(
            _libc.syscall(linux.LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), "landlock"
        )
        _check(_libc.syscall(linux.LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock")
    finally:
        os.close(ruleset)


class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _filter(program: bytes) -> None:
    if not program:
        raise OSError(errno.ENOENT, "no filter was compiled: libseccomp can't be used")
    loaded = _Program(len(program) // 8, program)
    _prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, ctypes.byref(loaded))
