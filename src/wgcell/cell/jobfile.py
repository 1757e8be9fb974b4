"""A job file, the command line, or both, read into one `Job`.

A job file may come from a stranger. So the paths that it names on this machine (inputs, the VPN
configuration) must lie in the file's own folder; a path that the person at the terminal names with
an option may lie anywhere. Both pass the same validation, and every error names the file and the
key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from functools import cache
from pathlib import Path

from wgcell import toml
from wgcell.cell.files import read_whole
from wgcell.cell.job import HostLimits, Job, JobOptions
from wgcell.cell.jobsource import COMMAND_LINE, JobSource
from wgcell.cell.jobtunnel import tunnel
from wgcell.cell.rows import By, Column, Row, Written, column, with_values
from wgcell.cell.schema import Invalid, keys, validated
from wgcell.cell.settings import COMMAND, ENV, EXCLUDE, HOSTS, NAME, OUTPUTS, SETTINGS, TABLE
from wgcell.errors import JobError

__all__ = ["job_from_options", "job_keys", "load_job", "model"]

_LARGEST = 256 * 1024
"""Bytes, as of every file from a stranger: the values made of it take many times that."""
_TUNNELS = ("vpn", "gateway")
"""Tables that a job file may leave out, which is not the same as empty: a cell has one tunnel."""


@cache
def model() -> type:
    """A job file as `wgcell.cell.schema` reads it: a dataclass of the table's rows."""
    tables: dict[str, list[Column]] = {}
    for row in TABLE:
        tables.setdefault(row.table, []).append(column(row))
    whole = tables.pop("")
    for name, columns in tables.items():
        inner = make_dataclass(name, columns, frozen=True, slots=True)
        may_miss = name in _TUNNELS
        whole.append(
            (name, inner | None, None) if may_miss else (name, inner, field(default_factory=inner))
        )
    return make_dataclass("job", whole, frozen=True, slots=True)


def job_keys() -> tuple[str, ...]:
    """Every key that a job file may have, with its table's name: ``policy.on_rogue``."""
    return keys(model())


def load_job(
    path: Path, limits: HostLimits | None = None, options: JobOptions | None = None
) -> Job:
    """The job of a file, with the command line's ``options`` over it.

    ``limits`` are this machine's unless given. Raises `JobError`, naming the file, the line (of a
    syntax error) or the key, the value and the allowed ones.
    """
    raw = read_whole(path, "job file", _LARGEST)
    try:
        parsed = toml.parse(raw)
    except toml.TomlError as error:
        raise JobError(error.at(path)) from None
    source = JobSource(str(path), options or JobOptions())
    file = _checked(source, parsed)
    return _build(source, file, path.absolute().parent, path.stem, limits, options)


def job_from_options(
    options: JobOptions, limits: HostLimits | None = None, folder: Path | None = None
) -> Job:
    """The job of a command line alone. ``folder`` (the working folder) anchors relative paths.

    Raises `JobError` as `load_job` does, with "command line" in the file's place.
    """
    source = JobSource(COMMAND_LINE, options)
    stem = Path(options.command[0]).name if options.command else "cell"
    return _build(source, Written(), folder or Path.cwd(), stem, limits, options)


def _checked(source: JobSource, raw: Mapping[str, object]) -> Written:
    """A job file's values, each of its type. Raises JobError with all that is wrong."""
    try:
        return _written(validated(model(), raw))
    except Invalid as invalid:
        raise JobError(*(f"{source.source}: {fault}" for fault in invalid.faults)) from None


def _written(file: object) -> Written:
    """The values of a file that fits the `model`, by key; a table's own name is there if it is."""
    found: dict[str, object] = {}
    for row in TABLE:
        table = getattr(file, row.table) if row.table else file
        if table is not None:
            found |= {row.table: True} if row.table else {}
            found[row.key] = getattr(table, row.name)
    return Written(found)


def _build(
    source: JobSource,
    file: Written,
    folder: Path,
    stem: str,
    limits: HostLimits | None,
    options: JobOptions | None,
) -> Job:
    chosen = options or JobOptions()
    typed, written = _settings(source, file, chosen)
    host = limits or HostLimits.of_this_host(folder)
    values = {row: source.setting(row, word, host) for row, word in written.items()}
    vpn, gateway = tunnel(source, file, folder, chosen)
    everything = () if chosen.sync is None else (".",)
    name = file.get(NAME) if chosen.name is None else chosen.name
    job = Job(
        name=source.name(_as_name(stem) if name is None else name),
        command=source.command(chosen.command or file.get(COMMAND) or (), idle=chosen.idle),
        inputs=source.inputs(file, folder, chosen),
        excludes=(*(file.get(EXCLUDE) or ()), *chosen.excludes),
        outputs=source.outputs((*(file.get(OUTPUTS) or ()), *chosen.outputs, *everything)),
        landing=source.landing(file, chosen),
        env=source.env(_pairs(file, ENV) | dict(chosen.env)),
        hosts=source.hosts(_pairs(file, HOSTS), dict(chosen.hosts)),
        vpn=vpn,
        vpn_beneath=folder if vpn is not None and chosen.vpn is None else None,
        gateway=gateway,
        asked=_asked(written),
        of_file=_of_file(values, typed),
        stdin=chosen.stdin,
        terminal=chosen.terminal,
    )
    return with_values(job, values)


def _settings(
    source: JobSource, file: Written, chosen: JobOptions
) -> tuple[Mapping[str, object], Mapping[Row[object], object]]:
    """The settings of the options, and of both, as they were written. Raises `JobError`."""
    names = [row.name for row in SETTINGS]
    if unknown := sorted(chosen.settings.keys() - set(names)):
        source.fail("settings", toml.unknown_key(unknown[0], names))
    typed = {name: word for name, word in chosen.settings.items() if word is not None}
    return typed, {row: typed.get(row.name, file.values.get(row.key)) for row in SETTINGS}


def _asked(written: Mapping[Row[object], object]) -> frozenset[str]:
    """The settings with a ceiling for which somebody wrote a value."""
    given = (row for row, word in written.items() if word is not None)
    return frozenset(row.name for row in given if row.by is By.CEILING)


def _of_file(values: Mapping[Row[object], object], typed: Mapping[str, object]) -> frozenset[str]:
    """The settings that need a permission, because a file alone gives them another value."""
    of_file = (row for row, value in values.items() if value != row.default)
    return frozenset(
        row.key for row in of_file if row.by is By.PERMISSION and row.name not in typed
    )


def _pairs(file: Written, row: Row[dict[str, str]]) -> dict[str, str]:
    return file.get(row) or {}


def _as_name(stem: str) -> str:
    """A valid name made of a file's stem, for a job that gives none."""
    made = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:32].rstrip("-")
    return made or "job"
