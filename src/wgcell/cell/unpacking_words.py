"""The words between a cell and the process that unpacks its outputs. Both ends use this module.

::

    cell                                   unpacker
      Task  ------------------------------>          one line, on a descriptor of its own
            <---------  Confined or Unconfined       before it reads the first byte of the tar
            <---------  Result or Failed             when it has read all that it will

What the unpacker says may be the guest's: `wgcell.cell.unpacking` judges whether it can be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from wgcell.cell.confinement import STAGES
from wgcell.cell.counts import EXAMPLES, LONGEST_EXAMPLE
from wgcell.cell.members import Reason
from wgcell.wire.lines import (
    Data,
    Exact,
    Native,
    Number,
    OneOf,
    Record,
    Several,
    Table,
    Text,
    Vocabulary,
)

__all__ = [
    "STATEMENTS",
    "TASKS",
    "Confined",
    "Failed",
    "Link",
    "Refused",
    "Result",
    "Statement",
    "Task",
    "Unconfined",
]

_MOST_OUTPUTS = 1 << 17
"""More than a command line holds."""
_MOST_LINKS = 1 << 20
_LONGEST_TASK = 1 << 30
"""Bytes. Each known link has two paths, of up to 4,096 bytes each."""
_LONGEST_STATEMENT = 1 << 20
"""Bytes: each `Reason` with its examples, and the places of 16,384 outputs."""
_LONGEST_FILTER = 1 << 16
"""Bytes: twice what the kernel takes (linux/filter.h, BPF_MAXINSNS)."""
LONGEST_WHY = 300

_Count = Annotated[int, Number()]
_Filter = Annotated[bytes, Data(_LONGEST_FILTER)]
_Why = Annotated[str, Text(LONGEST_WHY)]


@dataclass(frozen=True, slots=True)
class Link:
    """A link among the inputs that leads out of them: its path and its target."""

    path: Annotated[str, Native()]
    target: Annotated[str, Native()]


@dataclass(frozen=True, slots=True)
class Task:
    """The order to unpack. ``limit_bytes`` bounds the contents, ``limit_members`` the members."""

    asked: Annotated[tuple[str, ...], Several(_MOST_OUTPUTS, Native())]
    """The outputs' patterns."""
    limit_bytes: _Count
    limit_members: _Count
    known_links: Annotated[tuple[Link, ...], Several(_MOST_LINKS, Record(Link))] = ()
    rooted: _Filter = b""
    """`wgcell.cell.confinement.Filters`, both."""
    other: _Filter = b""


TASKS: Vocabulary[Task] = Vocabulary("order", _LONGEST_TASK, {"unpack": Task})


@dataclass(frozen=True, slots=True)
class Confined:
    """The walls stand; without the stages in ``missing``, each with the reason."""

    missing: Annotated[Mapping[str, str], Table(len(STAGES), Text(LONGEST_WHY))]


@dataclass(frozen=True, slots=True)
class Unconfined:
    """The walls can't stand here, so nothing is unpacked."""

    why: _Why


@dataclass(frozen=True, slots=True)
class Refused:
    """Members that were not written for one reason, and a few names as `shown` has them."""

    reason: Annotated[str, OneOf(tuple(reason.value for reason in Reason))]
    count: _Count
    examples: Annotated[tuple[str, ...], Several(EXAMPLES, Exact(LONGEST_EXAMPLE))]


_Refused = Annotated[tuple[Refused, ...], Several(len(Reason), Record(Refused))]


@dataclass(frozen=True, slots=True)
class Result:
    """The fields of `wgcell.cell.archive.Unpacked`. ``missing`` are places in `Task.asked`."""

    files: _Count
    folders: _Count
    links: _Count
    bytes: _Count
    refusals: _Refused
    left_out: _Refused
    missing: Annotated[tuple[int, ...], Several(_MOST_OUTPUTS, Number(_MOST_OUTPUTS))]
    stopped: _Why


@dataclass(frozen=True, slots=True)
class Failed:
    """The folder could not be written."""

    why: _Why


Statement = Confined | Unconfined | Result | Failed

STATEMENTS: Vocabulary[Statement] = Vocabulary(
    "unpacking",
    _LONGEST_STATEMENT,
    {"confined": Confined, "unconfined": Unconfined, "result": Result, "failed": Failed},
)
