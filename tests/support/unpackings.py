"""A tar unpacked as a cell does it, behind its walls; and a stand-in for the unpacker."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from wgcell.cell import unpacking
from wgcell.cell.archive import Unpacked
from wgcell.cell.unpacking import Unpacking

WITHIN = 60.0


ASKED = ("results", "a/b/c.txt")


def unpacked(
    destination: Path,
    pieces: Iterable[bytes],
    asked: Iterable[str] = ASKED,
    disk: int = 1 << 30,
    within: float = WITHIN,
    known: frozenset[tuple[str, str]] = frozenset(),
    at_first: float = unpacking.SECONDS_AT_FIRST,
) -> Unpacked:
    """What comes of a guest's tar, as a cell unpacks it."""

    def feed(take: Callable[[memoryview], None]) -> None:
        for piece in pieces:
            take(memoryview(piece))

    async def body() -> Unpacked:
        one = await Unpacking.start(destination, tuple(asked), disk, known, at_first)
        missing.clear()
        try:
            return await one.unpacked(feed, within)
        finally:
            missing.update(one.missing)

    return asyncio.run(body())


missing: dict[str, str] = {}
"""Walls that this machine lacks, as the last `unpacked` had them."""


def tree(folder: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Everything below ``folder``: modes, times (but of folders without a member), contents."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in folder.rglob("*"):
        seen = path.lstat()
        content: bytes | str = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        time = 0 if path.is_dir() and not path.is_symlink() else int(seen.st_mtime)
        found[str(path.relative_to(folder))] = seen.st_mode, time, content
    return found


def stand_in(monkeypatch: pytest.MonkeyPatch, body: str, before: str = "") -> None:
    """Something else in the unpacker's place, ``body`` behind the same walls."""
    lines = [
        "import os, sys, time, json, socket",
        "from wgcell.cell import archive, confinement, unpacker",
        before,
        "def unpack(*_):",
        *(f"    {line}" for line in body.splitlines()),
        "archive.unpack = unpack",
        "os._exit(unpacker.main())",
    ]
    monkeypatch.setattr(unpacking, "_ARGV", (sys.executable, "-P", "-c", "\n".join(lines)))
