"""Inputs, packed into the plain tar that the guest gets as a read-only disk.

An input appears in the working folder under its last component; one that ends in ``.`` or ``..``
brings its contents, as ``cp -r`` has it. What a link could smuggle in is not packed: links are kept
as links, and an input that is itself a link brings what it leads to, which for an input of a job
file must lie in the file's own folder. From there on each folder is opened beneath the one before,
without following links, so that nobody who changes them meanwhile leads us elsewhere.

The order is sorted and owners are 0, so the same inputs make the same bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from wgcell.cell.counts import Counted, Counts, shown
from wgcell.cell.excludes import IGNORE_FILE, LARGEST_IGNORE_FILE, Excludes
from wgcell.errors import InputFileError, StateError

__all__ = [
    "MOST_BYTES",
    "MOST_MEMBERS",
    "Input",
    "Seen",
    "Survey",
    "check",
    "opened",
    "pack",
]

MOST_BYTES = 16 * 2**30
"""Bytes of the inputs' tar, if the caller does not say: their contents, and a header for each."""
MOST_MEMBERS = 1_000_000
_DEEPEST = 256
"""Folders within each other; a descriptor is held for each."""
_LONGEST_NAME = 4000
"""Bytes of a path; below Linux's PATH_MAX, with the guest's own folders before it."""
_MOST_NAMED = 20
"""Unreadable inputs named in one error."""
_SECTOR = 512
_CHUNK = 1 << 20

_BENEATH = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _BENEATH

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
LEADS_OUT = "a link that leads out of its input, kept as a link"


@dataclass(frozen=True, slots=True)
class Input:
    """One input: a file, a folder, or a folder's contents."""

    path: Path
    """Absolute."""
    contents: bool = False
    """Whether the folder's contents are meant, and not the folder under its name."""
    beneath: Path | None = None
    """The folder it must lie in, whatever links are on its way; None is anywhere."""

    @staticmethod
    def of(text: str | os.PathLike[str], anchor: Path, beneath: Path | None = None) -> Input:
        """The input that ``text`` names, relative to ``anchor``, an absolute folder."""
        plain = os.fspath(text)
        last = plain.rstrip("/").rpartition("/")[2]
        contents = last in (".", "..") or not PurePosixPath(plain).parts
        return Input(anchor / plain, contents, beneath)

    def __str__(self) -> str:
        return f"{self.path}/." if self.contents else str(self.path)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a path was when it was looked at: enough to see later whether it has changed."""

    mode: int
    size: int
    inode: int
    changed: int
    """Nanoseconds since 1970: the time of the last change to content, mode or owner."""
    target: str = ""
    """Of a symbolic link."""

    @staticmethod
    def of(status: os.stat_result, target: str = "") -> Seen:
        """The relevant part of ``status``."""
        # A folder's size and times change with what is in it.
        size, changed = (
            (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_ctime_ns)
        )
        return Seen(status.st_mode, size, status.st_ino, changed, target)


@dataclass(frozen=True, slots=True)
class Survey:
    """What the inputs are, before anything has started."""

    files: int
    bytes: int
    """Of the tar they will be."""
    left_out: tuple[Counted, ...]
    """Sockets, pipes and devices."""
    links_out: tuple[Counted, ...]
    """Links kept as links, that may lead nowhere in the guest."""
    excluded: int
    """Files and folders left out by a pattern, what is in a folder not counted."""
    seen: Mapping[str, Seen] = field(repr=False)
    """Each path in the working folder, and what it was; empty unless asked for."""
    kept_here: Callable[[str], bool] = field(repr=False)
    """Whether a pattern excludes this path in the working folder, or a folder above it."""
    links: frozenset[tuple[str, str]] = field(repr=False)
    """Those of ``links_out``, each with its target: they need no mention if they come back."""


def check(
    inputs: Sequence[Input],
    most_bytes: int = MOST_BYTES,
    excludes: Sequence[str] = (),
    *,
    remember: bool = False,
) -> Survey:
    """Look at every input before anything starts.

    ``excludes`` are patterns in gitignore's syntax, relative to the working folder; ``remember``
    fills `Survey.seen`. Raises `InputFileError` for all inputs together that are missing or
    unreadable, or as `pack` does.
    """
    walk = _Walk(Excludes(excludes, "--exclude"))
    budget = _Budget(most_bytes)
    files = 0
    seen: dict[str, Seen] = {}
    for found in walk.all(inputs):
        regular = stat.S_ISREG(found.status.st_mode)
        budget.add(found.path, found.status.st_size if regular else 0, found.name, found.target)
        if regular:
            files += 1
            if not os.access(found.base, os.R_OK, dir_fd=found.folder, effective_ids=True):
                walk.fail(found.path, os.strerror(errno.EACCES))
        if remember:
            seen[found.name] = Seen.of(found.status, found.target)
    walk.finish()
    return Survey(
        files=files,
        bytes=budget.spent,
        left_out=tuple(walk.left_out),
        links_out=tuple(walk.links_out),
        excluded=walk.excluded,
        seen=seen,
        kept_here=walk.keeps_here,
        links=frozenset(walk.links),
    )


def pack(
    inputs: Sequence[Input],
    destination: Path,
    most_bytes: int = MOST_BYTES,
    excludes: Sequence[str] = (),
) -> int:
    """Write the inputs' tar to ``destination`` (made anew, mode 0600); return its bytes.

    Raises `InputFileError` for an input that is missing, unreadable, in a circle of links, out of
    the folder it must lie in, changed while it is read, or over ``most_bytes`` together;
    `StateError` if the tar can't be written. Nothing is left at ``destination`` after an error.
    """
    try:
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StateError(f"can't write {destination}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            # An input may hold the cell's own folder, and with it the tar that is being written.
            own = destination.parent.stat()
            walk = _Walk(Excludes(excludes, "--exclude"), (own.st_dev, own.st_ino))
            _write(walk, inputs, file, _Budget(most_bytes))
            size = file.seek(0, os.SEEK_END)
            size += -size % _SECTOR
            file.truncate(size)
        return size
    except BaseException as error:
        destination.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StateError(f"can't write {destination}: {error.strerror or error}") from None
        raise


class _Budget:
    """The bytes of a tar, added up before they are written."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.spent = tarfile.RECORDSIZE  # the end mark, and its padding

    def add(self, path: str, size: int, *names: str) -> None:
        """One more member, with its names. Raises `InputFileError` at the one over the limit."""
        self.spent += _SECTOR + _padded(size)
        for name in names:
            if len(name) >= tarfile.LENGTH_NAME / 4:  # a character is at most four bytes
                self.spent += _SECTOR + _padded(4 * len(name) + 1)
        if self.spent > self._most:
            raise InputFileError(
                f"inputs are over the limit at {shown(path)}: together they take more than the "
                f"{self._most} bytes of the cell's disk",
                hint="give it more with --disk, or leave some out with --exclude",
            )


def _padded(size: int) -> int:
    return size + -size % _SECTOR


@dataclass(frozen=True, slots=True)
class _Found:
    """One member to be: where it is, beneath which open folder, and under which name it goes."""

    folder: int
    base: str
    name: str
    path: str
    status: os.stat_result
    target: str = ""


class _Walk:
    """One pass over all inputs, and what it met."""

    def __init__(self, excludes: Excludes, apart: tuple[int, int] | None = None) -> None:
        """``apart`` is the device and inode of a folder that is not taken along."""
        self._excludes = excludes
        self._apart = apart
        self._failures: dict[str, list[str]] = {}
        self._tops: dict[str, Input] = {}
        self._count = 0
        self.left_out = Counts()
        self.links_out = Counts()
        self.links: set[tuple[str, str]] = set()
        self._places: list[_Place] = []
        self.excluded = 0

    def fail(self, path: str, reason: str) -> None:
        """An input that can't be taken; `finish` raises for all of them together."""
        self._failures.setdefault(reason, []).append(shown(path))

    def finish(self) -> None:
        """Raise `InputFileError` if there were failures: all of one reason in one line."""
        lines = []
        for reason, paths in self._failures.items():
            more = len(paths) - _MOST_NAMED
            names = ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"input {names}: {reason}")
        if lines:
            raise InputFileError(*lines)

    def all(self, inputs: Sequence[Input]) -> Iterator[_Found]:
        """Every member, a folder before what is in it. A folder's descriptor lives until the next.

        What can't be taken goes to `fail`. Raises `InputFileError` for what is no use to go on
        with.
        """
        for one in inputs:
            for found in self._input(one):
                self._count += 1
                if self._count > MOST_MEMBERS:
                    raise InputFileError(
                        f"inputs are over the limit at {shown(found.path)}: {MOST_MEMBERS} files",
                        hint="leave some out with --exclude",
                    )
                self._own_name(found, one)
                yield found

    def _own_name(self, found: _Found, one: Input) -> None:
        if "/" in found.name:
            return
        if found.name in self._tops:
            raise InputFileError(
                f"inputs {one} and {self._tops[found.name]} would both be /work/{shown(found.name)}"
            )
        self._tops[found.name] = one

    def _input(self, one: Input) -> Iterator[_Found]:
        path = str(one.path)
        try:
            folder, base = _opened_above(one)
        except OSError as error:
            self.fail(path, _words(error))
            return
        try:
            status = os.stat(base, dir_fd=folder, follow_symlinks=False)
            for is_kind, what in _KINDS:
                if is_kind(status.st_mode):
                    self.fail(path, f"is {what}; allowed: files and folders")
                    return
            if one.contents:
                if not stat.S_ISDIR(status.st_mode):
                    self.fail(path, os.strerror(errno.ENOTDIR))
                    return
                yield from self._below(folder, base, "", path, _Place("", _NONE))
                return
            name = one.path.name
            if not stat.S_ISDIR(status.st_mode):
                yield _Found(folder, base, name, path, status)
                return
            yield _Found(folder, base, name, path, status)
            place = _Place(name + "/", _NONE)
            yield from self._below(folder, base, name + "/", path, place)
        except OSError as error:
            self.fail(path, _words(error))
        finally:
            os.close(folder)

    def _below(
        self, above: int, base: str, prefix: str, path: str, place: _Place, depth: int = 1
    ) -> Iterator[_Found]:
        """What is in the folder ``base``; ``prefix`` is its name in the working folder."""
        if depth > _DEEPEST:
            self.fail(path, f"is more than {_DEEPEST} folders deep")
            return
        try:
            folder = os.open(base, _FOLDER, dir_fd=above)
        except OSError as error:
            self.fail(path, _words(error))
            return
        try:
            if depth == 1:
                place = _Place(place.name, _ignore_file(folder, path))
                self._places.append(place)
            with os.scandir(folder) as entries:
                every = sorted(entries, key=lambda entry: entry.name)
            for entry in every:
                yield from self._entry(folder, entry, prefix, path, place, depth)
        except OSError as error:
            self.fail(path, _words(error))
        finally:
            os.close(folder)

    def _entry(
        self,
        folder: int,
        entry: os.DirEntry[str],
        prefix: str,
        above: str,
        place: _Place,
        depth: int,
    ) -> Iterator[_Found]:
        name, path = prefix + entry.name, f"{above}/{entry.name}"
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # deleted since the folder was read: as if it had been a moment earlier
        except OSError as error:
            self.fail(path, _words(error))
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder and (status.st_dev, status.st_ino) == self._apart:
            return
        if self._excluded(name + "/" * is_folder, place):
            self.excluded += 1
            return
        for is_kind, what in _KINDS:
            if is_kind(status.st_mode):
                self.left_out.add(what, name)
                return
        if len(os.fsencode(name)) > _LONGEST_NAME:
            self.fail(path, "has too long a name")
            return
        target = ""
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(entry.name, dir_fd=folder)
            if _is_circle(folder, entry.name):
                self.fail(path, _CIRCLE)
                return
            if not _stays(name[len(place.name) :], target):
                self.links_out.add(LEADS_OUT, name)
                self.links.add((name, target))
        yield _Found(folder, entry.name, name, path, status, target)
        if is_folder:
            yield from self._below(folder, entry.name, name + "/", path, place, depth + 1)

    def keeps_here(self, name: str) -> bool:
        """Whether a pattern excludes the file ``name``, or a folder above it."""
        parts = name.split("/")
        every = ["/".join(parts[:end]) + "/" for end in range(1, len(parts))] + [name]
        # The most special place first: the contents of one input, at the top, hold all others.
        for place in sorted(self._places, key=lambda place: place.name, reverse=True):
            if name.startswith(place.name):
                return any(self._excluded(one, place) for one in every if one != place.name)
        return any(self._excluded(one, _Place("", _NONE)) for one in every)

    def _excluded(self, name: str, place: _Place) -> bool:
        verdict = self._excludes.verdict(name)
        if verdict is None:
            verdict = place.excludes.verdict(name[len(place.name) :])
        return bool(verdict)


@dataclass(frozen=True, slots=True)
class _Place:
    """An input's folder: its name in the working folder, with a slash, and its own patterns."""

    name: str
    excludes: Excludes


_NONE = Excludes((), "")
_CHANGED = "changed while it was read"
_CIRCLE = "is a symbolic link that goes in a circle"


def _words(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return _CIRCLE
    return error.strerror or str(error)


def _opened_above(one: Input) -> tuple[int, str]:
    """The open folder that ``one`` is in, and its name there, with all links resolved.

    Raises OSError, ELOOP for a circle of links, or `InputFileError` where it may not be.
    """
    # Path.resolve raises nothing for a circle since Python 3.13; realpath does, if it is strict.
    real = os.path.realpath(one.path, strict=True)
    start, parts = "/", real.strip("/").split("/")
    if one.beneath is not None:
        start = os.path.realpath(one.beneath, strict=True)
        if not Path(real).is_relative_to(start):
            raise InputFileError(
                f"input {one.path} leads out of the job file's folder, to {shown(real)}",
                hint="name a file elsewhere on the command line, with --input",
            )
        parts = list(PurePosixPath(real).relative_to(start).parts)
    if not any(parts):
        parts = ["."]
    folder = os.open(start, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | _BENEATH, dir_fd=folder)
            os.close(folder)
            folder = below
    except BaseException:
        os.close(folder)
        raise
    return folder, parts[-1]


def opened(one: Input) -> int:
    """``one``, a regular file, open for reading; it lies where it must, whatever changes meanwhile.

    Raises OSError, or `InputFileError` where it may not be.
    """
    folder, base = _opened_above(one)
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_NONBLOCK | _BENEATH, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputFileError(f"{one.path}: is not a file")
    return descriptor


def _ignore_file(folder: int, path: str) -> Excludes:
    source = shown(f"{path}/{IGNORE_FILE}")
    try:
        descriptor = os.open(IGNORE_FILE, os.O_RDONLY | os.O_NONBLOCK | _BENEATH, dir_fd=folder)
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
    """Whether a link at ``name`` in its input leads to somewhere in it. By its text alone."""
    if target.startswith("/"):
        return False
    leads_to = os.path.normpath(f"{name.rpartition('/')[0]}/./{target}".lstrip("/"))
    return leads_to != ".." and not leads_to.startswith("../")


def _write(walk: _Walk, inputs: Sequence[Input], file: BinaryIO, budget: _Budget) -> None:
    # GNU's format for long names, and not pax: busybox's tar skips pax headers, and cuts the name.
    with tarfile.TarFile(
        fileobj=file, mode="w", format=tarfile.GNU_FORMAT, copybufsize=_CHUNK
    ) as tar:
        for found in walk.all(inputs):
            tar.members = []  # type: ignore[attr-defined]  # not kept: there may be a million
            _add(tar, found, walk, budget)
        walk.finish()


def _add(tar: tarfile.TarFile, found: _Found, walk: _Walk, budget: _Budget) -> None:
    info = tarfile.TarInfo(found.name)
    info.mode = stat.S_IMODE(found.status.st_mode) & 0o777
    info.mtime = max(int(found.status.st_mtime), 0)
    if not stat.S_ISREG(found.status.st_mode):
        budget.add(found.path, 0, found.name, found.target)
        is_link = stat.S_ISLNK(found.status.st_mode)
        info.type = tarfile.SYMTYPE if is_link else tarfile.DIRTYPE
        info.linkname = found.target
        tar.addfile(info)
        return
    try:
        # O_NOFOLLOW and fstat: what was vetted as a file must still be one when it is read.
        descriptor = os.open(
            found.base, os.O_RDONLY | os.O_NONBLOCK | _BENEATH, dir_fd=found.folder
        )
    except OSError as error:
        walk.fail(
            found.path,
            _CHANGED if error.errno == errno.ELOOP else _words(error),
        )
        return
    with os.fdopen(descriptor, "rb") as source:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            walk.fail(found.path, _CHANGED)
            return
        info.size = status.st_size
        budget.add(found.path, info.size, found.name)
        try:
            tar.addfile(info, source)
        except OSError as error:
            if "end of data" in str(error):
                raise InputFileError(
                    f"input {shown(found.path)} shrank while it was read"
                ) from None
            raise
