"""The folder that the unpacking has written, inspected from outside before anybody uses it.

The tar may have taken over the unpacking (`wgcell.cell.unpacker`) that parsed it. The unpacking can
write below one folder only, but there it can write anything: a link that points out, a name that no
tar may have. So when its process is dead, the host walks through the folder, and compares each
entry with the rules for the tar (`wgcell.cell.members.MemberRules`), and the sums with the sums
that the unpacking stated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wgcell.cell.archive import Unpacked
from wgcell.cell.counts import shown
from wgcell.cell.globs import Pattern
from wgcell.cell.members import MemberRefused, MemberRules, vetted
from wgcell.errors import GuestError, StateError

__all__ = ["inspect"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RIGHTS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


@dataclass(slots=True)
class _Counted:
    """The sums so far, with the names of `Unpacked`."""

    files: int = 0
    folders: int = 0
    links: int = 0
    bytes: int = 0


def inspect(folder: Path, asked: Sequence[str], stated: Unpacked) -> None:
    """Compare ``folder`` with the rules for ``asked``, the outputs, and with the ``stated`` sums.

    No link is followed, no file is opened, and the walk ends at the first entry beyond the stated
    number. Raises GuestError for a folder that no honest unpacking has written, StateError for one
    that can't be read.
    """
    rules = MemberRules([Pattern.parse(one) for one in asked])
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
                if any(getattr(found, one) > getattr(stated, one) for one in _Counted.__slots__):
                    raise _not_honest("there is more than it stated")
        finally:
            os.close(top)
    except PermissionError as error:
        raise _not_honest(f"{shown(str(error.filename))} can't be read") from None
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror or error}") from None
    if any(getattr(found, one) != getattr(stated, one) for one in _Counted.__slots__):
        raise _not_honest("there is less than it stated")


def _not_honest(words: str) -> GuestError:
    return GuestError(f"the unpacking wrote what no unpacking writes: {words}")


def _entries(top: int) -> Iterator[tuple[tuple[str, ...], os.stat_result, str]]:
    """Everything below: its path, its status, and a link's target. A folder before its contents.

    A folder is entered when the next entry is asked for: not at all if the caller refuses it.
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
    rules: MemberRules, parts: tuple[str, ...], status: os.stat_result, target: str, inherited: int
) -> str:
    """Why no honest unpacking has written this entry; empty if one could have. Pure."""
    mode = status.st_mode
    try:
        rules.admit(vetted("/".join(parts)), is_folder=stat.S_ISDIR(mode))
    except MemberRefused as refused:
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
