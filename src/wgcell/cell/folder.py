"""A cell's folder: where its records are, who may read them, and whether the cell still lives.

``$XDG_STATE_HOME/wgcell/cells/<name>-<6 hex>/``, mode 0700. The supervisor holds a lock on the file
``lock`` for as long as it lives: the kernel drops it whatever the supervisor dies of, so a cell
with no lock and no ``result.json`` is a cell that died without ending.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgcell.errors import StateError

__all__ = ["CappedLog", "Folder", "all_cells", "check_writable", "create", "find", "state_folder"]

LOG_CAP = 16 * 1024 * 1024
"""Bytes kept of each log: what a guest prints must not fill the provider's disk."""


def state_folder(chosen: Path | None = None) -> Path:
    """Where cells are kept: ``chosen``, WGCELL_STATE_DIR or the XDG state folder."""
    if chosen is not None:
        return chosen.absolute()
    if named := os.environ.get("WGCELL_STATE_DIR"):
        return Path(named).absolute()
    base = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    return Path(base).absolute() / "wgcell" / "cells"


@dataclass(frozen=True, slots=True)
class Folder:
    """One cell's folder; ``path.name`` is the cell's id."""

    path: Path

    @property
    def id(self) -> str:
        """The cell's name and its six hexadecimal digits."""
        return self.path.name

    @property
    def alive(self) -> bool:
        """Whether a supervisor holds this cell's lock."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def hold(self) -> int:
        """Take the lock for this process's life; the descriptor to keep open."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, str(os.getpid()).encode())
        return fd

    def supervisor(self) -> int | None:
        """The pid of the supervisor, if the cell is alive."""
        if not self.alive:
            return None
        try:
            return int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all. Raises StateError."""
        self.write_bytes(name, json.dumps(content, indent=2, default=str).encode() + b"\n")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all. Raises StateError."""
        target, part = self.path / name, self.path / f".{name}.part"
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except OSError as error:
            self.discard(part.name)
            raise StateError(f"{target}: {error.strerror}") from error

    def discard(self, *names: str) -> None:
        """Delete files that nobody needs any more, where that can be done."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this folder; None if it is not there or not whole."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def status(self) -> str:
        """In a word: an outcome, a state, or ``died`` for a cell that never wrote its end."""
        if result := self.read("result.json"):
            return str(result.get("outcome", "?"))
        if not self.alive:
            return "died"
        state = "preparing"
        with contextlib.suppress(OSError):
            for line in (self.path / "events.jsonl").read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if entry.get("event") == "state":
                        state = str(entry.get("state"))
        return state

    def remove(self) -> None:
        """Delete the folder. Raises StateError while the cell lives."""
        if self.alive:
            raise StateError(f"{self.id} is running", mend=f"wgcell stop {self.id}")
        shutil.rmtree(self.path)


def check_writable(cells: Path) -> None:
    """Make sure that cells can be kept in ``cells``. Raises StateError naming the mend."""
    mend = "make the folder writable, or choose another with --state-dir"
    try:
        cells.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = cells / f".probe-{os.getpid()}"
        probe.write_bytes(b"wgcell")
        probe.unlink()
    except OSError as error:
        raise StateError(f"{error.filename or cells}: {error.strerror}", mend=mend) from error


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
        raise StateError(
            f"{error.filename or cells}: {error.strerror}",
            mend="make the folder writable, or choose another with --state-dir",
        ) from error


def all_cells(cells: Path) -> list[Folder]:
    """Every cell's folder, oldest first."""
    try:
        found = [entry for entry in cells.iterdir() if (entry / "lock").exists()]
    except OSError:
        return []
    return [Folder(entry) for entry in sorted(found, key=lambda entry: entry.stat().st_mtime)]


def find(cells: Path, wanted: str) -> Folder:
    """The newest cell whose id or name is ``wanted``, or whose id starts with it.

    Raises StateError if there is none.
    """
    every = all_cells(cells)
    by_rank = (
        [cell for cell in every if cell.id == wanted],
        [cell for cell in every if cell.id.rpartition("-")[0] == wanted],
        [cell for cell in every if wanted and cell.id.startswith(wanted)],
    )
    for rank in by_rank:
        if rank:
            return rank[-1]
    raise StateError(f"there is no cell {wanted!r} in {cells}", mend="wgcell ps --all lists them")


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
                mend="free some space, or choose another folder with --state-dir",
            ) from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
