"""What a program may say of a cell: the settings of `wgcell run`, as keywords.

Each is called as its key in a job file, without the key's table; the values are read as a job
file's are, by the same rows (`wgcell.cell.settings`). A size may also be a number of bytes, a
duration is seconds or a text such as ``"90s"``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from wgcell.cell.job import JobOptions
from wgcell.cell.kinds import SIZE
from wgcell.cell.rows import Row
from wgcell.cell.settings import SETTINGS
from wgcell.cell.start import Start
from wgcell.errors import JobError
from wgcell.guest.subjects import Terminal
from wgcell.toml import unknown_key

__all__ = ["CellSettings", "StrPath", "start_of", "terminal_of"]

StrPath = str | os.PathLike[str]


class CellSettings(TypedDict, total=False):
    """Every setting of a cell. What is not given has `wgcell run`'s default."""

    name: str
    """At most 32 of a-z, 0-9 and -: the beginning of the cell's id."""
    file: StrPath
    """A job file, which the other settings go over."""
    allow: Sequence[str]
    """What the cell may reach, by its own gateway: ``["api.example.com:443"]``."""
    services: Mapping[str, str]
    """Services in the tunnel: ``{"10.99.0.5:80": "127.0.0.1:8000"}``, or by a name:
    ``{"db": "127.0.0.1:5432"}`` makes ``db.internal`` answer."""
    publish: Sequence[str]
    """Ports of this machine, 127.0.0.1 unless said, joined to the cell's: ``["8080:80"]``."""
    hosts: Mapping[str, str]
    """Names, each with an address: lines of the guest's /etc/hosts."""
    learn: bool
    """Let all that is public through, and record what was needed."""
    vpn: StrPath
    """A wg-quick file: another tunnel, in place of the cell's own gateway."""
    allow_endpoints: Sequence[str]
    """Networks whose addresses may be endpoints although they are not public."""
    image: str
    cpus: int
    memory: str | int
    """As ``"2GiB"``, or bytes."""
    disk: str | int
    """Scratch disk, as ``"4GiB"``, or bytes."""
    inputs: Sequence[StrPath]
    """Files and folders to appear in /work; of one that ends in ``/.`` its contents."""
    exclude: Sequence[str]
    """Inputs to leave out, in .gitignore's syntax."""
    outputs: Sequence[str]
    """Paths below /work to bring to ``output_dir``, or to the current folder, at the end."""
    output_dir: StrPath
    sync: StrPath
    """A folder whose contents go in, and to which changes come back at the end."""
    force: bool
    """Let outputs overwrite what is there."""
    env: Mapping[str, str]
    timeout: float | str
    """Longest run of the cell's own command; None or not given is no limit."""
    grace: float | str
    """From SIGTERM to SIGKILL, when the cell's own command must end."""
    rate: str
    """Most that the tunnel carries each way, as ``"10Mbit"``."""
    quota: str | int
    """Bytes that the tunnel carries; then the cell ends."""
    on_rogue: Literal["terminate", "freeze"]
    tunnel_timeout: float | str
    verify_timeout: float | str
    guest_walls: Literal["on", "off"]
    state_dir: StrPath
    """Where the cell's folder goes; the user's state folder unless given."""


_TERMINAL = (24, 80)
"""Rows and columns of a terminal of which no size was given."""
_OWN = (
    *("name", "file", "allow", "services", "publish", "hosts", "learn", "vpn", "allow_endpoints"),
    *("inputs", "exclude", "outputs", "output_dir", "sync", "force", "env", "state_dir"),
)
"""Those that no row of the table makes a value of."""
_ROWS: Mapping[str, Row[Any]] = {row.name: row for row in SETTINGS}


def start_of(
    command: Sequence[str],
    given: Mapping[str, Any],
    *,
    stdin: bool = False,
    tty: bool | tuple[int, int] = False,
    remove: bool = False,
) -> Start:
    """What starts a cell with that command, or without one. Raises JobError.

    The command reads ``stdin``, and has a ``tty`` of so many rows and columns.
    """
    known = (*_OWN, *_ROWS)
    for name in given:
        if name not in known:
            raise JobError(unknown_key(name, known))
    said = {name: value for name, value in given.items() if value is not None}
    settings = {name: _written(name, value) for name, value in said.items() if name in _ROWS}
    options = JobOptions(
        name=said.get("name"),
        command=_texts("command", command),
        inputs=_texts("inputs", said.get("inputs", ())),
        excludes=_texts("exclude", said.get("exclude", ())),
        outputs=_texts("outputs", said.get("outputs", ())),
        output_dir=_path(said, "output_dir"),
        sync=_path(said, "sync"),
        env=_pairs("env", said.get("env", {})),
        vpn=_path(said, "vpn"),
        allow=_texts("allow", said.get("allow", ())),
        services=_pairs("services", said.get("services", {})),
        publish=_texts("publish", said.get("publish", ())),
        hosts=_pairs("hosts", said.get("hosts", {})),
        settings=settings,
        idle=True,
        keywords=True,
        stdin=stdin,
        terminal=terminal_of(tty),
    )
    return Start(
        options,
        _path(said, "file"),
        _path(said, "state_dir"),
        _texts("allow_endpoints", said.get("allow_endpoints", ())),
        learn=bool(said.get("learn")),
        force=bool(said.get("force")),
        agreed=True,
        remove=remove,
    )


def terminal_of(tty: bool | tuple[int, int]) -> Terminal | None:
    """The terminal that was asked for: True is one of 24 rows and 80 columns. Raises JobError."""
    if tty is False:
        return None
    size = _TERMINAL if tty is True else tty
    if not isinstance(size, tuple) or len(size) != 2 or not all(map(_is_side, size)):
        raise JobError(f"tty: found {tty!r:.60}; allowed: True, or rows and columns up to 65535")
    return Terminal(*size)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def _written(name: str, value: object) -> object:
    """A value as a job file would have it: a size in bytes as one with a unit."""
    is_size = _ROWS[name].kind is SIZE
    if is_size and isinstance(value, int) and not isinstance(value, bool):
        if value % 1024:
            raise JobError(f"{name}: found {value}; allowed: whole KiB, or a text such as '2GiB'")
        return f"{value // 1024}KiB"
    return value


def _path(said: Mapping[str, Any], name: str) -> Path | None:
    value = said.get(name)
    if value is None:
        return None
    try:
        return Path(value)
    except TypeError:
        raise JobError(f"{name}: found {value!r}; allowed: a path") from None


def _texts(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise JobError(f"{name}: found {value!r:.60}; allowed: a list of texts")
    try:
        return tuple(one if isinstance(one, str) else os.fspath(one) for one in value)
    except TypeError:
        raise JobError(f"{name}: found {value!r:.60}; allowed: a list of texts") from None


def _pairs(name: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise JobError(f"{name}: found {value!r:.60}; allowed: a mapping of texts")
    return tuple(value.items())
