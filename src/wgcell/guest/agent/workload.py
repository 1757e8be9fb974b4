"""Starts the requester's command, in its root and within its walls."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from wgcell.guest.agent import files, kernel, tools

__all__ = ["CAPABILITIES", "confined", "environment", "execute", "open_"]

# docker's list, without NET_RAW, MKNOD and AUDIT_WRITE: chown, dac_override, fowner, fsetid, kill,
# setgid, setuid, setpcap, net_bind_service, sys_chroot, setfcap (<linux/capability.h>).
CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31})
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TMP = "/tmp"
# What root may write in /proc without a capability, though it reaches beyond its namespaces: a
# helper that the kernel starts (core_pattern, modprobe), a card's settings, the machine's end.
_READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus")
_NOT_FOUND, _NOT_EXECUTABLE, _NOT_SET_UP = 127, 126, 125
_ENOEXEC = 8
_SHELL = "/bin/sh"
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from wgcell.guest.config import GuestConfig


def environment(config: GuestConfig) -> dict[str, str]:
    """The command's environment."""
    return {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **dict(config.environment)}


def confined(config: GuestConfig, root: str, stdin: int, stdout: int, stderr: int) -> int:
    """Start the command with few capabilities and namespaces of its own; its init's process id.

    That init passes SIGTERM on to the command, and its end is all the others' end. The caller is in
    the workload's network namespace, which its children keep.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    kernel.unshare(kernel.NEWPID)
    pid = _forked(lambda: _be_init(config, root, stdin, stdout, stderr))
    kernel.setns(own, kernel.NEWPID)
    os.close(own)
    return pid


def open_(config: GuestConfig, root: str, stdin: int, stdout: int, stderr: int) -> int:
    """Start the command with all of root's privileges, in its root; its process id."""
    for name in ("proc", "sys"):
        kernel.mount(f"/{name}", f"{root}/{name}", flags=kernel.BIND)
    return _forked(lambda: _be_open(config, root, stdin, stdout, stderr))


def _forked(act: Callable[[], None]) -> int:
    """A child that acts and never returns; its process id.

    It begins with SIGTERM blocked, until it has made up its mind what to do at one: none is lost,
    not even to the first process of a pid namespace, which has no default for it (signal(7)).
    """
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGTERM})
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException as error:
            os.write(2, f"wgcell: {error}\n".encode("utf-8", "backslashreplace"))
        os._exit(_NOT_SET_UP)
    return pid


def _hear_sigterm() -> None:
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGTERM})


def _take(stdin: int, stdout: int, stderr: int) -> None:
    """These three descriptors and no other: not even a pipe's other end may stay."""
    for ours, theirs in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(ours, theirs)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # Signals to a group are for its own, and the agent's is another.
    os.setsid()
    os.umask(0o022)
    # The kernel kills the workload for want of memory, and not the agent.
    files.write("/proc/self/oom_score_adj", "0")


def _be_open(config: GuestConfig, root: str, stdin: int, stdout: int, stderr: int) -> None:
    _take(stdin, stdout, stderr)
    os.chdir(root)
    execute(config)


def _be_init(config: GuestConfig, root: str, stdin: int, stdout: int, stderr: int) -> None:
    _take(stdin, stdout, stderr)
    kernel.unshare(kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC)
    kernel.privately()
    proc, sys = f"{root}/proc", f"{root}/sys"
    kernel.mount("proc", proc, "proc", kernel.LIVELY)
    kernel.mount("sys", sys, "sysfs", kernel.LIVELY | kernel.READ_ONLY)
    # A proc of its own, read-only, from which the places come.
    kernel.mount("proc", _TMP, "proc", kernel.LIVELY | kernel.READ_ONLY)
    for place in _READ_ONLY_PROC:
        if os.path.exists(f"{_TMP}/{place}"):  # a kernel may be without one
            kernel.mount(f"{_TMP}/{place}", f"{proc}/{place}", flags=kernel.BIND)
    # Below the new root nothing of the initramfs can be reached any more. And nothing of its proc
    # and sysfs may be left in this namespace: whoever sees one in full, under whatever, may mount
    # another in a user namespace of his own.
    for place in (_TMP, "/proc", "/sys"):
        kernel.unmount(place)
    os.chdir(root)
    kernel.move_to_root()
    command = _forked(lambda: _be_command(config))
    # To the command alone, as a shell's would be. Waiting goes on behind the handler (PEP 475).
    _signal.signal(_signal.SIGTERM, lambda number, frame: _pass_on(command))
    # Without Python's own handler it is nothing to the first process of a pid namespace.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _hear_sigterm()
    while True:
        pid, status = os.wait()
        if pid == command:
            os._exit(tools.code_of(status))


def _pass_on(command: int) -> None:
    try:
        os.kill(command, _signal.SIGTERM)
    except ProcessLookupError:
        pass


def _be_command(config: GuestConfig) -> None:
    os.setsid()
    kernel.keep_capabilities(CAPABILITIES)
    execute(config)


def execute(config: GuestConfig) -> NoReturn:
    """Become the command, in the root that is the working folder. Only ends the process."""
    os.chroot(".")
    os.chdir("/work")
    # Python ignores some, and so may whoever started it; an ignored signal stays so (execve(2)).
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    _hear_sigterm()
    code, said = _try(config.command, environment(config))
    os.write(2, f"wgcell: {config.command[0]}: {said}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)


def _try(command: tuple[str, ...], environ: dict[str, str]) -> tuple[int, str]:
    """Execute the command, found as execvp(3) finds it; why not, and the exit code for that."""
    code, said = _NOT_FOUND, os.strerror(2)
    word = command[0]
    for path in [word] if "/" in word else places(word, environ.get("PATH", _PATH)):
        try:
            os.execve(path, command, environ)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # A script without a first line that names its shell; unless the shell is none itself.
            if error.errno == _ENOEXEC and path != _SHELL:
                command = (_SHELL, path, *command[1:])
                return _try(command, environ)
            code, said = _NOT_EXECUTABLE, error.strerror or ""
    return code, said


def places(word: str, path: str) -> list[str]:
    """Folders in which a command without a slash is looked up."""
    return [f"{folder or '.'}/{word}" for folder in path.split(":")] if word else []
