"""A walk through inputs: each file, folder and link that belongs into the working folder.

Links stay links. Sockets, pipes and devices are left out and counted, and so are files that a
pattern excludes. The order is sorted, so the same inputs make the same walk.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wgcell.cell.counts import Counts, shown
from wgcell.cell.excludes import IGNORE_FILE, LARGEST_IGNORE_FILE, Excludes
from wgcell.cell.inputs import BENEATH, CIRCLE, Input, opened_above, reason
from wgcell.errors import InputFileError

__all__ = ["MOST_MEMBERS", "POINTS_OUT", "Found", "Walk"]

MOST_MEMBERS = 1_000_000
_DEEPEST = 256
"""Folders within each other; the walk holds a descriptor for each."""
_LONGEST_NAME = 4000
"""Bytes of a path; below Linux's PATH_MAX, with the guest's own folders before it."""
_MOST_NAMED = 20
"""Unreadable inputs named in one error."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | BENEATH

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
POINTS_OUT = "a link that points out of its input, kept as a link"


@dataclass(frozen=True, slots=True)
class Found:
    """One file, folder or link of an input."""

    folder: int
    """A descriptor of the folder that holds it; open until the walk goes on."""
    base: str
    """Its name in that folder."""
    name: str
    """Its path in the working folder."""
    path: str
    """Its path on this machine, for messages."""
    status: os.stat_result
    target: str = ""
    """Of a symbolic link."""


@dataclass(frozen=True, slots=True)
class _Top:
    """An input's own folder: its path in the working folder, with a slash, and its patterns."""

    name: str
    excludes: Excludes


_NO_PATTERNS = Excludes((), "")


class Walk:
    """One walk through all inputs, and what it left out."""

    def __init__(
        self,
        excludes: Excludes,
        skipped: tuple[int, int] | None = None,
        *,
        ignore_files: bool = True,
    ) -> None:
        """``skipped`` is the device and inode of a folder that is left out silently.

        ``ignore_files``: an input's own ignore file counts.
        """
        self._ignore_files = ignore_files
        self._excludes = excludes
        self._skipped = skipped
        self._failures: dict[str, list[str]] = {}
        self._inputs: dict[str, Input] = {}
        self._tops: list[_Top] = []
        self._count = 0
        self.left_out = Counts()
        self.links_out = Counts()
        self.links: set[tuple[str, str]] = set()
        """Those of ``links_out``: path in the working folder, and target."""
        self.excluded = 0

    def fail(self, path: str, why: str) -> None:
        """Note an input that can't be read; `finish` raises for all of them together."""
        self._failures.setdefault(why, []).append(shown(path))

    def finish(self) -> None:
        """Raise `InputFileError` if there were failures, with one line for each reason."""
        lines = []
        for why, paths in self._failures.items():
            more = len(paths) - _MOST_NAMED
            names = ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"input {names}: {why}")
        if lines:
            raise InputFileError(*lines)

    def all(self, inputs: Sequence[Input]) -> Iterator[Found]:
        """Everything in ``inputs``, a folder before its contents.

        An input that can't be read goes to `fail`. Raises `InputFileError` at once for too many
        files, two inputs of one name, an input outside its folder, and a malformed ignore file.
        """
        for one in inputs:
            for found in self._input(one):
                self._count += 1
                if self._count > MOST_MEMBERS:
                    raise InputFileError(
                        f"inputs are over the limit at {shown(found.path)}: {MOST_MEMBERS} files",
                        hint="leave some out with --exclude",
                    )
                self._require_own_name(found, one)
                yield found

    def excludes(self, name: str) -> bool:
        """Whether a pattern excludes ``name``, a file in the working folder, or a folder above."""
        parts = name.split("/")
        paths = ["/".join(parts[:end]) + "/" for end in range(1, len(parts))] + [name]
        # The deepest input first: the contents of one input, at the top, hold all others.
        for top in sorted(self._tops, key=lambda top: top.name, reverse=True):
            if name.startswith(top.name):
                return any(self._excluded(path, top) for path in paths if path != top.name)
        return any(self._excluded(path, _Top("", _NO_PATTERNS)) for path in paths)

    def _excluded(self, name: str, top: _Top) -> bool:
        verdict = self._excludes.verdict(name)
        if verdict is None:
            verdict = top.excludes.verdict(name[len(top.name) :])
        return bool(verdict)

    def _require_own_name(self, found: Found, one: Input) -> None:
        if "/" in found.name:
            return
        if found.name in self._inputs:
            other = self._inputs[found.name]
            raise InputFileError(
                f"inputs {one} and {other} would both be /work/{shown(found.name)}"
            )
        self._inputs[found.name] = one

    def _input(self, one: Input) -> Iterator[Found]:
        path = str(one.path)
        try:
            folder, base = opened_above(one)
        except OSError as error:
            self.fail(path, reason(error))
            return
        try:
            status = os.stat(base, dir_fd=folder, follow_symlinks=False)
            is_folder = stat.S_ISDIR(status.st_mode)
            if (kind := _special(status)) is not None:
                self.fail(path, f"is {kind}; allowed: files and folders")
            elif one.contents and not is_folder:
                self.fail(path, os.strerror(errno.ENOTDIR))
            else:
                name = "" if one.contents else one.name or one.path.name
                if name:
                    yield Found(folder, base, name, path, status)
                if is_folder:
                    prefix = name and name + "/"
                    yield from self._below(folder, base, path, prefix, _Top(prefix, _NO_PATTERNS))
        except OSError as error:
            self.fail(path, reason(error))
        finally:
            os.close(folder)

    def _below(
        self, above: int, base: str, path: str, prefix: str, top: _Top, depth: int = 1
    ) -> Iterator[Found]:
        """The contents of the folder ``base`` in ``above``.

        ``path`` is the folder's path on this machine, ``prefix`` in the working folder.
        """
        if depth > _DEEPEST:
            self.fail(path, f"is more than {_DEEPEST} folders deep")
            return
        try:
            folder = os.open(base, _FOLDER, dir_fd=above)
        except OSError as error:
            self.fail(path, reason(error))
            return
        try:
            if depth == 1 and self._ignore_files:
                top = _Top(top.name, _ignore_file(folder, path))
                self._tops.append(top)
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
            for entry in entries:
                found = self._found(folder, entry, f"{path}/{entry.name}", prefix, top)
                if found is None:
                    continue
                yield found
                if stat.S_ISDIR(found.status.st_mode):
                    inside = (folder, entry.name, found.path, found.name + "/", top, depth + 1)
                    yield from self._below(*inside)
        except OSError as error:
            self.fail(path, reason(error))
        finally:
            os.close(folder)

    def _found(
        self, folder: int, entry: os.DirEntry[str], path: str, prefix: str, top: _Top
    ) -> Found | None:
        """An entry of an input's folder; None if it is left out, or can't be read."""
        name = prefix + entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None  # deleted since the folder was read, as if it had been a moment earlier
        except OSError as error:
            self.fail(path, reason(error))
            return None
        if self._left_out(name, status, top):
            return None
        if len(os.fsencode(name)) > _LONGEST_NAME:
            self.fail(path, "has too long a name")
            return None
        target = ""
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(entry.name, dir_fd=folder)
            if _is_circle(folder, entry.name):
                self.fail(path, CIRCLE)
                return None
            if not _stays(name[len(top.name) :], target):
                self.links_out.add(POINTS_OUT, name)
                self.links.add((name, target))
        return Found(folder, entry.name, name, path, status, target)

    def _left_out(self, name: str, status: os.stat_result, top: _Top) -> bool:
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder and (status.st_dev, status.st_ino) == self._skipped:
            return True
        if self._excluded(name + "/" * is_folder, top):
            self.excluded += 1
            return True
        if (kind := _special(status)) is not None:
            self.left_out.add(kind, name)
            return True
        return False


def _special(status: os.stat_result) -> str | None:
    """The kind of a file that is neither a regular file nor a folder nor a link."""
    return next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), None)


def _ignore_file(folder: int, path: str) -> Excludes:
    source = shown(f"{path}/{IGNORE_FILE}")
    try:
        descriptor = os.open(IGNORE_FILE, os.O_RDONLY | os.O_NONBLOCK | BENEATH, dir_fd=folder)
    except FileNotFoundError:
        return Excludes((), source)
    except OSError as error:
        raise InputFileError(f"{source}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputFileError(f"{source}: is not a file")
        return Excludes.of_text(file.read(LARGEST_IGNORE_FILE + 1), source)


def _is_circle(folder: int, base: str) -> bool:
    try:
        os.stat(base, dir_fd=folder)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _stays(name: str, target: str) -> bool:
    """Whether a link at ``name`` in its input points into the input, by its text alone."""
    if target.startswith("/"):
        return False
    there = os.path.normpath(f"{name.rpartition('/')[0]}/./{target}".lstrip("/"))
    return there != ".." and not there.startswith("../")
