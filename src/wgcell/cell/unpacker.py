"""``python -m wgcell.cell.unpacker FOLDER TASK``: the outputs' tar, unpacked behind walls.

FOLDER and TASK are descriptors: the folder to unpack into, and the `Task`. The tar comes on
standard input. Two statements on standard output, the walls' and the result's, are all that this
process can say (see `wgcell.cell.unpacking_words`); `wgcell.cell.unpacking` starts and judges it.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Sequence

from wgcell.cell import archive
from wgcell.cell.confinement import Filters, confine
from wgcell.cell.counts import Counted, shown
from wgcell.cell.globs import Pattern
from wgcell.cell.unpacking_words import (
    STATEMENTS,
    TASKS,
    Confined,
    Failed,
    Refused,
    Result,
    Statement,
    Unconfined,
)

__all__ = ["main"]

_BUFFER = 1 << 18


def main() -> int:
    """Unpack, and say what came of it. Nothing that is loaded after `confine` could be found."""
    folder, task_fd = map(int, sys.argv[1:])
    with os.fdopen(task_fd, "rb") as file:
        task = TASKS.word(file.read())
    patterns = [Pattern.parse(one) for one in task.asked]
    known_links = frozenset((link.path, link.target) for link in task.known_links)
    _warm()
    try:
        confined = confine(folder, Filters(task.rooted, task.other), task.limit_bytes)
    except OSError as error:
        why = f"the unpacking could not be confined: {error.strerror or error}"
        return _say(Unconfined(why))
    if not confined.holds:
        why = "; ".join(f"{stage}: {words}" for stage, words in confined.missing.items())
        return _say(Unconfined(f"the unpacking can't be confined on this machine: {why}"))
    _say(Confined(confined.missing))
    stream = io.BufferedReader(io.FileIO(0, closefd=False), _BUFFER)
    try:
        unpacked = archive.unpack(
            *(stream, confined.root, task.limit_bytes, task.limit_members, patterns), known_links
        )
    except OSError as error:
        return _say(Failed(error.strerror or str(error)))
    return _say(_result(unpacked, patterns))


def _result(unpacked: archive.Unpacked, patterns: Sequence[Pattern]) -> Result:
    missing = set(unpacked.missing)
    return Result(
        files=unpacked.files,
        folders=unpacked.folders,
        links=unpacked.links,
        bytes=unpacked.bytes,
        refusals=_refused(unpacked.refusals),
        left_out=_refused(unpacked.left_out),
        # Places in the list, not names: a thousand outputs fit on the line.
        missing=tuple(place for place, one in enumerate(patterns) if str(one) in missing),
        stopped=unpacked.stopped,
    )


def _refused(counted: Sequence[Counted]) -> tuple[Refused, ...]:
    return tuple(Refused(one.reason, one.count, one.examples) for one in counted)


def _warm() -> None:
    """Use once what Python loads at its first use."""
    shown("\n")
    header = tarfile.TarInfo("warm")
    tarfile.TarInfo.frombuf(header.tobuf(tarfile.GNU_FORMAT), "utf-8", "surrogateescape")
    try:
        tarfile.TarInfo.frombuf(b"x" * 512, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        STATEMENTS.line(Failed(str(error)))


def _say(statement: Statement) -> int:
    data = memoryview(STATEMENTS.line(statement))
    while data:
        data = data[os.write(1, data) :]
    return 0


if __name__ == "__main__":
    # Not sys.exit: the interpreter's own end asks for more than the walls allow.
    os._exit(main())
