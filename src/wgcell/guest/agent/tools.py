"""The initramfs's programs: nft, ip, wg, and busybox's applets."""

from __future__ import annotations

import os

from wgcell.guest.agent import files

__all__ = ["ENVIRONMENT", "code", "output", "run", "start", "text_file"]

ENVIRONMENT = {"PATH": "/bin", "LC_ALL": "C"}
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def text_file(text: str) -> int:
    """A file of no name that holds ``text``, to be read from its beginning: it may be a secret."""
    file = os.memfd_create("text")
    files.write_all(file, text.encode())
    os.lseek(file, 0, os.SEEK_SET)
    return file


def start(argv: Sequence[str], stdin: int | None = None, stdout: int | None = None) -> int:
    """Start ``/bin/<argv[0]>``; its process id. Descriptors that are not given are the agent's
    own."""
    moves: list[tuple[int, int, int]] = []
    for ours, theirs in ((stdin, 0), (stdout, 1)):
        if ours is not None:
            moves.append((os.POSIX_SPAWN_DUP2, ours, theirs))
    return os.posix_spawn(f"/bin/{argv[0]}", [*argv], ENVIRONMENT, file_actions=moves)


def ended(pid: int) -> int:
    """Wait for a child; its exit code, as a shell counts."""
    return code_of(os.waitpid(pid, 0)[1])


def code_of(status: int) -> int:
    """A wait status as a shell's exit code: 128 and the signal's number if one ended it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def code(*argv: str, given: str = "") -> int:
    """Run a program to its end, ``given`` its input; its exit code."""
    file = text_file(given)
    try:
        return ended(start(argv, stdin=file))
    finally:
        os.close(file)


def run(*argv: str, given: str = "") -> None:
    """Run a program to its end, ``given`` its input. Raises OSError if it fails."""
    if status := code(*argv, given=given):
        raise OSError(status, f"{' '.join(argv[:3])} failed")


def output(*argv: str) -> str:
    """The output of a program. Raises OSError if it fails."""
    reading, writing = os.pipe()
    try:
        try:
            pid = start(argv, stdout=writing)
        finally:
            os.close(writing)
        parts = []
        while part := os.read(reading, 65536):
            parts.append(part)
    finally:
        os.close(reading)
    if status := ended(pid):
        raise OSError(status, f"{' '.join(argv[:3])} failed")
    return b"".join(parts).decode("utf-8", "backslashreplace")
