"""What a model may ask of cells, whatever protocol it speaks.

Every limit stands here: how many cells, how much of an output is shown, and what a model may have
allowed. It can ask for a name. Only a person, with ``wgcell allow``, or a pattern that the server
was started with can grant it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from wgcell.display import one_line
from wgcell.errors import WgcellError
from wgcell.gateway.model.rules import parse_rule

__all__ = [
    "LANGUAGES",
    "LONGEST_WAIT",
    "MOST_SHOWN",
    "Access",
    "Cell",
    "Desk",
    "DeskError",
    "FileContent",
    "Output",
    "Refusal",
    "Terms",
]

MOST_SHOWN = 64 * 1024
"""Bytes of a stream or a file in one answer: a model's context is small."""
MOST_FILE = 64 << 20
"""Bytes of a file that is read at all."""
LONGEST_WAIT = 600.0
"""Seconds that a request for access may wait for a person."""
LONGEST_GRANT = 24 * 3600.0
"""Seconds that access may be asked for."""
_LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8."""
_LOOK = 0.5
"""Seconds between two looks at a cell's rules."""
_MOST_REFUSALS = 100
_TYPED = re.compile(r"[A-Za-z0-9.:/_\[\]-]+")
"""A rule that no shell reads otherwise than it is written; no ``*``, which is a person's word."""
LANGUAGES: Mapping[str, tuple[str, ...]] = {"python": ("python3", "-"), "shell": ("sh", "-s")}
"""Interpreters that read their program from standard input."""


class DeskError(Exception):
    """A request that can't be met, and why, in words for the model."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the person who started the server allows."""

    grants: tuple[str, ...] = ()
    """Patterns of rules that are granted when a model asks, as ``*.example.com:443``."""
    most_cells: int = 8
    """Cells at once."""


class Completed(Protocol):
    """What `wgcell.Completed` is, as far as it is shown."""

    @property
    def exit_code(self) -> int: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...


class Files(Protocol):
    """What `wgcell.Cell.files` is."""

    async def read(self, path: str, *, most: int = ...) -> bytes: ...
    async def write(self, path: str, data: bytes | str, *, mode: int = ...) -> None: ...


class RefusalSeen(Protocol):
    """What `wgcell.Refusal` is."""

    @property
    def what(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Rule(Protocol):
    """A rule of a running cell."""

    @property
    def rule(self) -> str: ...


class Cell(Protocol):
    """What `wgcell.Cell` is, as far as a model may use it."""

    @property
    def id(self) -> str: ...
    @property
    def files(self) -> Files: ...
    async def exec(
        self,
        *command: str,
        input: bytes | str = ...,
        timeout: float | None = ...,
        workdir: str = ...,
        most: int = ...,
    ) -> Completed: ...
    async def refusals(self, since: float = ...) -> Sequence[RefusalSeen]: ...
    async def policy(self) -> Sequence[Rule]: ...
    async def allow(
        self, rule: str, *, seconds: float | None = ..., typed: bool = ...
    ) -> object: ...


Begin = Callable[[], AbstractAsyncContextManager[Cell]]
"""Starts a cell, and ends it."""


# Answers have no slots: the SDK makes a schema of each, and would take a slot for a default value.


@dataclass(frozen=True)
class Output:
    """What a command has come to."""

    exit_code: int
    """128 and more: it was killed by the signal of that number less 128."""
    stdout: str
    stderr: str
    truncated: bool
    """Whether the command wrote more than is shown: the first bytes are here."""


@dataclass(frozen=True)
class FileContent:
    """A piece of a file."""

    content: str
    encoding: str
    """``utf-8``, or ``base64`` for a piece that is no text."""
    size: int
    """Bytes of the whole file."""
    next_offset: int | None
    """Where the next piece begins; None if this was the last one."""


@dataclass(frozen=True)
class Refusal:
    """A connection or a name that the gateway refused."""

    what: str
    rule: str
    """The rule that would allow it: ask for that with request_access. Empty: none would."""
    reason: str


@dataclass(frozen=True)
class Access:
    """What has come of a request for access."""

    granted: bool
    message: str


class Desk:
    """The cells of one session. Nobody else's can be reached."""

    def __init__(self, begin: Begin, terms: Terms, say: Callable[[str], None]) -> None:
        """``say`` shows a person a sentence, where the server was started."""
        self._begin = begin
        self._terms = terms
        self._say = say
        self._cells: dict[str, tuple[Cell, AsyncExitStack]] = {}
        self._starting = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """At the end, every cell that is left ends."""
        try:
            yield
        finally:
            stacks = [stack for _, stack in self._cells.values()]
            self._cells.clear()
            await asyncio.gather(*(stack.aclose() for stack in stacks), return_exceptions=True)

    def cell(self, name: str) -> Cell:
        """The cell of this session with that id. Raises DeskError."""
        if name not in self._cells:
            raise DeskError(f"there is no cell {name:.80}; start_cell makes one")
        return self._cells[name][0]

    def ids(self) -> list[str]:
        """The cells of this session."""
        return [*self._cells]

    async def start(self) -> str:
        """Start a cell; its id, once its tunnel is verified. Raises DeskError."""
        most = self._terms.most_cells
        if len(self._cells) + self._starting >= most:
            raise DeskError(f"there are {most} cells, which is the most; stop_cell ends one")
        self._starting += 1
        stack = AsyncExitStack()
        try:
            with _for_models():
                cell = await stack.enter_async_context(self._begin())
        finally:
            self._starting -= 1
        self._cells[cell.id] = cell, stack
        return cell.id

    async def stop(self, name: str) -> None:
        """End a cell. Raises DeskError."""
        self.cell(name)
        _, stack = self._cells.pop(name)
        with _for_models():
            await stack.aclose()

    async def run(
        self, name: str, command: Sequence[str], stdin: str, timeout: float, folder: str
    ) -> Output:
        """Run a command to its end. Raises DeskError."""
        if not command or not command[0]:
            raise DeskError("a command has at least one word")
        with _for_models():
            done = await self.cell(name).exec(
                *command, input=stdin, timeout=timeout, workdir=folder, most=MOST_SHOWN + 1
            )
        truncated = max(len(done.stdout), len(done.stderr)) > MOST_SHOWN
        return Output(done.exit_code, _text(done.stdout), _text(done.stderr), truncated)

    async def run_code(self, name: str, language: str, code: str, timeout: float) -> Output:
        """Run a program of one of `LANGUAGES`. Raises DeskError."""
        if language not in LANGUAGES:
            raise DeskError(f"{language:.40}: one of {', '.join(LANGUAGES)} can be run")
        return await self.run(name, LANGUAGES[language], code, timeout, "")

    async def write(self, name: str, path: str, content: str, encoding: str) -> int:
        """Write a file; its size in bytes. Raises DeskError."""
        data = _decoded(content, encoding)
        with _for_models():
            await self.cell(name).files.write(path, data)
        return len(data)

    async def read(self, name: str, path: str, offset: int) -> FileContent:
        """A piece of a file, from ``offset`` on. Raises DeskError."""
        if offset < 0:
            raise DeskError("an offset is 0 or more")
        with _for_models():
            data = await self.cell(name).files.read(path, most=MOST_FILE)
        content, encoding, used = _shown(data[offset : offset + MOST_SHOWN])
        following = offset + used
        return FileContent(
            content, encoding, len(data), following if following < len(data) else None
        )

    async def refusals(self, name: str) -> list[Refusal]:
        """What the cell's gateway has refused, the latest last. Raises DeskError."""
        with _for_models():
            found = await self.cell(name).refusals()
        return [Refusal(one.what, one.rule, one.reason) for one in found[-_MOST_REFUSALS:]]

    async def ask(
        self, name: str, rule: str, reason: str, seconds: float, patience: float
    ) -> Access:
        """Ask for ``rule`` to be allowed for ``seconds``; wait for a person for ``patience``.

        A pattern of `Terms.grants` grants it at once, within the provider's limits for a stranger's
        job. Raises DeskError.
        """
        cell = self.cell(name)
        with _for_models():
            parse_rule(rule)
        # It is printed for a person to type.
        if not _TYPED.fullmatch(rule):
            raise DeskError("a rule is HOST:PORT, without spaces")
        seconds = min(max(seconds, 1.0), LONGEST_GRANT)
        if any(fnmatchcase(rule, pattern) for pattern in self._terms.grants):
            with _for_models():
                # The rule is the model's word: the pattern's `*` must not open this side's network.
                await cell.allow(rule, seconds=seconds, typed=False)
            return Access(True, f"{rule} is allowed for {seconds:g} s")
        typed = f"wgcell allow {cell.id} {rule} --for {seconds:g}s"
        self._say(f"{cell.id}: the model asks for {rule}: {one_line(reason, 300)}")
        self._say(f"to grant it: {typed}")
        end = time.monotonic() + min(max(patience, 0.0), LONGEST_WAIT)
        while not await _allows(cell, rule):
            if time.monotonic() >= end:
                return Access(False, f"nobody has granted it yet; a person can, with: {typed}")
            await asyncio.sleep(_LOOK)
        return Access(True, f"{rule} is allowed")


async def _allows(cell: Cell, rule: str) -> bool:
    with _for_models():
        return any(one.rule == rule for one in await cell.policy())


class _for_models:
    """An error of the tree becomes one for the model, without what is the host's own business."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, WgcellError):
            raise DeskError(error.message) from error


def _text(data: bytes) -> str:
    return data[:MOST_SHOWN].decode("utf-8", "backslashreplace")


def _shown(piece: bytes) -> tuple[str, str, int]:
    """A piece of a file as text or as base64, how it is written, and how many bytes that shows."""
    try:
        return piece.decode("utf-8"), "utf-8", len(piece)
    except UnicodeDecodeError as error:
        # A character that is cut in two at the end is the next piece's.
        if error.start and error.start >= len(piece) - _LONGEST_CHARACTER + 1:
            return piece[: error.start].decode("utf-8"), "utf-8", error.start
    return base64.b64encode(piece).decode("ascii"), "base64", len(piece)


def _decoded(content: str, encoding: str) -> bytes:
    if encoding == "utf-8":
        return content.encode("utf-8", "surrogatepass")
    if encoding == "base64":
        try:
            return base64.b64decode(content, validate=True)
        except ValueError:
            raise DeskError("the content is not base64") from None
    raise DeskError(f"{encoding:.40}: an encoding is utf-8 or base64")
