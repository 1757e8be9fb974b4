"""A cell's files, read and written by a program: as tars, through the strict reader of them."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from wgcell.cell.folder import Folder
from wgcell.cell.tarstream import TarStream, headers
from wgcell.client.commands import Asked, Bounds, Connect, Process, TooMuch, run_to_its_end
from wgcell.client.completed import Completed
from wgcell.errors import ArchiveError, JobError, StateError
from wgcell.guest.frames import Pack, Subject, Unpack

__all__ = ["MOST_READ", "PATIENCE", "Entry", "Files"]

MOST_READ = 64 << 20
"""Bytes of a file that is read into memory, unless told otherwise."""
PATIENCE = 300.0
"""Seconds for one file, or one listing, unless told otherwise."""
_LONGEST_ERROR = 16 << 10
"""Bytes of what the guest's tar or find says."""
_AROUND = 16 << 10
"""Bytes of a tar of one file besides its content, and more: headers with a long name, the end."""
_MOST_LISTED = 8 << 20
"""Bytes of a listing."""
_LISTING = ("-mindepth", "1", "-maxdepth", "1", "-printf", r"%y %m %s %T@ %f\0")
"""find(1)'s, of GNU."""
_KINDS = {"f": "file", "d": "folder", "l": "link"}


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in a folder."""

    name: str
    kind: str
    """``file``, ``folder``, ``link`` or ``other``."""
    size: int
    """Bytes."""
    mode: int
    """Its permissions, as 0o644."""
    modified: float
    """Seconds since the epoch, by the guest's clock."""


class Files:
    """The files of one cell, with its workload's rights. Relative paths begin at /work."""

    def __init__(self, folder: Callable[[], Folder], connect: Connect) -> None:
        self._folder = folder
        self._connect = connect

    async def read(self, path: str, *, most: int = MOST_READ, timeout: float = PATIENCE) -> bytes:
        """A file's content, up to ``most`` bytes, within ``timeout`` seconds. A link is not
        followed.

        Raises StateError for a path that is no file, or a larger one; TimedOut. The guest is
        hostile: what comes may be anything of that size.
        """
        bounds = Bounds(timeout, most + _AROUND, _LONGEST_ERROR, cuts=True)
        done = await self._run(path, Pack(_path(path)), b"", bounds)
        try:
            return _only_file(done.stdout, most)
        except ArchiveError as error:
            said = _said(done) if done.exit_code else error.message
            raise StateError(f"{done.cell}: {path}: {said}") from None

    async def write(
        self, path: str, data: bytes | str, *, mode: int = 0o644, timeout: float = PATIENCE
    ) -> None:
        """Make a file with that content, or replace it; the folder must be there.

        A text is written as UTF-8. Raises StateError with the guest's own words if it can't be
        written; TimedOut.
        """
        place = PurePosixPath(_path(path))
        if place.name in ("", ".."):
            raise JobError(f"{path!r}: no file can be called so")
        content = data.encode() if isinstance(data, str) else bytes(data)
        raw = _tar_of(place.name, content, mode)
        bounds = Bounds(timeout, _LONGEST_ERROR, _LONGEST_ERROR)
        done = await self._run(path, Unpack(str(place.parent)), raw, bounds)
        if done.exit_code:
            raise StateError(f"{done.cell}: {path}: {_said(done)}")

    async def list(self, path: str = ".", *, timeout: float = PATIENCE) -> tuple[Entry, ...]:
        """What stands in a folder, by name. Uses the guest's own find(1), GNU's.

        Raises StateError with its words for a path that is no folder; TimedOut.
        """
        asked = Asked.of(("find", _findable(path), *_LISTING), stdin=False)
        bounds = Bounds(timeout, _MOST_LISTED, _LONGEST_ERROR, cuts=True)
        done = await self._run(path, asked.subject(), b"", bounds)
        if done.exit_code:
            raise StateError(f"{done.cell}: {path}: {_said(done)}")
        entries = [_entry(line) for line in done.stdout.split(b"\0") if line]
        return tuple(sorted(entries, key=lambda entry: entry.name))

    async def _run(self, path: str, subject: Subject, data: bytes, bounds: Bounds) -> Completed:
        asked = Asked((path,), stdin=isinstance(subject, Unpack))
        folder = self._folder()
        try:
            process = Process(self._connect, subject)
            return await run_to_its_end(folder, process, asked, data, bounds)
        except TooMuch:
            raise StateError(f"{folder.id}: {path}: more than {bounds.most} bytes") from None


def _path(path: str) -> str:
    if not isinstance(path, str) or not path or "\0" in path:
        raise JobError(f"{path!r:.80}: no path in a cell")
    return path


def _findable(path: str) -> str:
    """A path that find(1) takes for none of its options."""
    return path if _path(path).startswith("/") else f"./{path}"


def _only_file(raw: bytes, most: int) -> bytes:
    """The content of the one file that a tar holds. Raises ArchiveError."""
    stream = TarStream(io.BytesIO(raw), len(raw) + 1)
    found: bytes | None = None
    for header in headers(stream):
        if found is not None or not header.isreg():
            raise ArchiveError("it is no plain file")
        if header.size > most:
            raise ArchiveError(f"it has {header.size} bytes, more than {most}")
        found = b"".join(stream.contents(header.size))
    if found is None:
        raise ArchiveError("there is no such file")
    return found


def _tar_of(name: str, content: bytes, mode: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(content), mode & 0o7777, int(time.time())
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(header, io.BytesIO(content))
    return raw.getvalue()


def _said(done: Completed) -> str:
    """What a program has said of its failure; hostile, and shown as one line."""
    last = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
    return last[-1][:300] if last else f"exit code {done.exit_code}"


def _entry(line: bytes) -> Entry:
    """A line of `_LISTING`. Raises StateError for one that is none."""
    fields = line.decode("utf-8", "surrogateescape").split(" ", 4)
    try:
        kind, mode, size, modified, name = fields
        return Entry(name, _KINDS.get(kind, "other"), int(size), int(mode, 8), float(modified))
    except ValueError:
        raise StateError(f"the guest's find said what it does not say: {line!r:.100}") from None
