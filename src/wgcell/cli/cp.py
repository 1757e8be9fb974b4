"""``wgcell cp``: files into a cell that runs, and out of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, cast

import typer

from wgcell.cell import changes, outputs
from wgcell.cell.archive import Unpacked
from wgcell.cell.copying import Copy, Stopped, literal
from wgcell.cell.counts import shown
from wgcell.cell.folder import Folder
from wgcell.cell.inputs import Input
from wgcell.cell.packing import write
from wgcell.cli import completion
from wgcell.cli.cells import StateDir, named
from wgcell.cli.terminal import clean, console, warn
from wgcell.errors import InputError, StateError
from wgcell.home import expanded

__all__ = ["cp"]

_MORE = 4 << 30
"""Bytes that a copy may have beyond the cell's scratch disk: files of the image's."""
_LONG = 1.0
"""Seconds after which a copy says how far it is."""
_STDIO = "-"
_Place = Annotated[str, typer.Argument(metavar="PLACE", autocompletion=completion.places)]


@dataclass(frozen=True, slots=True)
class _Inside:
    """A path in a cell."""

    cell: str
    path: str


def cp(
    source: _Place,
    target: _Place,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Let it overwrite what is there.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Copy files: wgcell cp CELL:PATH PATH, or wgcell cp PATH CELL:PATH

    A folder goes with all that is in it; of DIR/. only what is in it. What is copied to a folder
    that is there goes into it; otherwise the last part of the target is its new name. A PATH of
    - is a tar, on standard output or input. In a cell, paths are relative to /work.

    Out of a cell everything comes that a tar can hold and that leads nowhere else: no device, no
    link that points out of what is copied, and nothing is overwritten without --force. It lands
    when all of it has come.
    """
    one, other = _place(source), _place(target)
    if isinstance(one, _Inside) == isinstance(other, _Inside):
        raise InputError(
            f"command line: {source} and {target} are both "
            + ("in cells" if isinstance(one, _Inside) else "here"),
            hint="one of them is CELL:PATH; of a file here with a colon in its name, ./NAME",
        )
    if isinstance(one, _Inside):
        _out(named(one.cell, state_dir), one.path, str(other), force=force)
    elif isinstance(other, _Inside):
        _in(named(other.cell, state_dir), one, other.path)


def _place(text: str) -> str | _Inside:
    cell, colon, path = text.partition(":")
    if not colon or "/" in cell or not cell:
        return text
    return _Inside(cell, path or ".")


# Into a cell.


def _in(cell: Folder, source: str, path: str) -> None:
    with _copying(cell) as copy:
        if source == _STDIO:
            copy.send_tar(cast(BinaryIO, sys.stdin.buffer), path)
            return
        one = Input.of(_expanded(source), Path.cwd())
        if not os.path.lexists(one.path):
            raise InputError(f"{source}: {os.strerror(2)}")
        if copy.is_folder(path):
            copy.send((one,), path)
            return
        above, _, name = path.rstrip("/").rpartition("/")
        if not name or name in (".", "..") or (path.endswith("/") and not one.path.is_dir()):
            raise StateError(f"{cell.id}: there is no folder {path} in it")
        renamed = Input(one.path, name=name)
        copy.send((renamed,), above or ("/" if path.startswith("/") else "."))


def _expanded(text: str) -> str:
    """A path with its ``~``; a last ``/.`` has a meaning, which a Path does not keep."""
    return str(expanded(Path(text))) + text[len(text.rstrip("/.")) :] if text[:1] == "~" else text


# Out of a cell.


def _out(cell: Folder, path: str, target: str, *, force: bool) -> None:
    name = PurePosixPath(path).name
    contents = name in ("", ".", "..") or path.rstrip("/").endswith("/.")
    asked = "." if contents else literal(name)
    if target == _STDIO:
        if sys.stdout.isatty():
            raise InputError("command line: a tar is not for a terminal", hint="… | tar t")
        with _part(Path(tempfile.gettempdir())) as part:
            _fetch(cell, path, part, asked)
            inside = Input(part, contents=True) if contents else Input(part / name)
            write((inside,), cast(BinaryIO, _Stdout()), ignore_files=False)
        return
    here = expanded(Path(target)).absolute()
    into = here if contents or here.is_dir() else here.parent
    last = name if here.is_dir() else here.name
    if target.endswith("/") and not here.is_dir():
        raise InputError(f"{target}: there is no such folder")
    if not here.parent.is_dir():
        raise InputError(f"{here.parent}: there is no such folder")
    with _part(into if into.is_dir() else into.parent) as part:
        _fetch(cell, path, part, asked)
        with _undisturbed():
            if contents:
                part.chmod(0o777 & ~_umask())
                _land(part, into, ".", force=force)
            else:
                if last != name:
                    (part / name).rename(part / last)
                _land(part, into, last, force=force)


def _fetch(cell: Folder, path: str, part: Path, asked: str) -> None:
    """The files of ``path``, whole, in the folder ``part``. Raises StateError."""
    resources = (cell.read("job.json") or {}).get("resources")
    disk = resources.get("disk") if isinstance(resources, dict) else None
    most = (disk if isinstance(disk, int) else 0) + _MORE
    with _copying(cell) as copy:
        unpacked = asyncio.run(_fetched(copy, path, part, asked, most))
    why = unpacked.stopped or "; ".join(map(str, unpacked.refusals))
    if why or unpacked.missing:
        why = why or "; ".join(map(str, unpacked.left_out)) or "nothing was sent"
        raise StateError(f"{cell.id}: {shown(path)} did not come whole: {why}")
    for one in unpacked.left_out:
        warn(f"left out: {one}")


async def _fetched(copy: Copy, path: str, part: Path, asked: str, most: int) -> Unpacked:
    try:
        return await copy.fetch(path, part, (asked,), most)
    finally:
        copy.stop()


def _land(part: Path, into: Path, last: str, *, force: bool) -> None:
    """Move it to where it was asked for. Raises StateError: nothing was moved, or not all."""
    there, came = (into, part) if last == "." else (into / last, part / last)
    if not os.path.lexists(there):
        _move(came, there)
        return
    landed = outputs.land(part, into, force, (literal(last),) if last != "." else (".",))
    if not landed.whole:
        reasons = "; ".join(f"{one.member} {one.reason}" for one in landed.blocked)
        raise StateError(f"{shown(str(there))}: {reasons}", hint="--force overwrites")


def _move(came: Path, there: Path) -> None:
    """At once, whatever it is, to where nothing is. Raises StateError."""
    try:
        if came.is_dir() and not came.is_symlink():
            came.rename(there)
        else:
            # rename would replace a file that has come meanwhile; link does not.
            os.link(came, there, follow_symlinks=False)
        changes.to_disk(there.parent)
    except OSError as error:
        raise StateError(f"can't write {shown(str(there))}: {error.strerror}") from None


@contextmanager
def _part(folder: Path) -> Iterator[Path]:
    """A name in ``folder`` for what is not whole yet; deleted at the end, if it is there."""
    part = folder / f".wgcell-{secrets.token_hex(6)}.part"
    try:
        yield part
    finally:
        if os.path.lexists(part):
            shutil.rmtree(part)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class _Stdout:
    """Standard output as a tar's file."""

    def __init__(self) -> None:
        self._at = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at


# While it goes on.


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing that ends us comes between: it comes after."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _copying(cell: Folder) -> Iterator[Copy]:
    """A copy that Ctrl-C, or another end, stops; it says how far it is if it takes long."""
    progress = _Progress()
    copy = Copy(cell, progress.moved)

    def interrupt(number: int, frame: object) -> None:
        copy.stop()
        raise typer.Exit(128 + number)

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        with progress:
            yield copy
    except Stopped:
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        copy.stop()
        copy.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """Says on standard error how far a copy is, once it has taken a while."""

    def __init__(self) -> None:
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._say, daemon=True)
        self._began = time.monotonic()

    def moved(self, count: int) -> None:
        """So many bytes more have gone."""
        self._count += count

    def __enter__(self) -> None:
        if console.is_terminal:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _say(self) -> None:
        if self._over.wait(_LONG):
            return
        with contextlib.suppress(Exception), console.status("") as status:
            while not self._over.wait(0.2):
                took = time.monotonic() - self._began
                size, rate = self._count / 1e6, self._count / 1e6 / took
                status.update(clean(f"copied {size:.0f} MB, {rate:.1f} MB/s"))
