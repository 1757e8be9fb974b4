"""The workload's environment: what ``--env`` and ``--env-file`` say, and which names are valid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from wgcell.cell.files import read_whole
from wgcell.display import one_line
from wgcell.errors import JobError

__all__ = ["VARIABLE", "environment"]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_LARGEST = 1 << 20
"""Bytes of a file of variables."""


def environment(
    given: Iterable[str], files: Iterable[Path], caller: Mapping[str, str]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The variables of ``--env`` and ``--env-file``, read as Docker reads them, and the names not
    set here.

    ``NAME=VALUE``, or ``NAME`` for the ``caller``'s value. A file has one a line, with values as
    they stand; empty lines and those that begin with # do not count. Options override files. Raises
    JobError naming the file and the line.
    """
    found: dict[str, str] = {}
    unset: dict[str, None] = {}
    lines = [(f"{path}:{number}", text) for path in files for number, text in _env_lines(path)]
    for place, text in (*lines, *(("command line: --env", text) for text in given)):
        name, equals, value = text.partition("=")
        if not VARIABLE.fullmatch(name):
            raise JobError(
                f"{place}: found the name {one_line(repr(name), 60)}; allowed: NAME=VALUE or NAME, "
                "a name of letters, digits and _"
            )
        if equals or name in caller:
            found[name] = value if equals else caller[name]
            unset.pop(name, None)
        else:
            unset[name] = None
    return tuple(found.items()), tuple(name for name in unset if name not in found)


def _env_lines(path: Path) -> list[tuple[int, str]]:
    raw = read_whole(path, "environment file", _LARGEST)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise JobError(f"{path}:{line}: not UTF-8 text") from None
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    return [(n, line.lstrip()) for n, line in lines if line.strip() and line.lstrip()[0] != "#"]
