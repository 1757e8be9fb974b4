"""A job file, the command line, or both, read into one `Job`.

A job file may come from a stranger. So the paths that it names on this machine (inputs, the VPN
configuration) must lie in the file's own folder; a path that the person at the terminal names with
an option may lie anywhere. Both pass the same validation, and every error names the file and the
key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NoReturn

from wgcell import toml
from wgcell.cell import inside
from wgcell.cell.environment import VARIABLE
from wgcell.cell.files import read_whole
from wgcell.cell.globs import Pattern
from wgcell.cell.inputs import Input
from wgcell.cell.job import GatewayAsked, HostLimits, Job, JobOptions, Landing
from wgcell.cell.rows import By, Column, Row, Unfit, Written, column, with_values
from wgcell.cell.schema import Invalid, keys, validated
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
from wgcell.errors import JobError, PolicyError
from wgcell.gateway.model.published import parse_published
from wgcell.gateway.model.rules import is_name, parse_rule
from wgcell.gateway.model.services import parse_service, placed
from wgcell.net import addresses

__all__ = ["job_from_options", "job_keys", "load_job", "model"]

_LARGEST = 256 * 1024
"""Bytes, as of every file from a stranger: the values made of it take many times that."""
MOST_RULES = 1024
"""Of a job: each is looked at for each flow."""
MOST_SERVICES = 256
MOST_PUBLISHED = 64
MOST_HOSTS = 256
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_GATEWAY = addresses.address(inside.GATEWAY)
_TUNNELS = ("vpn", "gateway")
"""Tables that a job file may leave out, which is not the same as empty: a cell has one tunnel."""


_COMMAND_LINE = "command line"
_OPTIONS = {row.key: row.flags[-1] for row in TABLE if row.flags}
"""Of a job file's key: the option that says the same."""
_KEYWORDS = {VPN.key: "vpn", "--input": "inputs"}
"""Of a key, or an option: a program's keyword, where it is not called as they are."""


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


def _written(file: object) -> Written:
    """The values of a file that fits the `model`, by key; a table's own name is there if it is."""
    found: dict[str, object] = {}
    for row in TABLE:
        table = getattr(file, row.table) if row.table else file
        if table is not None:
            found |= {row.table: True} if row.table else {}
            found[row.key] = getattr(table, row.name)
    return Written(found)


class _Reading:
    """A job's source, and one way to complain about it."""

    def __init__(self, source: str, chosen: JobOptions) -> None:
        self.source = source
        # What may be said more than once is both the file's and the command line's.
        typed = {row.key for row in SETTINGS if chosen.settings.get(row.name) is not None}
        typed |= {NAME.key} if chosen.name is not None else set()
        self._typed = _OPTIONS.keys() if source == _COMMAND_LINE else typed
        self._keywords = chosen.keywords

    def fail(self, key: str, found: str, hint: str = "", *, typed: bool | None = None) -> NoReturn:
        """``typed``: whether an option said it; None if there is but one that can have said it."""
        where = f"{self.source}: {key}"
        if key in _OPTIONS and (key in self._typed if typed is None else typed):
            where = f"{_COMMAND_LINE}: {_OPTIONS[key]}"
        if self._keywords and where.startswith(_COMMAND_LINE):
            where = _KEYWORDS.get(key) or key.lstrip("-").rpartition(".")[2].replace("-", "_")
        # The key may be a stranger's, and "found" quotes one.
        raise JobError(f"{where}: {found}", hint=hint)

    def file(self, raw: Mapping[str, object]) -> Written:
        """A job file's values, each of its type. Raises JobError with all that is wrong."""
        try:
            return _written(validated(model(), raw))
        except Invalid as invalid:
            raise JobError(*(f"{self.source}: {fault}" for fault in invalid.faults)) from None

    def setting(self, row: Row[object], written: object, host: HostLimits) -> object:
        """A value within its bounds; None if nobody wrote one and there is no default."""
        if written is None:
            return row.default
        try:
            return row.read(written, getattr(host, row.name) if row.of_host else None)
        except Unfit as unfit:
            self.fail(row.key, f"found {unfit}", unfit.hint)

    def name(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            self.fail("name", f"found {text[:60]!r}; allowed: 1-32 of a-z, 0-9 and -, not - first")
        return text

    def command(self, words: tuple[str, ...], *, idle: bool) -> tuple[str, ...]:
        if not idle and not words:
            self.fail(
                "command",
                "is empty",
                'give one: command = ["python3", "train.py"], or after -- on the command line; or '
                "--detach a cell that has none",
            )
        if words and not words[0]:
            self.fail("command", "begins with an empty word")
        if any("\0" in word for word in words):
            self.fail("command", "holds a NUL character")
        return words

    def outputs(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for text in texts:
            try:
                found[str(Pattern.parse(text))] = None
            except ValueError as error:
                self.fail("outputs", f"found {text[:80]!r}: {error}")
        return tuple(found)

    def env(self, pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        for name, value in pairs.items():
            if not VARIABLE.fullmatch(name):
                self.fail("env", f"found the name {name[:60]!r}; allowed: letters, digits and _")
            if "\0" in value:
                self.fail(f"env.{name}", "holds a NUL character")
        return tuple(pairs.items())

    def hosts(
        self, written: Mapping[str, str], typed: Mapping[str, str]
    ) -> tuple[tuple[str, str], ...]:
        found = {**written, **typed}
        if len(found) > MOST_HOSTS:
            self.fail(HOSTS.key, f"{len(found)} of them; allowed: at most {MOST_HOSTS}")
        for name, address in found.items():
            if not is_name(name.lower()):
                words = f"found the name {name[:60]!r}; allowed: letters, digits, - and ."
                self.fail(HOSTS.key, words, typed=name in typed)
            if not addresses.is_address(address):
                words = f"found {address[:60]!r} for {name}; allowed: an IP address"
                self.fail(HOSTS.key, words, typed=name in typed)
        return tuple(found.items())

    def beside(self, key: str, text: str, folder: Path) -> Path:
        """A path of a job file: below the file's folder, whoever wrote it, and wherever links lead.

        What is opened later must look again: who wrote the file may change the folder meanwhile.
        """
        path = PurePosixPath(text)
        hint = "name a file elsewhere on the command line, with --input or --vpn"
        outside = path.is_absolute() or ".." in path.parts or text.startswith("~")
        if not text or outside or "\0" in text:
            self.fail(
                key, f"found {text[:120]!r}; allowed: a path below the job file's own folder", hint
            )
        found = folder.joinpath(*path.parts)
        # Not Path.resolve, which raises for a circle of links before Python 3.13.
        if not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(folder)):
            self.fail(key, f"found {text[:120]!r}, a link out of the job file's own folder", hint)
        return found

    def inputs(self, file: Written, folder: Path, chosen: JobOptions) -> tuple[Input, ...]:
        anchor = Path.cwd()
        found = []
        for text in file.get(INPUTS) or ():
            self.beside("inputs", text, folder)
            found.append(Input.of(text, folder, folder))
        for given in chosen.inputs:
            if not os.fspath(given):
                self.fail("--input", "is empty; the current folder is .")
            found.append(Input.of(given, anchor))
        if chosen.sync is not None:
            found.append(Input(anchor / chosen.sync, contents=True))
        _one_name_each(self, found)
        return tuple(found)

    def landing(self, file: Written, chosen: JobOptions) -> Landing | None:
        anchor = Path.cwd()
        if chosen.sync is not None:
            if chosen.outputs or chosen.output_dir is not None:
                self.fail(
                    "--sync",
                    "can't be combined with --output or --output-dir",
                    "leave them out: --sync brings back everything that has changed",
                )
            return Landing(anchor / chosen.sync, (".",), synced=True)
        if chosen.output_dir is not None:
            every = self.outputs((*(file.get(OUTPUTS) or ()), *chosen.outputs))
            if not every:
                self.fail("--output-dir", "is given, and no output is named", "add --output NAME")
            return Landing(anchor / chosen.output_dir, every)
        return Landing(anchor, self.outputs(chosen.outputs)) if chosen.outputs else None


def job_keys() -> tuple[str, ...]:
    """Every key that a job file may have, with its table's name: ``policy.on_rogue``."""
    return keys(model())


def load_job(
    path: Path, limits: HostLimits | None = None, options: JobOptions | None = None
) -> Job:
    """The job of a file, with the command line's ``options`` over it.

    ``limits`` are this machine's unless given. Raises `JobError`, naming the file, the line (of a
    syntax error) or the key, what was found and what is allowed.
    """
    raw = read_whole(path, "job file", _LARGEST)
    try:
        parsed = toml.parse(raw)
    except toml.TomlError as error:
        raise JobError(error.at(path)) from None
    reading = _Reading(str(path), options or JobOptions())
    file_job = reading.file(parsed)
    return _build(reading, file_job, path.absolute().parent, path.stem, limits, options)


def job_from_options(
    options: JobOptions, limits: HostLimits | None = None, folder: Path | None = None
) -> Job:
    """The job of a command line alone. ``folder`` (the working folder) anchors relative paths.

    Raises `JobError` as `load_job` does, with "command line" in the file's place.
    """
    reading = _Reading(_COMMAND_LINE, options)
    stem = Path(options.command[0]).name if options.command else "cell"
    return _build(reading, Written(), folder or Path.cwd(), stem, limits, options)


def _build(
    reading: _Reading,
    file: Written,
    folder: Path,
    stem: str,
    limits: HostLimits | None,
    options: JobOptions | None,
) -> Job:
    chosen = options or JobOptions()
    if unknown := sorted(chosen.settings.keys() - {row.name for row in SETTINGS}):
        reading.fail("settings", toml.unknown_key(unknown[0], (row.name for row in SETTINGS)))
    host = limits or HostLimits.of_this_host(folder)
    vpn, gateway = _tunnel(reading, file, folder, chosen, Path.cwd())
    typed = {name: word for name, word in chosen.settings.items() if word is not None}
    written = {row: typed.get(row.name, file.values.get(row.key)) for row in SETTINGS}
    values = {row: reading.setting(row, word, host) for row, word in written.items()}
    everything = () if chosen.sync is None else (".",)
    name = file.get(NAME) if chosen.name is None else chosen.name
    job = Job(
        name=reading.name(_as_name(stem) if name is None else name),
        command=reading.command(chosen.command or file.get(COMMAND) or (), idle=chosen.idle),
        inputs=reading.inputs(file, folder, chosen),
        excludes=(*(file.get(EXCLUDE) or ()), *chosen.excludes),
        outputs=reading.outputs((*(file.get(OUTPUTS) or ()), *chosen.outputs, *everything)),
        landing=reading.landing(file, chosen),
        env=reading.env(_pairs(file, ENV) | dict(chosen.env)),
        hosts=reading.hosts(_pairs(file, HOSTS), dict(chosen.hosts)),
        vpn=vpn,
        vpn_beneath=folder if vpn is not None and chosen.vpn is None else None,
        gateway=gateway,
        asked=frozenset(
            row.name for row, word in written.items() if row.by is By.CEILING and word is not None
        ),
        of_file=frozenset(
            row.key
            for row, value in values.items()
            if row.by is By.PERMISSION and row.name not in typed and value != row.default
        ),
        stdin=chosen.stdin,
        terminal=chosen.terminal,
    )
    return with_values(job, values)


def _pairs(file: Written, row: Row[dict[str, str]]) -> dict[str, str]:
    return file.get(row) or {}


def _tunnel(
    reading: _Reading, file: Written, folder: Path, chosen: JobOptions, anchor: Path
) -> tuple[Path | None, GatewayAsked | None]:
    """The job's one tunnel. With neither [vpn] nor [gateway]: the gateway, with nothing open."""
    asks_gateway = bool(chosen.allow or chosen.services or chosen.publish)
    if chosen.vpn is not None:
        if asks_gateway:
            words = "can't be combined with --allow, --service or --publish: one tunnel a cell"
            reading.fail("--vpn", words)
        return anchor / chosen.vpn, None
    config = file.get(VPN)
    if config is not None:
        if file.has("gateway") or asks_gateway:
            reading.fail("vpn, gateway", "both are given; a cell has exactly one tunnel")
        return reading.beside(VPN.key, config, folder), None
    allow = tuple(dict.fromkeys((*(file.get(ALLOW) or ()), *chosen.allow)))
    services = _pairs(file, SERVICES) | dict(chosen.services)
    publish = tuple(dict.fromkeys((*(file.get(PUBLISH) or ()), *chosen.publish)))
    for what, found, most in (
        (ALLOW.key, allow, MOST_RULES),
        (SERVICES.key, services, MOST_SERVICES),
        (PUBLISH.key, publish, MOST_PUBLISHED),
    ):
        if len(found) > most:
            reading.fail(what, f"{len(found)} of them; allowed: at most {most}")
    typed = dict(chosen.services)
    for rule in allow:
        try:
            parse_rule(rule)
        except PolicyError as error:
            reading.fail(ALLOW.key, error.message, error.hint, typed=rule in chosen.allow)
    for inner, outer in services.items():
        try:
            placed((parse_service(inner, outer),), inside.TAKEN, _GATEWAY)
        except PolicyError as error:
            reading.fail(SERVICES.key, error.message, error.hint, typed=inner in typed)
    try:
        placed(tuple(parse_service(*pair) for pair in services.items()), inside.TAKEN, _GATEWAY)
    except PolicyError as error:
        reading.fail(SERVICES.key, error.message, error.hint)
    _check_published(reading, publish, chosen.publish)
    return None, GatewayAsked(
        allow,
        tuple(services.items()),
        publish=publish,
        file_allow=tuple(rule for rule in allow if rule not in chosen.allow),
        file_services=tuple(pair for pair in services.items() if pair[0] not in typed),
        file_publish=tuple(one for one in publish if one not in chosen.publish),
    )


def _check_published(reading: _Reading, publish: Sequence[str], typed: Sequence[str]) -> None:
    """Refuse what is no published port, and one place that is published twice."""
    seen: set[tuple[str, int]] = set()
    for text in publish:
        try:
            place = parse_published(text).place
        except PolicyError as error:
            reading.fail(PUBLISH.key, error.message, error.hint, typed=text in typed)
        if place in seen:
            where = addresses.written(*place)
            reading.fail(PUBLISH.key, f"{where} is published twice", typed=text in typed)
        if place[1]:
            seen.add(place)


def _one_name_each(reading: _Reading, inputs: list[Input]) -> None:
    """Refuse two inputs of one name. What is in a folder whose contents are meant is seen later."""
    seen: dict[str, Input] = {}
    for one in inputs:
        name = one.path.name
        if one.contents:
            continue
        if not name:
            reading.fail("inputs", f"found {str(one)!r}, which has no name of its own")
        if name in seen:
            reading.fail("inputs", f"{one} and {seen[name]} would both be /work/{name}")
        seen[name] = one


def _as_name(stem: str) -> str:
    """A valid name made of a file's stem, for a job that gives none."""
    made = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:32].rstrip("-")
    return made or "job"
