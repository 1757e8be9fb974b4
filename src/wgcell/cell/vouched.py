"""What a cell's record vouches for beyond its own lines: files, by their SHA-256 in an event.

Three events state digests:

- ``job``, at the beginning: of ``job.json``, and of the image's manifest, which has the digest of
  each of the image's files and is compared with them before a boot;
- ``inputs``: of the tar that the guest was given;
- ``records``, the last line but one: of every file that stays in the folder, and of the outputs as
  a whole (names, kinds, permissions and contents) as they came. Outputs that then leave for the
  caller's folder are not looked for there.

`verify` computes those of the files that are still there anew. The chain holds the events, so who
notes the last line's digest elsewhere has all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from wgcell.cell.events import first_bad
from wgcell.cell.folder import Folder
from wgcell.errors import StateError

__all__ = ["KEPT", "OUTPUTS", "Verified", "file_digest", "job_digests", "record_digests", "verify"]

KEPT = ("job.json", "result.json", "stdout.log", "stderr.log", "console.log", "rogue.pcapng")
"""Files that are whole by the cell's end, those that there are."""
OUTPUTS = "outputs"
_LONGEST_LINE = 1 << 20


class _Landing(TypedDict, total=False):
    leave_for: str
    """The folder of the caller's that the outputs leave for."""


class FileDigest(TypedDict):
    """Of a plain file: SHA-256 in hexadecimal, and its length."""

    sha256: str
    bytes: int


class TreeDigest(_Landing):
    """Of all that is below a folder: SHA-256 in hexadecimal, and how much it is."""

    sha256: str
    files: int
    bytes: int


class Unread(_Landing):
    """Why there is no digest."""

    error: str


class Records(TypedDict):
    """The fields of the event ``records``."""

    files: dict[str, FileDigest | Unread]
    outputs: TreeDigest | Unread | None


def file_digest(path: Path) -> FileDigest:
    """``sha256`` (hexadecimal) and ``bytes`` of a plain file. Raises OSError; follows no link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:  # noqa: PTH123  # a descriptor
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "Not a plain file", str(path))
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": os.fstat(fd).st_size,
        }


def _entries(folder: Path, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below ``folder``, its path from there; in the order of the names' bytes."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        yield below + entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(folder / entry.name, f"{below}{entry.name}/")


def tree_digest(folder: Path) -> TreeDigest:
    """``sha256``, ``files`` and ``bytes`` of all that is below a folder. Raises OSError.

    The digest is of a line each, in order: kind and permissions (octal), the file's digest or the
    link's target, its path; with a NUL after each field.
    """
    whole = hashlib.sha256()
    files = size = 0
    for path, entry in _entries(folder):
        mode = entry.stat(follow_symlinks=False).st_mode
        content = b""
        if stat.S_ISREG(mode):
            found = file_digest(Path(entry.path))
            files, size = files + 1, size + found["bytes"]
            content = found["sha256"].encode()
        elif stat.S_ISLNK(mode):
            content = os.fsencode(Path(entry.path).readlink())
        whole.update(b"%o\0%s\0%s\0" % (mode, content, os.fsencode(path)))
    return {"sha256": whole.hexdigest(), "files": files, "bytes": size}


def job_digests(folder: Path, image: Path) -> dict[str, str]:
    """The fields of the event ``job``; ``image`` is the image's folder. Raises StateError."""
    try:
        return {
            "sha256": file_digest(folder / "job.json")["sha256"],
            "image": image.name,
            "image_sha256": file_digest(image / "manifest.json")["sha256"],
        }
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}") from error


def record_digests(folder: Path) -> Records:
    """The fields of the event ``records``: each file of `KEPT` that exists, and the outputs.

    A file that can't be read has an error in place of its digest. Reads all of it: not for an event
    loop.
    """
    files: dict[str, FileDigest | Unread] = {}
    for name in KEPT:
        with contextlib.suppress(FileNotFoundError):
            try:
                files[name] = file_digest(folder / name)
            except FileNotFoundError:
                raise
            except OSError as error:
                files[name] = {"error": str(error.strerror)}
    outputs: TreeDigest | Unread | None = None
    if (folder / OUTPUTS).is_dir():
        try:
            outputs = tree_digest(folder / OUTPUTS)
        except (OSError, RecursionError) as error:
            outputs = {"error": str(error)}
    return {"files": files, "outputs": outputs}


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a verification. ``wrong`` is empty if all digests are right."""

    count: int
    head: str
    """SHA-256 of the last line: who notes it elsewhere can see that lines were cut off."""
    wrong: tuple[str, ...]
    covered: tuple[str, ...]
    missing: tuple[str, ...]
    """The limits of this record, in words."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    def lines(self) -> list[str]:
        """For people."""
        if self.wrong:
            return [f"wrong: {words}" for words in self.wrong]
        covered = ", ".join(self.covered) or "no file"
        return [
            f"whole: {self.count} events, and by their digests {covered}",
            *(f"not shown: {words}" for words in self.missing),
            f"sha256 of the last line: {self.head}",
        ]


def verify(cell: Folder) -> Verified:
    """Check a cell's chain, and the files that it vouches for.

    Raises StateError if there are no events to be read.
    """
    try:
        with cell.open("events.jsonl") as file:
            lines = list(iter(lambda: file.readline(_LONGEST_LINE), b""))
    except OSError as error:
        raise StateError(f"{cell.path / 'events.jsonl'}: {error.strerror}") from error
    if not lines:
        return Verified(0, "", ("there is no line at all",), (), ())
    if bad := first_bad(lines):
        return Verified(len(lines), "", (f"line {bad[0]}: {bad[1]}",), (), ())
    events = [json.loads(line) for line in lines]
    head = hashlib.sha256(lines[-1].rstrip(b"\n")).hexdigest()
    wrong: list[str] = []
    covered: list[str] = []
    missing: list[str] = []
    for number, event in enumerate(events, start=1):
        if event.get("event") == "job":
            _check(number, "job.json", event, _found(cell.path / "job.json"), wrong, covered)
            covered.append(f"the image {event.get('image')} (its manifest's digest)")
        elif event.get("event") == "inputs":
            covered.append("the inputs (the digest of what the guest was given)")
        elif event.get("event") == "records":
            _check_records(number, event, cell.path, wrong, covered, missing)
    if events[-1].get("event") != "ended":
        words = "the record has no end: the cell still runs, died, or lines were cut off"
        (wrong if (cell.path / "result.json").exists() else missing).append(words)
    if not any(event.get("event") == "records" for event in events):
        missing.append("the files' digests: no event states them")
    return Verified(len(lines), head, tuple(wrong), tuple(dict.fromkeys(covered)), tuple(missing))


def _check_records(
    number: int,
    event: Mapping[str, object],
    folder: Path,
    wrong: list[str],
    covered: list[str],
    missing: list[str],
) -> None:
    stated = event.get("files")
    for name in KEPT:
        # Whatever the event says, only the names of wgcell's own files are opened.
        if isinstance(stated, dict) and isinstance(stated.get(name), dict):
            _check(number, name, stated[name], _found(folder / name), wrong, covered)
        elif (folder / name).exists():
            wrong.append(f"line {number}: {name} is there, and was not when the cell ended")
    outputs = event.get("outputs")
    if isinstance(outputs, dict) and "leave_for" in outputs:
        # Some or all were moved: the rest here proves nothing.
        missing.append(f"the outputs: they were for {outputs['leave_for']}")
    elif isinstance(outputs, dict):
        try:
            found = str(tree_digest(folder / OUTPUTS)["sha256"])
        except (OSError, RecursionError) as error:
            found = str(error)
        _check(number, f"{OUTPUTS}/", outputs, found, wrong, covered)


def _found(path: Path) -> str:
    try:
        return str(file_digest(path)["sha256"])
    except OSError as error:
        return str(error.strerror)


def _check(
    number: int,
    name: str,
    stated: Mapping[str, object],
    found: str,
    wrong: list[str],
    covered: list[str],
) -> None:
    if stated.get("sha256") == found:
        covered.append(name)
    else:
        wrong.append(f"line {number}: {name} is not as it states: {found}")
