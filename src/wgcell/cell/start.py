"""The words between whoever starts a cell and the process that becomes its supervisor.

::

    starter                                  supervisor
      Start  ------------------------------>           one line, on its standard input
             <---------------  Remark, Made            what it is about to do; the cell's folder
             <---------------  Happened ...            each event, once it is on the record
             <---------------  Verified                the last word: all else is asked over the
                                                       cell's control socket
          or <---------------  Over, Failed or Fault   the last word of a cell that came to nothing

`Start` says what a command line says. Its form on the pipe is made from the table of settings
(`wgcell.cell.settings`): a field a row, each value as it was written, to be read by the row.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, cast

from wgcell import errors
from wgcell.cell.job import JobOptions
from wgcell.cell.remark import Remark
from wgcell.cell.rows import Row
from wgcell.cell.settings import (
    ALLOW,
    COMMAND,
    ENV,
    EXCLUDE,
    HOSTS,
    INPUTS,
    NAME,
    OUTPUTS,
    PUBLISH,
    SERVICES,
    SETTINGS,
    TABLE,
    VPN,
)
from wgcell.cell.states import Outcome
from wgcell.errors import JobError, LaunchError, WgcellError
from wgcell.guest.frames import Terminal
from wgcell.wire.lines import Data, Flag, LineError, Number, OneOf, Text, Vocabulary

__all__ = [
    "KEEP",
    "LONGEST_START",
    "SAID",
    "Failed",
    "Fault",
    "Happened",
    "Made",
    "Over",
    "Said",
    "Start",
    "Verified",
    "decoded",
    "encoded",
    "error_of",
    "failed_of",
]

KEEP = b"k"
"""On the lifeline: the cell is to live on when its starter ends."""
LONGEST_START = 16 << 20
"""Bytes of a `Start`: eight times what Linux lets a command line and an environment have."""
_LONGEST_WORD = 128 << 10
"""Characters of one word: Linux's bound for one (execve(2), MAX_ARG_STRLEN)."""
_MOST_WORDS = 1 << 17
_LONGEST_EVENT = 1 << 20
_LONGEST_LINE = 4 * (_LONGEST_EVENT // 3 + 1) + 4096
_LONGEST_TEXT = 16 << 10


# Kinds of values that only these words have.


@dataclass(frozen=True, slots=True)
class _Native:
    """A text as the system has it: of a path, an argument, a variable. Bytes that are no UTF-8 are
    in it as Python has them (`os.fsdecode`). Never cut."""

    def encoded(self, value: object) -> object:
        return self.decoded(os.fspath(value) if isinstance(value, os.PathLike) else value)

    def decoded(self, found: object) -> object:
        if not isinstance(found, str) or len(found) > _LONGEST_WORD:
            raise LineError(f"no text of up to {_LONGEST_WORD} characters")
        try:
            os.fsencode(found)
        except UnicodeEncodeError:
            raise LineError("a text that no system has") from None
        return found


@dataclass(frozen=True, slots=True)
class _Natives:
    """Many of them, in order."""

    def encoded(self, value: object) -> object:
        return self._each(value, _Native().encoded)

    def decoded(self, found: object) -> object:
        if not isinstance(found, list):
            raise LineError("no list")
        return tuple(self._each(found, _Native().decoded))

    def _each(self, value: object, way: Callable[[object], object]) -> list[object]:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise LineError("no list of texts")
        found = list(map(way, value))
        if len(found) > _MOST_WORDS:
            raise LineError(f"more than {_MOST_WORDS} texts")
        return found


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Names with their values, in order."""

    def encoded(self, value: object) -> object:
        if not isinstance(value, Iterable):
            raise LineError("no pairs of texts")
        return self.decoded(dict(value))

    def decoded(self, found: object) -> object:
        if not isinstance(found, dict) or len(found) > _MOST_WORDS:
            raise LineError(f"no table of up to {_MOST_WORDS}")
        native = _Native()
        return {native.decoded(name): native.decoded(value) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class _Written:
    """One value of a setting as somebody wrote it: the setting's row reads it."""

    def encoded(self, value: object) -> object:
        return self.decoded(os.fspath(value) if isinstance(value, os.PathLike) else value)

    def decoded(self, found: object) -> object:
        if isinstance(found, str):
            return _Native().decoded(found)
        if not isinstance(found, int | float) or not math.isfinite(found) or abs(found) >= 2**63:
            raise LineError("neither a text nor a number")
        return found


_KINDS: tuple[tuple[object, object], ...] = ((list[str], _Natives()), (dict[str, str], _Pairs()))
"""Of a row's written type, the kind of its field; any other is `_Written`."""


# What the starter says.


@dataclass(frozen=True, slots=True)
class Start:
    """Start a cell: what a command line says, and how."""

    options: JobOptions
    file: Path | None = None
    """The job file that the options go over."""
    cells: Path | None = None
    """Where the cell's folder goes; None is the user's state folder."""
    allow_endpoints: tuple[str, ...] = ()
    """Networks whose addresses may be endpoints although they are not public."""
    learn: bool = False
    force: bool = False
    """Whether outputs may overwrite what is there."""
    agreed: bool = False
    """Whether changes to a folder in sync are made without a question; there is nobody to ask."""
    remove: bool = False
    """Whether the cell's folder is deleted at its end."""


_Path = Annotated[str | None, _Native()]
_Side = Annotated[int | None, Number(65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """The fields on the pipe that no row of the table makes."""

    output_dir: _Path = None
    sync: _Path = None
    idle: Annotated[bool, Flag()] = False
    keywords: Annotated[bool, Flag()] = False
    stdin: Annotated[bool, Flag()] = False
    rows: _Side = None
    columns: _Side = None
    file: _Path = None
    cells: _Path = None
    allow_endpoints: Annotated[tuple[str, ...], _Natives()] = ()
    learn: Annotated[bool, Flag()] = False
    force: Annotated[bool, Flag()] = False
    agreed: Annotated[bool, Flag()] = False
    remove: Annotated[bool, Flag()] = False


def _field(row: Row[object]) -> str:
    return row.key.replace(".", "_")


def _column(row: Row[object]) -> tuple[str, object, object]:
    kind = next((kind for written, kind in _KINDS if written == row.kind.written), _Written())
    return _field(row), Annotated[object, kind], field(default=None)


_Line: type[_Start] = make_dataclass(
    "Start", map(_column, TABLE), bases=(_Start,), frozen=True, slots=True, kw_only=True
)
_STARTS: Vocabulary[_Start] = Vocabulary("start", LONGEST_START, {"cell": _Line})

_PARTS: Mapping[str, str] = MappingProxyType(
    {
        NAME.key: "name",
        COMMAND.key: "command",
        VPN.key: "vpn",
        ALLOW.key: "allow",
        SERVICES.key: "services",
        PUBLISH.key: "publish",
        INPUTS.key: "inputs",
        EXCLUDE.key: "excludes",
        OUTPUTS.key: "outputs",
        ENV.key: "env",
        HOSTS.key: "hosts",
    }
)
"""Of the rows that are no settings, the fields of `JobOptions`."""
_PATHS = ("output_dir", "sync")
_FLAGS = ("idle", "keywords", "stdin")
_OWN = tuple(one.name for one in fields(Start) if one.name != "options")


def encoded(start: Start) -> bytes:
    """``start`` as the line that starts a supervisor. Raises JobError if it can't be said."""
    options = start.options
    known = {row.name: row for row in SETTINGS}
    if unknown := sorted(options.settings.keys() - known.keys()):
        raise JobError(f"settings: there is no {unknown[0][:60]!r}")
    said: dict[str, Any] = {_field(known[name]): value for name, value in options.settings.items()}
    for row in TABLE:
        if (part := _PARTS.get(row.key)) is not None:
            said[_field(row)] = getattr(options, part) or None
    said |= {name: getattr(options, name) for name in (*_PATHS, *_FLAGS)}
    said |= {name: getattr(start, name) for name in _OWN}
    if (terminal := options.terminal) is not None:
        said |= {"rows": terminal.rows, "columns": terminal.columns}
    try:
        return _STARTS.line(_Line(**said))
    except LineError as error:
        raise JobError(f"the cell can't be started so: {error}") from None


def decoded(line: bytes) -> Start:
    """What ``line`` starts. Raises LineError; the table's rows read the values later."""
    word = _STARTS.word(line)
    said: dict[str, Any] = {one.name: getattr(word, one.name) for one in fields(word)}
    parts: dict[str, Any] = {}
    for row in TABLE:
        if row.key in _PARTS and (value := said[_field(row)]) is not None:
            parts[_PARTS[row.key]] = tuple(value.items()) if isinstance(value, dict) else value
    parts |= {name: said[name] for name in _PATHS if said[name] is not None}
    for name in ("vpn", *_PATHS):
        if name in parts:
            parts[name] = Path(parts[name])
    settings = {row.name: said[_field(row)] for row in SETTINGS if said[_field(row)] is not None}
    own = {name: said[name] for name in _OWN}
    own |= {name: None if own[name] is None else Path(own[name]) for name in ("file", "cells")}
    flags = {name: said[name] for name in _FLAGS}
    if word.rows is not None and word.columns is not None:
        parts["terminal"] = Terminal(word.rows, word.columns)
    return Start(JobOptions(**parts, settings=settings, **flags), **own)


# What the supervisor says.


@dataclass(frozen=True, slots=True)
class Made:
    """The cell has its folder, and its lock."""

    cell: Annotated[str, Text(64)]
    folder: Annotated[str, _Native()]


@dataclass(frozen=True, slots=True)
class Happened:
    """One line of the cell's record, as it is on the disk, without its newline."""

    line: Annotated[bytes, Data(_LONGEST_EVENT)]


@dataclass(frozen=True, slots=True)
class Verified:
    """The tunnel is verified, the workload released."""


@dataclass(frozen=True, slots=True)
class Over:
    """The cell has ended before its tunnel was verified."""

    outcome: Annotated[str, OneOf(tuple(outcome.value for outcome in Outcome))]
    exit_code: Annotated[int, Number(255)]
    reason: Annotated[str, Text(_LONGEST_TEXT)]


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no cell, or no record of it: an error of the tree in `wgcell.errors`."""

    kind: Annotated[str, Text(40)]
    lines: Annotated[tuple[str, ...], _Natives()]
    hint: Annotated[str, _Native()] = ""
    argv: Annotated[tuple[str, ...], _Natives()] = ()
    exit_code: Annotated[str, Text(8)] = ""
    """Of a child; empty: it had none."""
    output: Annotated[str, Text(_LONGEST_TEXT)] = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of wgcell's own, and the file that it is kept in."""

    text: Annotated[str, Text(1000)]
    place: Annotated[str, _Native()]


Said = Remark | Made | Happened | Verified | Over | Failed | Fault

SAID: Vocabulary[Said] = Vocabulary(
    "say",
    _LONGEST_LINE,
    {
        "remark": Remark,
        "made": Made,
        "happened": Happened,
        "verified": Verified,
        "over": Over,
        "failed": Failed,
        "fault": Fault,
    },
)


# Errors, from one process to another.


def _tree(root: type[WgcellError]) -> dict[str, type[WgcellError]]:
    found = {root.__name__: root}
    for one in root.__subclasses__():
        found |= _tree(one)
    return found


def failed_of(error: WgcellError) -> Failed:
    """``error`` as a word."""
    kind: type[WgcellError] = type(error)
    more: dict[str, Any] = {}
    while getattr(errors, kind.__name__, None) is not kind:
        kind = cast("type[WgcellError]", kind.__base__)
    if isinstance(error, LaunchError):
        code = "" if error.exit_code is None else str(error.exit_code)
        more = {"argv": error.argv, "exit_code": code, "output": error.output}
    return Failed(kind.__name__, tuple(error.message.split("\n")), error.hint, **more)


def error_of(failed: Failed) -> WgcellError:
    """The error that a word stands for; of a kind that is not known here, its root."""
    kind = _tree(WgcellError).get(failed.kind, WgcellError)
    if kind is LaunchError:
        code = failed.exit_code
        return LaunchError(
            "\n".join(failed.lines),
            argv=failed.argv,
            exit_code=int(code) if code.lstrip("-").isdigit() else None,
            output=failed.output,
            hint=failed.hint,
        )
    return kind(*failed.lines, hint=failed.hint)
