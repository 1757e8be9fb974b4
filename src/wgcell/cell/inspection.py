"""What the unpacking left in its folder, looked at from outside before anybody uses it.

The unpacking (`wgcell.cell.unpacker`) may have been taken over by the tar that it parsed. It can
write below one folder only, but there what it likes: a link that leads out, a name that no tar may
have. So when it is dead, the host walks through its folder and holds all that is there to the rules
that the tar was held to (`archive.Rules`), and to what the unpacking said that it wrote.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wgcell.cell.archive import Refused, Rules, Unpacked, vetted
from wgcell.cell.counts import shown
from wgcell.cell.globs import Pattern
from wgcell.errors import GuestError, StateError

__all__ = ["inspect"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RIGHTS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


@dataclass(slots=True)
class _Counted:
    """What was found so far, in `Unpacked`'s terms."""

    files: int = 0
    folders: int = 0
    links: int = 0
    bytes: int = 0


def inspect(folder: Path, asked: Sequence[str], told: Unpacked) -> None:
    """Raises GuestError if below ``folder`` is what no honest unpacking leaves, StateError if it
    can't be read.

    ``asked`` are the outputs that were asked for, ``told`` is what the unpacking said. No link is
    followed, no file is opened, and no more is looked at than was told.
    """
    rules = Rules([Pattern.parse(one) for one in asked])
    found = _Counted()
    try:
        top = os.open(folder, _FOLDER)
        try:
            # Where a folder has it, the kernel gives it to each folder that is made in it.
            inherited = os.fstat(top).st_mode & stat.S_ISGID
            for parts, status, target in _entries(top):
                if wrong := _wrong(rules, parts, status, target, inherited):
                    raise _not_honest(f"{shown('/'.join(parts))}: {wrong}")
                _count(found, status)
                if any(getattr(found, one) > getattr(told, one) for one in _Counted.__slots__):
                    raise _not_honest("there is more than it told of")
        finally:
            os.close(top)
    except PermissionError as error:
        raise _not_honest(f"{shown(str(error.filename))} can't be read") from None
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror or error}") from None
    if any(getattr(found, one) != getattr(told, one) for one in _Counted.__slots__):
        raise _not_honest("there is less than it told of")


def _not_honest(words: str) -> GuestError:
    return GuestError(f"the unpacking left what no unpacking leaves: {words}")


def _entries(top: int) -> Iterator[tuple[tuple[str, ...], os.stat_result, str]]:
    """Everything below: its path, its status, and a link's target. A folder before its contents.

    Who takes a folder and dislikes it never makes us enter it.
    """
    with os.scandir(top) as listed:
        names = iter([entry.name for entry in listed])
    waiting: list[tuple[tuple[str, ...], int, Iterator[str]]] = [((), top, names)]
    try:
        while waiting:
            parts, folder, names = waiting[-1]
            name = next(names, None)
            if name is None:
                if len(waiting) > 1:
                    os.close(folder)
                waiting.pop()
                continue
            below = (*parts, name)
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            is_link = stat.S_ISLNK(status.st_mode)
            yield below, status, os.readlink(name, dir_fd=folder) if is_link else ""
            if stat.S_ISDIR(status.st_mode):
                opened = os.open(name, _FOLDER, dir_fd=folder)
                try:
                    with os.scandir(opened) as listed:
                        inside = iter([entry.name for entry in listed])
                except BaseException:
                    os.close(opened)
                    raise
                waiting.append((below, opened, inside))
    finally:
        for _, folder, _ in waiting[1:]:
            os.close(folder)


def _wrong(
    rules: Rules, parts: tuple[str, ...], status: os.stat_result, target: str, inherited: int
) -> str:
    """Why this would never have been written; empty if it could have been. Pure."""
    mode = status.st_mode
    try:
        rules.admit(vetted("/".join(parts)), is_folder=stat.S_ISDIR(mode))
    except Refused as refused:
        return refused.reason
    if stat.S_ISLNK(mode):
        return rules.link_refused(parts, target) or ""
    if stat.S_ISDIR(mode):
        if mode & _RIGHTS & ~inherited or mode & stat.S_IRWXU != stat.S_IRWXU:
            return f"a folder of the mode {stat.S_IMODE(mode):o}"
        return ""
    if not stat.S_ISREG(mode):
        return "neither a file nor a folder nor a link"
    if mode & _RIGHTS or not mode & stat.S_IRUSR:
        return f"a file of the mode {stat.S_IMODE(mode):o}"
    return "a file with another name" if status.st_nlink != 1 else ""


def _count(found: _Counted, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        found.folders += 1
    elif stat.S_ISLNK(status.st_mode):
        found.links += 1
    else:
        found.files += 1
        found.bytes += status.st_size
