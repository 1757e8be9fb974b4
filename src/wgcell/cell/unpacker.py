"""``python -m wgcell.cell.unpacker FOLDER TASK``: the outputs' tar, unpacked behind walls.

FOLDER and TASK are descriptors: the folder to unpack into, and the task as JSON (`Task`). The tar
comes on standard input. One line of JSON on standard output says what came of it (`Result`, or
what failed), and that is all this process can say: `wgcell.cell.unpacking` starts and judges it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tarfile
from dataclasses import asdict, dataclass

from wgcell.cell import archive
from wgcell.cell.confinement import Filters, confine
from wgcell.cell.counts import shown
from wgcell.cell.globs import Pattern

__all__ = ["Task", "main"]

_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Task:
    """The order to unpack. ``limit_bytes`` bounds the contents, ``limit_members`` the members."""

    asked: tuple[str, ...]
    limit_bytes: int
    limit_members: int
    known_links: frozenset[tuple[str, str]]
    filters: Filters

    def encode(self) -> bytes:
        """As JSON, in ASCII."""
        return json.dumps(
            {
                "asked": self.asked,
                "limit_bytes": self.limit_bytes,
                "limit_members": self.limit_members,
                "known_links": sorted(self.known_links),
                "rooted": base64.b64encode(self.filters.rooted).decode(),
                "other": base64.b64encode(self.filters.other).decode(),
            }
        ).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Task:
        """The reverse of `encode`, for a task that wgcell has encoded."""
        found = json.loads(raw)
        return cls(
            asked=tuple(found["asked"]),
            limit_bytes=found["limit_bytes"],
            limit_members=found["limit_members"],
            known_links=frozenset((path, target) for path, target in found["known_links"]),
            filters=Filters(base64.b64decode(found["rooted"]), base64.b64decode(found["other"])),
        )


def main() -> int:
    """Unpack, and say what came of it. Nothing that is loaded after `confine` could be found."""
    folder, task_fd = map(int, sys.argv[1:])
    with os.fdopen(task_fd, "rb") as file:
        task = Task.decode(file.read())
    patterns = [Pattern.parse(one) for one in task.asked]
    _warm()
    try:
        confined = confine(folder, task.filters, task.limit_bytes)
    except OSError as error:
        return _say({"error": f"the unpacking could not be confined: {error.strerror or error}"})
    if not confined.holds:
        why = "; ".join(f"{stage}: {words}" for stage, words in confined.missing.items())
        return _say({"error": f"the unpacking can't be confined on this machine: {why}"})
    _say({"confined": confined.missing})
    stream = io.BufferedReader(io.FileIO(0, closefd=False), _BUFFER)
    try:
        unpacked = archive.unpack(
            *(stream, confined.root, task.limit_bytes, task.limit_members, patterns),
            task.known_links,
        )
    except OSError as error:
        return _say({"error": error.strerror or str(error), "errno": error.errno})
    missing = set(unpacked.missing)
    # Places in the list, not names: a thousand outputs fit on the line.
    places = [place for place, one in enumerate(patterns) if str(one) in missing]
    return _say({**asdict(unpacked), "missing": places})


def _warm() -> None:
    """Use once what Python loads at its first use."""
    shown("\n")
    header = tarfile.TarInfo("warm")
    tarfile.TarInfo.frombuf(header.tobuf(tarfile.GNU_FORMAT), "utf-8", "surrogateescape")
    try:
        tarfile.TarInfo.frombuf(b"x" * 512, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        json.dumps(str(error))


def _say(words: dict[str, object]) -> int:
    data = memoryview(json.dumps(words).encode() + b"\n")
    while data:
        data = data[os.write(1, data) :]
    return 0


if __name__ == "__main__":
    # Not sys.exit: the interpreter's own end asks for more than the walls allow.
    os._exit(main())
