"""QEMU's jail, by bubblewrap: code that breaks out of the guest can reach nothing.

Own user, mount, pid, ipc, uts and *empty network* namespace; of the host's files QEMU's own
program, libraries and firmware, read-only; every disk, socket and channel an inherited descriptor,
so no path of the cell's need exist inside. A seccomp filter kills on what opens a network or
reaches into another process; QEMU's own ``-sandbox`` denies the rest, spawning included. Started
by root, it is an unprivileged user before bubblewrap begins.

A stage that can't be built is reported with its hint; the provider decides whether a cell may run.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wgcell import programs
from wgcell.net import linux
from wgcell.processes import namespace_holder

__all__ = ["CHILDREN", "Jail", "bwrap_argv", "closed_filter", "find_jail", "limits"]

_SHARE = ("/usr/share/qemu", "/usr/share/seabios")
_LIBRARIES = ("/usr/lib", "/usr/lib64")
_LINKED = ("/lib", "/lib64")
_OWN = (
    *("share/qemu", "share/seabios", "share/qemu-firmware", "lib/ipxe/qemu"),
    *("lib/qemu", "lib64/qemu", f"lib/{platform.machine()}-linux-gnu/qemu"),
)
"""The firmware and modules of a QEMU that is installed elsewhere, below its prefix."""

KILLED = (
    *("socket", "connect", "bind", "listen", "accept", "accept4", "sendmmsg"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "pidfd_open", "kcmp"),
    *("mount", "umount2", "pivot_root", "chroot", "setns", "unshare", "move_mount", "fsopen"),
    *("open_by_handle_at", "name_to_handle_at", "bpf", "userfaultfd", "perf_event_open"),
    *("add_key", "request_key", "keyctl", "init_module", "finit_module", "kexec_load"),
)
"""System calls that QEMU, with every socket inherited, has no use for."""
ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
"""Answered as an older kernel would: QEMU and glibc then do without."""
_HEAP = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.top_pad=33554432"
"""QEMU's heap in pages of 2 MiB, where the kernel offers them: few pages are unmapped fast when
QEMU is killed."""
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
"""The file in which glibc reads whether the kernel offers them."""
CHILDREN = "/proc/{0}/task/{0}/children"
"""A process's children (proc(5)): they lead to QEMU in its jail."""
_NOBODY = "65534"
_ENOSYS = 38

_ADDRESS_SPACE = 4 << 30
"""Bytes beyond the guest's memory: TCG's translation buffer is a gigabyte, thread stacks 8 MiB."""


@dataclass(frozen=True, slots=True)
class Jail:
    """The jail to start QEMU in.

    ``bwrap`` is None if no jail can be built here, and ``missing`` says why. ``user`` is the id
    that root becomes, None for an ordinary user; ``groups`` are those that it keeps, for /dev/kvm.
    """

    bwrap: str | None
    user: int | None
    groups: tuple[int, ...] = ()
    missing: str = ""


def find_jail(user: int | None, device: Path | None) -> Jail:
    """The jail that can be built here. Tries it: some systems forbid bubblewrap its namespaces.

    ``user`` is the id to become if we are root; ``device`` is /dev/kvm where it is used.
    """
    groups = () if device is None or user is None else (device.stat().st_gid,)
    jail = Jail(programs.find("bwrap"), user, groups)
    missing = _why_not(jail)
    return replace(jail, bwrap=None, missing=missing) if missing else jail


def _why_not(jail: Jail) -> str:
    if jail.bwrap is None:
        return "bubblewrap is not installed: apt-get install bubblewrap"
    try:
        import pyseccomp  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return f"libseccomp can't be used ({error}): apt-get install libseccomp2"
    if not Path(CHILDREN.format(os.getpid())).exists():
        return "this kernel does not list a process's children (CONFIG_PROC_CHILDREN)"
    argv = [*namespace_holder(root=False), jail.bwrap, "--unshare-all", "--ro-bind", "/usr", "/usr"]
    try:
        done = subprocess.run(
            [*argv, *_links(), "--", "/usr/bin/true"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            cwd="/",
            env=programs.environment(),
            user=jail.user,
            group=jail.user,
            extra_groups=None if jail.user is None else jail.groups,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"the jail can't be started: {error}"
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        return f"{said} (wgcell doctor names the fix)"
    return ""


def _links() -> list[str]:
    """/lib and its kin as the host has them: links into /usr, or folders of their own."""
    argv: list[str] = []
    for place in _LINKED:
        if Path(place).is_symlink():
            argv += ["--symlink", str(Path(place).readlink()), place]
        elif Path(place).is_dir():
            argv += ["--ro-bind", place, place]
    return argv


def _elsewhere(program: str) -> list[tuple[str, str]]:
    """The files that a QEMU outside /usr needs, each by its name: source and place of each mount.

    Never its whole prefix, which may be somebody's home, or the root.
    """
    path = Path(program)
    prefix = path.parent.parent
    if prefix == Path("/usr"):
        return []
    bound = []
    for name in _OWN:
        source = (prefix / name).resolve()
        # Nor a link of such a name to a folder with more in it.
        if source.is_dir() and source not in path.parents and source != Path.home():
            bound.append((str(source), str(prefix / name)))
    return bound + [(str(Path(place).resolve()), place) for place in _loaded(program)]


def _loaded(program: str) -> list[str]:
    """The libraries that the loader finds for it elsewhere than in the system's own folders."""
    try:
        done = subprocess.run(
            [programs.path_of("ldd"), program],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=10,
            check=False,
            cwd="/",
            env=programs.environment(),
        )
    except (OSError, subprocess.SubprocessError):
        return []  # then the loader will say what it misses
    # "libslirp.so.0 => /opt/qemu/bin/../lib/libslirp.so.0 (0x…)"
    found = (line.partition(" => ")[2].rpartition(" (")[0] for line in done.stdout.splitlines())
    places = [os.path.normpath(place) for place in found if place.startswith("/")]
    own = tuple(f"{folder}/" for folder in (*_LIBRARIES, *_LINKED))
    return [place for place in places if not place.startswith(own) and Path(place).is_file()]


def bwrap_argv(
    jail: Jail, command: Sequence[str], *, filter_fd: int, info_fd: int, device: Path | None
) -> list[str]:
    """``command``, whose first word is QEMU's path, inside the jail.

    ``filter_fd`` holds the compiled filter; bubblewrap reports on ``info_fd`` that the inner
    process exists.
    """
    program = str(Path(command[0]).resolve())
    argv = [
        jail.bwrap or "bwrap",
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"),
        *("--uid", _NOBODY, "--gid", _NOBODY, "--cap-drop", "ALL"),
        *("--clearenv", "--hostname", "cell"),
        *("--setenv", "GLIBC_TUNABLES", _HEAP),
        *("--ro-bind", program, program),
    ]
    for folder in _LIBRARIES:
        argv += ["--ro-bind-try", folder, folder]
    argv += [*_links(), "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in _SHARE:
        argv += ["--ro-bind-try", folder, folder]
    for source, place in _elsewhere(program):
        argv += ["--ro-bind", source, place]
    argv += ["--ro-bind-try", _HUGE_PAGES, _HUGE_PAGES, "--proc", "/proc", "--dev", "/dev"]
    if device is not None:
        argv += ["--dev-bind", str(device), str(device)]
    argv += ["--remount-ro", "/", "--chdir", "/"]
    argv += ["--seccomp", str(filter_fd), "--info-fd", str(info_fd), "--", program, *command[1:]]
    return argv


def closed_filter() -> int:
    """A descriptor with the compiled filter, to be inherited. Raises OSError."""
    from pyseccomp import ALLOW, ERRNO, KILL_PROCESS, MASKED_EQ, Arg, Attr, SyscallFilter

    made = SyscallFilter(ALLOW)
    made.set_attr(Attr.ACT_BADARCH, KILL_PROCESS)
    for name in KILLED:
        made.add_rule(KILL_PROCESS, name)
    for name in ABSENT:
        made.add_rule(ERRNO(_ENOSYS), name)
    made.add_rule(
        KILL_PROCESS, "clone", Arg(0, MASKED_EQ, linux.CLONE_NEWUSER, linux.CLONE_NEWUSER)
    )
    fd = os.memfd_create("filter")
    with open(fd, "wb", closefd=False) as file:
        made.export_bpf(file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def limits(memory: int, disk: int) -> tuple[tuple[int, int], ...]:
    """Resource limits of QEMU's process, for a guest of ``memory`` and ``disk`` bytes."""
    return (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_AS, memory + _ADDRESS_SPACE),
    )
