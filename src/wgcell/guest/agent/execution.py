"""What a fork of the agent does until it is the program that somebody asked for.

A fork's memory is the agent's, with the tunnel's keys in it, and it goes where the workload is
root: so nobody there may look into it (`kernel.hide_memory`), it holds no descriptor but the
program's own, and it imports nothing, for Python would look for that in the workload's root.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import stat
import sys
from dataclasses import dataclass
from fcntl import ioctl

from wgcell.errors import GuestError
from wgcell.guest.agent import files, kernel, users

__all__ = ["FOLDER", "Program", "become", "forked", "places", "take"]

FOLDER = "/work"
"""The working folder."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOME = "/root"
_NOT_FOUND, _NOT_EXECUTABLE, _NOT_SET_UP = 127, 126, 125
_ENOEXEC = 8
_SHELL = "/bin/sh"
_STREAMS = 3
_NULL = os.makedev(1, 3)
_TIOCSCTTY = 0x540E
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Program:
    """``folder`` is relative to the working folder. ``user``: see `users`; empty: whoever forked.

    ``terminal``: its standard output is one, and becomes its controlling terminal. ``file``: the
    descriptor of what is executed; None: it is searched for, as execvp(3) does.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: str
    user: str
    terminal: bool
    file: int | None


def forked(act: Callable[[], None]) -> int:
    """A child that acts and never returns; its process id. Raises OSError.

    It begins with every signal blocked, until it has made up its mind what to do at one: none is
    lost, and none meets a handler of Python's.
    """
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(act)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    return pid


def _be_child(act: Callable[[], None]) -> NoReturn:
    try:
        kernel.hide_memory()
        sys.meta_path.clear()
        act()
    except BaseException as error:
        _say(str(error))
    finally:
        os._exit(_NOT_SET_UP)


def _say(text: str) -> None:
    """On standard error, which may be a pipe that nobody reads."""
    os.write(2, f"wgcell: {text}\n".encode("utf-8", "backslashreplace"))


def take(streams: tuple[int, int, int]) -> None:
    """Have these as standard streams, and a session, a mask and a score of one's own.

    Before the root is entered: the score is a file of the agent's /proc.
    """
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    # Signals to a group are for its own, and the agent's is another.
    os.setsid()
    os.umask(0o022)
    # The kernel kills the workload for want of memory, and not the agent.
    files.write("/proc/self/oom_score_adj", "0")


def become(program: Program, capabilities: frozenset[int] | None) -> None:
    """Execute the program in the root that is the working folder; or end the process.

    ``capabilities``: those it keeps; None: all.
    """
    file = _alone_with(program.file)
    os.chroot(".")
    if program.terminal:
        ioctl(1, _TIOCSCTTY, 0)
    if capabilities is not None:
        kernel.keep_capabilities(capabilities)
    try:
        home = _be_user(program.user) if program.user else _HOME
        os.chdir(os.path.join(FOLDER, program.folder))
    except GuestError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{program.folder or FOLDER}: {error.strerror}")
    _forget_signals()
    environ = {"HOME": home, **program.env}
    code, said = _execute(program.argv, environ, file)
    _say(f"{program.argv[0]}: {said}")
    os._exit(code)


def _refuse(text: str) -> NoReturn:
    _say(text)
    os._exit(_NOT_EXECUTABLE)


def _alone_with(file: int | None) -> int | None:
    """No other descriptor: not even a pipe's other end may stay."""
    first = _STREAMS
    if file is not None:
        os.dup2(file, first, inheritable=False)
        file = first
        first += 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    return file


def _be_user(user: str) -> str:
    """Lose the rights of root for another's; the folder that is that one's home."""
    found = users.resolve(user, _table("/etc/passwd"), _table("/etc/group"))
    for stream in range(_STREAMS):
        # By /dev/stdout, it is opened anew.
        if os.fstat(stream).st_rdev != _NULL:
            os.fchown(stream, found.uid, -1)
    os.setgroups(found.groups)
    os.setgid(found.gid)
    os.setuid(found.uid)
    return found.home or "/"


def _table(path: str) -> bytes:
    """A file of the root's, which may be anything: a pipe, a device, a link, or endless."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        return os.read(file, users.LONGEST_TABLE)
    except OSError:
        return b""


def _forget_signals() -> None:
    """No signal ignored, none blocked: both outlive execve(2), and Python ignores some."""
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _execute(
    argv: tuple[str, ...], environ: Mapping[str, str], file: int | None
) -> tuple[int, str]:
    """Execute the command; why that can't be done, and the exit code for that."""
    word, code, said = argv[0], _NOT_FOUND, os.strerror(2)
    where: list[str] | list[int]
    if file is not None:
        where = [file]
    else:
        where = [word] if "/" in word else places(word, environ.get("PATH", PATH))
    for path in where:
        try:
            os.execve(path, argv, environ)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # A script without a first line that names its shell; unless the shell is none itself.
            if error.errno == _ENOEXEC and path != _SHELL:
                return _execute((_SHELL, str(path), *argv[1:]), environ, None)
            code, said = _NOT_EXECUTABLE, error.strerror or ""
    return code, said


def places(word: str, path: str) -> list[str]:
    """Where a command without a slash may be."""
    return [f"{folder or '.'}/{word}" for folder in path.split(":")] if word else []
