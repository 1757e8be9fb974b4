"""A cell's folder: where its records are, who may read them, and whether the cell still lives.

``$XDG_STATE_HOME/wgcell/cells/<name>-<6 hex>/``, mode 0700. The supervisor holds a lock on the file
``lock`` for as long as it lives, and the kernel drops the lock however the supervisor dies. So a
cell with no lock and no ``result.json`` has died without ending.

A state folder may be shared, and root reads those of others. So a folder is a cell's only if its
name has that form, no link is followed, no pipe is waited for, and every reading is bounded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wgcell import atomic
from wgcell.errors import StateError
from wgcell.home import home

__all__ = [
    "CappedLog",
    "Folder",
    "all_cells",
    "check_writable",
    "create",
    "find",
    "state_folder",
    "state_folders",
]

LOG_CAP = 16 * 1024 * 1024
"""Bytes kept of each log: what a guest prints must not fill the provider's disk."""

_LARGEST_RECORD = 16 << 20
_LONGEST_EVENT = 1 << 20
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}-[0-9a-f]{6}", re.ASCII)
_HINT = "make the folder writable, or choose another with --state-dir"
_MOST_LISTED = 20
_STANDS_STILL = {"frozen": "frozen", "paused": "paused", "unpaused": ""}
"""The machine's status by an event, whatever its cell's state is."""


def state_folder(chosen: Path | None = None) -> Path:
    """The folder of all cells: ``chosen``, WGCELL_STATE_DIR or the XDG state folder. Raises
    HostError if there is neither, and no home folder."""
    if chosen is not None:
        return chosen.absolute()
    if named := os.environ.get("WGCELL_STATE_DIR"):
        return Path(named).absolute()
    base = os.environ.get("XDG_STATE_HOME") or str(home() / ".local/state")
    return Path(base).absolute() / "wgcell" / "cells"


def state_folders(chosen: Path | None = None) -> tuple[Path, ...]:
    """Every folder that the user may ask about: for root, unless one is named, all users'."""
    own = state_folder(chosen)
    if chosen is not None or os.environ.get("WGCELL_STATE_DIR") or os.geteuid() != 0:
        return (own,)
    homes = dict.fromkeys(user.pw_dir for user in pwd.getpwall() if user.pw_dir.startswith("/"))
    theirs = [Path(place, ".local/state/wgcell/cells") for place in homes]
    return tuple(dict.fromkeys((own, *(place for place in theirs if place.is_dir()))))


@dataclass(frozen=True, slots=True)
class Folder:
    """One cell's folder; ``path.name`` is the cell's id."""

    path: Path

    @property
    def id(self) -> str:
        """The cell's name and its six hexadecimal digits."""
        return self.path.name

    @property
    def name(self) -> str:
        """The cell's name, which others may have too."""
        return self.path.name.rpartition("-")[0]

    @property
    def user(self) -> str:
        """Whose it is: the account's name, or its number."""
        try:
            uid = self.path.stat(follow_symlinks=False).st_uid
        except OSError:
            return "?"
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    @property
    def started(self) -> float:
        """The time of the start, in seconds since the epoch; 0 if it is unknown."""
        return self._modified("lock")

    @property
    def ended(self) -> float | None:
        """The time of the end, in seconds since the epoch; None before it."""
        return self._modified("result.json") or None

    def _modified(self, name: str) -> float:
        try:
            return (self.path / name).stat(follow_symlinks=False).st_mtime
        except OSError:
            return 0.0

    @property
    def alive(self) -> bool:
        """Whether a supervisor holds this cell's lock."""
        try:
            with self.open("lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def hold(self) -> int:
        """Take the lock for this process's life; the descriptor must stay open.

        The file gets its name when it is locked: a process that sees it sees a cell that lives.
        """
        part = self.path / ".lock.part"
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, str(os.getpid()).encode())
        part.replace(self.path / "lock")
        return fd

    def supervisor(self) -> int | None:
        """The pid of the supervisor, if the cell is alive.

        It is a process of the folder's owner: root must not be led to signal another.
        """
        if not self.alive:
            return None
        try:
            with self.open("lock") as lock:
                pid = int(lock.read(20))
                owner = os.fstat(lock.fileno()).st_uid
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return None
        line = next((line for line in status.splitlines() if line.startswith("Uid:")), "")
        return pid if line.split()[1:2] == [str(owner)] and pid > 1 else None

    def open(self, name: str) -> BinaryIO:
        """A file of this folder, to be read. Raises OSError; no link, no pipe, no device."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self.path / name, flags)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(22, "Not a plain file", str(self.path / name))
        return os.fdopen(fd, "rb")

    def write(self, name: str, content: Mapping[str, object]) -> None:
        """Write a JSON file whole or not at all. Raises StateError."""
        self.write_bytes(name, json.dumps(content, indent=2, default=str).encode() + b"\n")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all. Raises StateError."""
        target = self.path / name
        try:
            atomic.write(target, content)
        except OSError as error:
            raise StateError(f"{target}: {error.strerror}") from error

    def discard(self, *names: str) -> None:
        """Delete files that nobody needs any more, where that can be done."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def read(self, name: str) -> dict[str, object] | None:
        """A JSON file of this folder; None if it is not there, not whole or larger than 16 MiB."""
        try:
            with self.open(name) as file:
                raw = file.read(_LARGEST_RECORD + 1)
            content = json.loads(raw) if len(raw) <= _LARGEST_RECORD else None
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def status(self) -> str:
        """In a word: an outcome, a state, ``frozen``, or ``died`` for a cell without an end."""
        if result := self.read("result.json"):
            return str(result.get("outcome", "?"))
        if not self.alive:
            return "died"
        state, stands_still = "preparing", ""
        for entry in self.recorded("state", *_STANDS_STILL):
            stands_still = _STANDS_STILL.get(str(entry["event"]), "")
            state = str(entry.get("state")) if entry["event"] == "state" else state
        return stands_still or state

    def recorded(self, *events: str) -> Iterator[dict[str, object]]:
        """The cell's events of these kinds, in order; other lines are ignored."""
        wanted = [f'"event":"{event}"'.encode() for event in events]
        with contextlib.suppress(OSError), self.open("events.jsonl") as file:
            while line := file.readline(_LONGEST_EVENT):
                if any(words in line for words in wanted):
                    with contextlib.suppress(ValueError, RecursionError):
                        entry = json.loads(line)
                        if isinstance(entry, dict) and entry.get("event") in events:
                            yield entry

    def size(self) -> int:
        """Bytes on the disk, about."""
        total = 0
        for place, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(f"{place}/{name}").st_blocks * 512
        return total

    def remove(self) -> None:
        """Delete the folder. Raises StateError while the cell lives."""
        if self.alive:
            raise StateError(f"{self.id} is running", hint=f"wgcell stop {self.id}")
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            raise StateError(
                f"{error.filename or self.path}: {error.strerror}",
                hint="delete it as the user whose cell it was",
            ) from error


def check_writable(cells: Path) -> None:
    """Make sure that cells can be kept in ``cells``. Raises StateError naming the hint."""
    try:
        cells.mkdir(parents=True, exist_ok=True, mode=0o700)
        # In a folder that is shared, a name that can be foreseen may be a link by now.
        probe = cells / f".probe-{secrets.token_hex(8)}"
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, b"wgcell")
        finally:
            os.close(fd)
            probe.unlink()
    except OSError as error:
        raise StateError(f"{error.filename or cells}: {error.strerror}", hint=_HINT) from error


def create(cells: Path, name: str) -> Folder:
    """A new folder for a cell called ``name``. Raises StateError if none can be made."""
    try:
        while True:
            path = cells / f"{name}-{secrets.token_hex(3)}"
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            return Folder(path)
    except OSError as error:
        raise StateError(f"{error.filename or cells}: {error.strerror}", hint=_HINT) from error


def all_cells(*folders: Path) -> list[Folder]:
    """Every cell's folder, oldest first."""
    found: list[Folder] = []
    for cells in folders:
        with contextlib.suppress(OSError), os.scandir(cells) as entries:
            found += [
                Folder(cells / entry.name)
                for entry in entries
                if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    return sorted((cell for cell in found if cell.started), key=lambda cell: cell.started)


def find(cells: Path | Sequence[Path], wanted: str) -> Folder:
    """The one cell whose id or name is ``wanted``, or whose id starts with it.

    Raises StateError if there is none, and if there are several, which it lists.
    """
    folders = (cells,) if isinstance(cells, Path) else tuple(cells)
    every = all_cells(*folders)
    by_rank = (
        [cell for cell in every if cell.id == wanted],
        [cell for cell in every if cell.name == wanted],
        [cell for cell in every if wanted and cell.id.startswith(wanted)],
    )
    rank = next((rank for rank in by_rank if rank), [])
    if len(rank) == 1:
        return rank[0]
    if not rank:
        raise StateError(
            f"there is no cell {wanted!r} in {', '.join(map(str, folders))}",
            hint="wgcell ps --all lists them",
        )
    now = time.time()
    lines = [
        f"{cell.id}  {cell.status()}, started {_ago(now - cell.started)} ago, in {cell.path.parent}"
        for cell in rank[: -_MOST_LISTED - 1 : -1]
    ]
    if len(rank) > _MOST_LISTED:
        lines.append(f"and {len(rank) - _MOST_LISTED} more")
    raise StateError(
        f"{wanted!r} may be any of {len(rank)} cells; the newest first:",
        *lines,
        hint="name one of them by its id",
    )


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


class CappedLog:
    """A log that keeps the first ``cap`` bytes and says, once, that more came."""

    def __init__(self, path: Path, cap: int = LOG_CAP) -> None:
        self._file = path.open("ab", buffering=0)
        self._left = cap

    def write(self, data: bytes) -> None:
        """Append ``data``, or as much of it as still fits. Raises StateError: a full disk."""
        if self._left <= 0:
            return
        try:
            self._write(data[: self._left])
            self._left -= len(data)
            if self._left <= 0:
                self._write(b"\n[wgcell: the log is full, what follows is not kept]\n")
        except OSError as error:
            self._left = 0
            raise StateError(
                f"{self._file.name}: {error.strerror}",
                hint="free some space, or choose another folder with --state-dir",
            ) from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
