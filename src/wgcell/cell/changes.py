"""The changes that bring one folder's files into another: first planned, then made.

`plan` only reads; `apply` makes the planned changes, except where a path has changed since. Both
open each folder beneath the one before without following links, so nothing is read or written
outside the two folders, whatever links are in them. A file arrives whole or not at all. Only paths
that the plan names are overwritten, and no folder is ever replaced. When `apply` returns, its
changes are on the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

from wgcell.cell.counts import Counted, Counts
from wgcell.cell.survey import Fingerprint

__all__ = ["Action", "Applied", "Change", "Plan", "apply", "plan", "to_disk"]

_CHUNK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = frozenset((errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP))
"""The errors of link(2) and rename(2) on another file system, or on one without hard links."""

EXISTS = "is there already"
APPEARED = "has appeared here meanwhile"
CHANGED = "has changed here meanwhile"
DELETED = "was deleted here meanwhile"
IN_THE_WAY = "is a file in one place and a folder in the other"
LINK_ABOVE = "lies below a link, or something else that is no folder"

_Parts = tuple[str, ...]
_libc = ctypes.CDLL(None, use_errno=True)


class Action(Enum):
    """The change of one path."""

    ADD = "added"
    REPLACE = "changed"
    DELETE = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One path that is to change, and what it was when that was planned; None is nothing."""

    parts: _Parts
    action: Action
    is_folder: bool
    was: Fingerprint | None

    @property
    def name(self) -> str:
        """The path, relative to both folders."""
        return "/".join(self.parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes, a folder before its contents; and the reasons why some paths stay."""

    changes: tuple[Change, ...]
    blocked: tuple[Counted, ...]
    """Paths that would have changed, under the reason why they may not."""

    def files(self, action: Action) -> list[str]:
        """The names of the files and links with this action."""
        return [one.name for one in self.changes if one.action is action and not one.is_folder]


@dataclass(frozen=True, slots=True)
class Applied:
    """The changes that were made. ``left`` are paths that changed between the plan and now."""

    files: int
    left: tuple[Counted, ...]


class _Tree:
    """A folder, and those below it, opened one beneath the other; the last way stays open."""

    def __init__(self, path: Path) -> None:
        self._way = [("", os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))]

    def __enter__(self) -> _Tree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, descriptor in self._way:
            os.close(descriptor)

    def enter(self, parts: Sequence[str], mode: int | None = None) -> int:
        """A descriptor of that folder, which stays this object's; made if there is a ``mode``.

        Raises FileNotFoundError, NotADirectoryError (also for a link), OSError.
        """
        shared = 0
        for (name, _), part in zip(self._way[1:], parts, strict=False):
            if name != part:
                break
            shared += 1
        while len(self._way) > shared + 1:
            os.close(self._way.pop()[1])
        for part in parts[shared:]:
            above = self._way[-1][1]
            if mode is not None:
                with suppress(FileExistsError):
                    os.mkdir(part, mode, dir_fd=above)
            self._way.append((part, os.open(part, _FOLDER, dir_fd=above)))
        return self._way[-1][1]

    def look(self, parts: _Parts) -> Fingerprint | None:
        """The fingerprint of that path; None for nothing. Raises NotADirectoryError as `enter`."""
        try:
            return _look(self.enter(parts[:-1]), parts[-1])
        except FileNotFoundError:
            return None

    def every(self, parts: _Parts = ()) -> Iterator[tuple[_Parts, Fingerprint]]:
        """Every path, a folder before its contents, sorted by name."""
        folder = self.enter(parts)
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            below = (*parts, name)
            seen = self.look(below)
            if seen is None:
                continue
            yield below, seen
            if stat.S_ISDIR(seen.mode):
                yield from self.every(below)


def _look(folder: int, name: str) -> Fingerprint:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    is_link = stat.S_ISLNK(status.st_mode)
    return Fingerprint.of(status, os.readlink(name, dir_fd=folder) if is_link else "")


def plan(
    source: Path,
    target: Path,
    *,
    wanted: Callable[[_Parts], bool],
    force: bool,
    seen: Mapping[str, Fingerprint] | None = None,
    deletions: bool = False,
) -> Plan:
    """The changes that make ``target`` hold the files of ``source``.

    ``wanted`` selects paths. ``seen`` is the content of ``target`` when the work began; None means
    that it was empty. ``force`` replaces files that were there before, or have changed since.
    ``deletions``: a path that was seen and is not in ``source`` is to be deleted. Raises OSError.
    """
    with _Tree(source) as ours, _Tree(target) as theirs:
        planning = _Planning(ours, theirs, seen, force)
        came: set[str] = set()
        for parts, comes in ours.every():
            came.add("/".join(parts))
            if wanted(parts):
                planning.arrival(parts, comes)
        if deletions and seen is not None:
            for name, was in reversed(list(seen.items())):
                parts = tuple(name.split("/"))
                if name not in came and wanted(parts) and not _could_not_come(was):
                    planning.deletion(parts, was)
    return Plan(tuple(planning.changes), tuple(planning.blocked))


class _Planning:
    """The changes planned so far, from ``ours`` to ``theirs``."""

    def __init__(
        self, ours: _Tree, theirs: _Tree, seen: Mapping[str, Fingerprint] | None, force: bool
    ) -> None:
        self.changes: list[Change] = []
        self.blocked = Counts()
        self._ours, self._theirs, self._seen, self._force = ours, theirs, seen, force

    def arrival(self, parts: _Parts, comes: Fingerprint) -> None:
        """Plan the change for a path of ``ours``, if it needs one."""
        name = "/".join(parts)
        try:
            here = self._theirs.look(parts)
        except NotADirectoryError:
            self.blocked.add(LINK_ABOVE, name)
            return
        is_folder = stat.S_ISDIR(comes.mode)
        if here is not None and is_folder != stat.S_ISDIR(here.mode):
            self.blocked.add(IN_THE_WAY, name)
        elif is_folder:
            was = None if self._seen is None else self._seen.get(name)
            # A folder that was deleted here meanwhile is made anew only for a file in it.
            if here is None and (was is None or self._force):
                self.changes.append(Change(parts, Action.ADD, True, None))
        elif here is None or not _same(self._ours, self._theirs, parts, comes, here):
            self._file(parts, name, here)

    def _file(self, parts: _Parts, name: str, here: Fingerprint | None) -> None:
        was = None if self._seen is None else self._seen.get(name)
        reason = "" if self._force else _in_the_way(here, was, self._seen is not None)
        if reason:
            self.blocked.add(reason, name)
            return
        action = Action.ADD if here is None else Action.REPLACE
        self.changes.append(Change(parts, action, False, here))

    def deletion(self, parts: _Parts, was: Fingerprint) -> None:
        """Plan the deletion of a path of ``theirs``, which ``was`` there and did not come back."""
        try:
            here = self._theirs.look(parts)
        except NotADirectoryError:
            return
        if here is None:
            return
        is_folder = stat.S_ISDIR(here.mode)
        if is_folder != stat.S_ISDIR(was.mode) or not (self._force or is_folder or here == was):
            self.blocked.add(CHANGED, "/".join(parts))
            return
        self.changes.append(Change(parts, Action.DELETE, is_folder, here))


def _in_the_way(here: Fingerprint | None, was: Fingerprint | None, looked_before: bool) -> str:
    """Why a file may not replace ``here``, where ``was`` was before; empty if it may. Pure."""
    if not looked_before:
        return EXISTS if here is not None else ""
    if here == was:
        return ""
    if here is None:
        return DELETED
    return APPEARED if was is None else CHANGED


def _could_not_come(was: Fingerprint) -> bool:
    """Whether it is a link that the outputs' tar leaves out, so that its absence means nothing."""
    return was.target.startswith("/") or ".." in was.target.split("/")


def _same(ours: _Tree, theirs: _Tree, parts: _Parts, comes: Fingerprint, here: Fingerprint) -> bool:
    """Whether both are the same file or link. Its time does not count."""
    # What is unpacked can always be read by its owner, and has no setuid, setgid or sticky bit.
    same_mode = stat.S_ISLNK(comes.mode) or (comes.mode ^ here.mode) & 0o377 == 0
    if stat.S_IFMT(comes.mode) != stat.S_IFMT(here.mode) or not same_mode:
        return False
    if stat.S_ISLNK(comes.mode):
        return comes.target == here.target
    if comes.size != here.size or not stat.S_ISREG(comes.mode):
        return False
    with (
        _Opened(ours.enter(parts[:-1]), parts[-1]) as one,
        _Opened(theirs.enter(parts[:-1]), parts[-1]) as other,
    ):
        while data := os.read(one.fd, _CHUNK):
            if data != os.read(other.fd, len(data)):
                return False
    return True


@dataclass(slots=True)
class _Opened:
    """A file, open to be read, for a ``with``."""

    folder: int
    name: str
    fd: int = -1

    def __enter__(self) -> _Opened:
        self.fd = os.open(self.name, _READ, dir_fd=self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def apply(source: Path, target: Path, planned: Plan) -> Applied:
    """Make the planned changes: files are moved from ``source`` to ``target``.

    A path that has changed since the plan was made stays as it is, and is counted. Raises OSError
    if ``target`` can't be written.
    """
    files = 0
    left = Counts()
    times: list[tuple[_Parts, int]] = []
    with _Tree(source) as ours, _Tree(target) as theirs:
        for change in planned.changes:
            parts = change.parts
            try:
                if theirs.look(parts) != change.was:
                    left.add(CHANGED, change.name)
                    continue
                if change.action is Action.DELETE:
                    _delete(theirs.enter(parts[:-1]), parts[-1], change.is_folder)
                elif change.is_folder:
                    status = os.fstat(ours.enter(parts))
                    mode = stat.S_IMODE(status.st_mode)
                    os.fchmod(theirs.enter(parts, mode), mode)
                    times.append((parts, status.st_mtime_ns))
                else:
                    # The folders above it are made, too, if the plan does not name them.
                    folder = theirs.enter(parts[:-1], 0o777)
                    _move(ours.enter(parts[:-1]), folder, parts[-1], change.was is not None)
                files += not change.is_folder
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                left.add(CHANGED, change.name)
        # Last, because a folder's time changes with each file that is moved into it.
        for parts, time in reversed(times):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.utime(theirs.enter(parts), ns=(time, time))
        to_disk(target)
    return Applied(files, tuple(left))


def to_disk(folder: Path) -> None:
    """Have the folder's whole file system on its disk. Raises OSError, also for an earlier failure.

    One syncfs(2) and not an fsync(2) a file: of 10,000 files each would be a commit of its own.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def _delete(folder: int, name: str, is_folder: bool) -> None:
    if not is_folder:
        os.unlink(name, dir_fd=folder)
        return
    # A file that is still in it was excluded, or has come meanwhile: the folder stays.
    with suppress(OSError):
        os.rmdir(name, dir_fd=folder)


def _move(source: int, target: int, name: str, replace: bool) -> None:
    """Raises FileExistsError if ``replace`` is not asked for, and something is there."""
    try:
        if replace:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        else:
            # rename would overwrite; link does not.
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            os.unlink(name, dir_fd=source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return
    part = f".{name[:200]}.{secrets.token_hex(4)}.part" if replace else name
    _copy(source, target, name, part)
    if replace:
        try:
            os.rename(part, name, src_dir_fd=target, dst_dir_fd=target)
        except OSError:
            os.unlink(part, dir_fd=target)
            raise
    os.unlink(name, dir_fd=source)


def _copy(source: int, target: int, name: str, part: str) -> None:
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    times = (status.st_mtime_ns, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), part, dir_fd=target)
        os.utime(part, ns=times, dir_fd=target, follow_symlinks=False)
        return
    made = os.open(part, _MAKE, 0o600, dir_fd=target)
    try:
        with os.fdopen(made, "wb", buffering=0) as file, _Opened(source, name) as ours:
            while data := os.read(ours.fd, _CHUNK):
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
            os.fchmod(made, stat.S_IMODE(status.st_mode))
            os.utime(made, ns=times)
    except BaseException:
        os.unlink(part, dir_fd=target)
        raise
