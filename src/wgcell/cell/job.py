"""What to run: a job file, the command line, or both, read into one frozen `Job`.

A job file may come from a stranger. What it names on this machine (inputs, the VPN configuration)
must therefore lie in the file's own folder; what the person at the terminal names with an option
may lie anywhere. Both pass the same validation, and every error names the file and the key.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from wgcell import toml
from wgcell.cell import inside
from wgcell.cell.globs import Pattern
from wgcell.cell.inputs import Input
from wgcell.cell.schema import Invalid, keys, validated
from wgcell.display import one_line
from wgcell.errors import JobError, PolicyError
from wgcell.gateway.policy import parse_rule, parse_service
from wgcell.guest.walls import Wall

__all__ = [
    "GatewayAsked",
    "HostLimits",
    "Job",
    "JobOptions",
    "Landing",
    "OnRogue",
    "duration_text",
    "environment",
    "job_from_options",
    "job_keys",
    "load_job",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "rate_text",
    "size_text",
]

_T = TypeVar("_T")

GUEST_WALLS = {"on": frozenset(Wall), "off": frozenset[Wall]()}
"""What a job may say of them. Some but not others is for `wgcell.prove`."""

DEFAULT_IMAGE = "debian"
DEFAULT_CPUS = 1
DEFAULT_MEMORY = "512MiB"
DEFAULT_DISK = "1GiB"
SMALLEST_MEMORY = 128 * 2**20
SMALLEST_DISK = 16 * 2**20
LONGEST_TIMEOUT = 365 * 86400.0
DEFAULT_GRACE = 10.0
LONGEST_GRACE = 600.0
LONGEST_TUNNEL_TIMEOUT = LONGEST_VERIFY_TIMEOUT = 3600.0
"""Seconds; a tunnel that was dead for an hour, or a machine that has not set one up, won't."""
_LARGEST_FILE = 1 << 20
_LARGEST_JOB_FILE = 256 * 1024
"""Bytes, as all that is read of a stranger's file: what is made of it takes many times that."""
MOST_RULES = 1024
"""Of a job: each is looked at for each flow."""
MOST_SERVICES = 256
LIMITS = (
    *("cpus", "memory", "disk", "timeout", "rate", "quota"),
    *("grace", "tunnel_timeout", "verify_timeout"),
)
"""Fields of a `Job` that a provider may have a ceiling for."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([KMGT](?:i?B)?)", re.ASCII | re.IGNORECASE)
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)"
_DURATION = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in "dhms"), re.ASCII)
_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([KMG])bit(?:/s)?", re.ASCII)
SLOWEST_RATE, FASTEST_RATE = 64e3 / 8, 1e12 / 8
SMALLEST_QUOTA = 1 << 20
_UNITS = {
    prefix + suffix: base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for suffix, base in (("IB", 1024), ("", 1024), ("B", 1000))
}


class OnRogue(Enum):
    """What becomes of a VM at its first frame outside the tunnel."""

    TERMINATE = "terminate"
    FREEZE = "freeze"


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What this machine has: ``memory`` and ``disk`` in bytes."""

    cpus: int
    memory: int
    disk: int

    @staticmethod
    def of_this_host(folder: Path) -> HostLimits:
        """This machine's CPUs and memory, and the free space where ``folder`` is or will be."""
        place = folder
        while not place.exists() and place != place.parent:
            place = place.parent
        return HostLimits(
            cpus=len(os.sched_getaffinity(0)),
            memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            disk=shutil.disk_usage(place).free,
        )


@dataclass(frozen=True, slots=True)
class GatewayAsked:
    """The embedded gateway, as a job asks for it. Empty means: default deny, nothing open."""

    allow: tuple[str, ...] = ()
    services: tuple[tuple[str, str], ...] = ()
    """Pairs of ADDRESS:PORT in the tunnel and HOST:PORT on the gateway's side."""
    resolver: tuple[str, ...] = ()
    """Where names are asked, ADDRESS or ADDRESS:PORT; empty is this machine's own resolver.

    Like ``learn``, never in a job file: it is the word of who runs wgcell.
    """
    learn: bool = False
    """Allow what no rule refuses, and record it."""
    file_allow: tuple[str, ...] = field(default=(), compare=False)
    """Those of ``allow`` that stand in the job file, and were not typed as well."""
    file_services: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """Likewise those of ``services``."""


@dataclass(frozen=True, slots=True)
class Landing:
    """Where the person at the terminal wants outputs, when the cell has ended."""

    folder: Path
    """Absolute."""
    outputs: tuple[str, ...]
    """Which of the job's; the others stay in the cell's folder."""
    synced: bool = False
    """Whether the folder is one whose contents went in, and to which only changes come back."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job, validated. Exactly one of ``vpn`` and ``gateway`` is set."""

    name: str
    command: tuple[str, ...]
    image: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    """Patterns relative to /work, normalized; . is all of it."""
    timeout: float | None
    """Seconds from the workload's release; None is no limit."""
    env: tuple[tuple[str, str], ...] = field(repr=False)
    cpus: int
    memory: int
    """Bytes."""
    disk: int
    """Bytes of scratch space, for /work and everything the workload writes."""
    vpn: Path | None
    gateway: GatewayAsked | None
    rate: float | None = None
    """Bytes of WireGuard messages a second, each way; None is no limit."""
    quota: int | None = None
    """Bytes of WireGuard messages, both ways together, after which the cell ends."""
    on_rogue: OnRogue = OnRogue.TERMINATE
    grace: float = DEFAULT_GRACE
    """Seconds from SIGTERM to SIGKILL for a workload that must end; 0 kills it at once."""
    tunnel_timeout: float | None = None
    """Seconds without a valid message of the endpoint; None is wgcell's own. An idle tunnel is
    silent between rekeys, two minutes: only for a workload that never is may it be shorter."""
    verify_timeout: float | None = None
    """Seconds from QEMU's start to a verified tunnel; None is wgcell's own."""
    guest_walls: frozenset[Wall] = frozenset(Wall)
    """None starts the workload as a compromised guest would run it: to test the host's walls."""
    asked: frozenset[str] = field(default=frozenset(), compare=False)
    """Which of `LIMITS` somebody asked for; the others are defaults, and may be lowered."""
    vpn_beneath: Path | None = field(default=None, compare=False)
    """The folder that ``vpn`` must lie in; None is anywhere."""
    of_file: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys, as ``policy.on_rogue``, whose value is the job file's word, and not a typed one."""
    excludes: tuple[str, ...] = ()
    """Inputs that stay here: gitignore's patterns, relative to /work."""
    landing: Landing | None = None
    """None leaves the outputs in the cell's folder."""

    def public(self) -> dict[str, object]:
        """The job for ``job.json``: no keys, and of the environment only the names."""
        gateway = self.gateway
        return {
            "name": self.name,
            "command": list(self.command),
            "image": self.image,
            "inputs": [str(path) for path in self.inputs],
            "exclude": list(self.excludes),
            "outputs": list(self.outputs),
            "output_dir": None if self.landing is None else str(self.landing.folder),
            "timeout": self.timeout,
            "grace": self.grace,
            "env": sorted(name for name, _ in self.env),
            "resources": {
                "cpus": self.cpus,
                "memory": self.memory,
                "disk": self.disk,
                "rate": self.rate,
                "quota": self.quota,
            },
            "vpn": None if self.vpn is None else {"config": str(self.vpn)},
            "gateway": None
            if gateway is None
            else {"allow": list(gateway.allow), "services": dict(gateway.services)},
            "policy": {
                "on_rogue": self.on_rogue.value,
                "tunnel_timeout": self.tunnel_timeout,
                "verify_timeout": self.verify_timeout,
                "guest_walls": next(
                    (word for word, walls in GUEST_WALLS.items() if walls == self.guest_walls),
                    sorted(wall.value for wall in self.guest_walls),
                ),
            },
        }


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The command line's share of a job. None and empty leave the job file's word."""

    name: str | None = None
    command: tuple[str, ...] = ()
    image: str | None = None
    inputs: tuple[str | Path, ...] = ()
    """Added to the file's; relative to the current folder, and may lie anywhere."""
    excludes: tuple[str, ...] = ()
    """Added to the file's."""
    outputs: tuple[str, ...] = ()
    """Added to the file's; these land in the current folder."""
    output_dir: Path | None = None
    """Where all outputs land, the file's too."""
    sync: Path | None = None
    """A folder whose contents go in, and to which changes come back."""
    timeout: str | None = None
    grace: str | None = None
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    cpus: int | None = None
    memory: str | None = None
    disk: str | None = None
    vpn: Path | None = None
    """Replaces the file's [vpn] or [gateway]."""
    allow: tuple[str, ...] = ()
    """Added to the file's [gateway] allow."""
    services: tuple[tuple[str, str], ...] = ()
    rate: str | None = None
    quota: str | None = None
    on_rogue: str | None = None
    guest_walls: str | None = None


# A job file's tables, as `wgcell.cell.schema` reads them.


@dataclass(frozen=True, slots=True)
class _Resources:
    cpus: int | None = None
    memory: str | None = None
    disk: str | None = None
    rate: str | None = None
    quota: str | None = None


@dataclass(frozen=True, slots=True)
class _Vpn:
    config: str


@dataclass(frozen=True, slots=True)
class _Gateway:
    allow: list[str] = field(default_factory=list)
    services: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Policy:
    on_rogue: str = OnRogue.TERMINATE.value
    tunnel_timeout: str | int | float | None = None
    verify_timeout: str | int | float | None = None
    guest_walls: str = "on"


@dataclass(frozen=True, slots=True)
class _JobFile:
    name: str | None = None
    command: list[str] = field(default_factory=list)
    image: str = DEFAULT_IMAGE
    inputs: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    timeout: str | int | float | None = None
    grace: str | int | float | None = None
    env: dict[str, str] = field(default_factory=dict)
    resources: _Resources = field(default_factory=_Resources)
    vpn: _Vpn | None = None
    gateway: _Gateway | None = None
    policy: _Policy = field(default_factory=_Policy)


def parse_size(text: str) -> int:
    """Bytes of ``"2GiB"``, ``"2G"`` (the same, as in Docker), ``"1.5GB"``. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{one_line(repr(text), 60)}; allowed: a number and KiB, MiB, GiB or TiB, as 2GiB or 2G"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def size_text(size: int) -> str:
    """Bytes as a job file has them: ``"1.5GiB"``; bytes where no unit fits in three decimals."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count = size / _UNITS[unit.upper()]
        if count >= 1 and round(count, 3) == count:
            return f"{count:.3f}".rstrip("0").rstrip(".") + unit
    return f"{size} bytes"


def duration_text(seconds: float) -> str:
    """Seconds as a job file has them: ``"1h30m"``."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    rest = seconds - whole + whole % 60
    parts = [f"{n}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m")) if n]
    return "".join([*parts, f"{rest:g}s"] if rest or not parts else parts)


def rate_text(rate: float) -> str:
    """Bytes a second as a job file has them: ``"10Mbit"``."""
    bits = rate * 8
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        count = bits / size
        if count >= 1 and round(count, 3) == count:
            return f"{count:.3f}".rstrip("0").rstrip(".") + f"{unit}bit"
    return f"{rate:g} bytes a second"


def parse_rate(text: str) -> float:
    """Bytes a second of ``"100Mbit"``, ``"1.5Gbit/s"``. Raises ValueError."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * 1000 ** ("KMG".index(match[2]) + 1) / 8 if match else 0.0
    if not SLOWEST_RATE <= rate <= FASTEST_RATE:
        raise ValueError(f"{text!r}; allowed: bits a second, as 10Mbit, from 64Kbit to 1000Gbit")
    return rate


def parse_duration(value: str | int | float) -> float:
    """Seconds of ``"2h"``, ``"1h30m"``, ``"90s"``, or of a plain number. Raises ValueError."""
    allowed = "allowed: seconds, or a duration such as 90s, 15m, 1.5h, 1h30m, up to 365d"
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        plain = re.fullmatch(r"[0-9]{1,9}", value.strip(), re.ASCII)
        if plain:
            seconds = float(value)
        elif match is None or not any(match.groups()) or len(value) > 40:
            raise ValueError(f"{one_line(repr(value), 60)}; {allowed}")
        else:
            days, hours, minutes, rest = (float(part or 0) for part in match.groups())
            seconds = days * _DAY + hours * _HOUR + minutes * _MINUTE + rest
    else:
        seconds = float(value)
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_TIMEOUT):
        raise ValueError(f"{value!r}; {allowed}")
    return seconds


def environment(
    given: Iterable[str], files: Iterable[Path], caller: Mapping[str, str]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """What ``--env`` and ``--env-file`` say, as Docker reads them, and the names not set here.

    ``NAME=VALUE``, or ``NAME`` for the ``caller``'s value. A file has one a line, its values taken
    as they stand; empty lines and those that begin with # do not count. Options win over files.
    Raises JobError naming the file and the line.
    """
    found: dict[str, str] = {}
    unset: dict[str, None] = {}
    lines = [(f"{path}:{number}", text) for path in files for number, text in _env_lines(path)]
    for place, text in (*lines, *(("command line: --env", text) for text in given)):
        name, equals, value = text.partition("=")
        if not _ENV_NAME.fullmatch(name):
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
    raw = _read(path, "environment file", _LARGEST_FILE)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise JobError(f"{path}:{line}: not UTF-8 text") from None
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    return [(n, line.lstrip()) for n, line in lines if line.strip() and line.lstrip()[0] != "#"]


def _read(path: Path, what: str, most: int) -> bytes:
    """A file of at most ``most`` bytes. Raises JobError."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise JobError(
            f"{path}: {error.strerror or error}", mend=f"name another {what}, one that you may read"
        ) from None
    except ValueError:  # a NUL in its name
        raise JobError(f"{one_line(path)}: no file can be called that") from None
    if len(raw) > most:
        raise JobError(f"{path}: larger than {size_text(most)}, which no {what} is")
    return raw


_COMMAND_LINE = "command line"
_OPTIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "name": ("--name", "name"),
        "image": ("--image", "image"),
        "inputs": ("--input", "inputs"),
        "outputs": ("--output", "outputs"),
        "env": ("--env", "env"),
        "timeout": ("--timeout", "timeout"),
        "grace": ("--grace", "grace"),
        **{f"resources.{key}": (f"--{key}", key) for key in ("cpus", "memory", "disk")},
        **{f"resources.{key}": (f"--{key}", key) for key in ("rate", "quota")},
        "gateway.allow": ("--allow", "allow"),
        "gateway.services": ("--service", "services"),
        "policy.on_rogue": ("--on-rogue", "on_rogue"),
        "policy.guest_walls": ("--guest-walls", "guest_walls"),
    }
)
"""Of a job file's key: the option that says the same, and its field of `JobOptions`."""


class _Reading:
    """Where a job comes from, and one way to complain about it."""

    def __init__(self, source: str, chosen: JobOptions) -> None:
        self.source = source
        # What may be said more than once is both the file's and the command line's.
        given = {key: getattr(chosen, field) for key, (_, field) in _OPTIONS.items()}
        self._typed = {
            key
            for key, value in given.items()
            if source == _COMMAND_LINE or not (value is None or isinstance(value, tuple))
        }

    def fail(self, key: str, found: str, mend: str = "", *, typed: bool | None = None) -> NoReturn:
        """``typed``: whether an option said it; None if there is but one that can have said it."""
        where = f"{self.source}: {key}"
        if key in _OPTIONS and (key in self._typed if typed is None else typed):
            where = f"{_COMMAND_LINE}: {_OPTIONS[key][0]}"
        # The key may be a stranger's, and "found" quotes one.
        raise JobError(f"{where}: {found}", mend=mend)

    def model(self, raw: Mapping[str, Any]) -> _JobFile:
        try:
            return validated(_JobFile, raw)
        except Invalid as invalid:
            raise JobError(*(f"{self.source}: {fault}" for fault in invalid.faults)) from None

    def name(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            self.fail("name", f"found {text[:60]!r}; allowed: 1-32 of a-z, 0-9 and -, not - first")
        return text

    def command(self, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words or not words[0]:
            self.fail(
                "command",
                "is empty",
                'give one: command = ["python3", "train.py"], or after -- on the command line',
            )
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
            if not _ENV_NAME.fullmatch(name):
                self.fail("env", f"found the name {name[:60]!r}; allowed: letters, digits and _")
            if "\0" in value:
                self.fail(f"env.{name}", "holds a NUL character")
        return tuple(pairs.items())

    def beside(self, key: str, text: str, folder: Path) -> Path:
        """A path of a job file: below the file's folder, whoever wrote it, and wherever links lead.

        What is opened later must look again: who wrote the file may change the folder meanwhile.
        """
        path = PurePosixPath(text)
        mend = "name a file elsewhere on the command line, with --input or --vpn"
        outside = path.is_absolute() or ".." in path.parts or text.startswith("~")
        if not text or outside or "\0" in text:
            self.fail(
                key, f"found {text[:120]!r}; allowed: a path below the job file's own folder", mend
            )
        found = folder.joinpath(*path.parts)
        # Not Path.resolve, which raises for a circle of links before Python 3.13.
        if not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(folder)):
            self.fail(key, f"found {text[:120]!r}, a link out of the job file's own folder", mend)
        return found

    def inputs(self, file: _JobFile, folder: Path, chosen: JobOptions) -> tuple[Input, ...]:
        anchor = Path.cwd()
        found = []
        for text in file.inputs:
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

    def landing(self, file: _JobFile, chosen: JobOptions) -> Landing | None:
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
            every = self.outputs((*file.outputs, *chosen.outputs))
            if not every:
                self.fail("--output-dir", "is given, and no output is named", "add --output NAME")
            return Landing(anchor / chosen.output_dir, every)
        return Landing(anchor, self.outputs(chosen.outputs)) if chosen.outputs else None

    def choice(self, key: str, text: str, allowed: tuple[str, ...]) -> str:
        if text not in allowed:
            self.fail(key, f"found {text[:60]!r}; allowed: {', '.join(allowed)}")
        return text

    def size(self, key: str, text: str, low: int, high: int) -> int:
        try:
            size = parse_size(text)
        except ValueError as error:
            self.fail(key, f"found {error}")
        if size < low:
            self.fail(key, f"found {text!r}; allowed: at least {size_text(low)}")
        if size > high:
            self.fail(key, f"found {text!r}; this machine has {high // 2**20}MiB", "ask for less")
        return size


def job_keys() -> tuple[str, ...]:
    """Every key that a job file may have, with its table's name: ``policy.on_rogue``."""
    return keys(_JobFile)


def load_job(
    path: Path, limits: HostLimits | None = None, options: JobOptions | None = None
) -> Job:
    """The job of a file, with the command line's ``options`` over it.

    ``limits`` are this machine's unless given. Raises `JobError`, naming the file, the line (of a
    syntax error) or the key, what was found and what is allowed.
    """
    raw = _read(path, "job file", _LARGEST_JOB_FILE)
    try:
        parsed = toml.parse(raw)
    except toml.TomlError as error:
        raise JobError(error.at(path)) from None
    reading = _Reading(str(path), options or JobOptions())
    file_job = reading.model(parsed)
    return _build(reading, file_job, path.absolute().parent, path.stem, limits, options)


def job_from_options(
    options: JobOptions, limits: HostLimits | None = None, folder: Path | None = None
) -> Job:
    """The job of a command line alone. ``folder`` (the working folder) anchors relative paths.

    Raises `JobError` as `load_job` does, with "command line" in the file's place.
    """
    reading = _Reading(_COMMAND_LINE, options)
    stem = Path(options.command[0]).name if options.command else "job"
    return _build(reading, _JobFile(), folder or Path.cwd(), stem, limits, options)


def _first(*values: _T | None, default: _T) -> _T:
    return next((value for value in values if value is not None), default)


def _build(
    reading: _Reading,
    file: _JobFile,
    folder: Path,
    stem: str,
    limits: HostLimits | None,
    options: JobOptions | None,
) -> Job:
    chosen = options or JobOptions()
    host = limits or HostLimits.of_this_host(folder)
    anchor = Path.cwd()
    vpn, gateway = _tunnel(reading, file, folder, chosen, anchor)
    cpus = _first(chosen.cpus, file.resources.cpus, default=DEFAULT_CPUS)
    if not 1 <= cpus <= host.cpus:
        reading.fail("resources.cpus", f"found {cpus}; allowed: 1-{host.cpus}, this machine's")
    memory = _first(chosen.memory, file.resources.memory, default=DEFAULT_MEMORY)
    disk = _first(chosen.disk, file.resources.disk, default=DEFAULT_DISK)
    everything = () if chosen.sync is None else (".",)
    policy = file.policy
    rogue = _first(chosen.on_rogue, default=policy.on_rogue)
    walls = _first(chosen.guest_walls, default=policy.guest_walls)
    return Job(
        name=reading.name(_first(chosen.name, file.name, default=_as_name(stem))),
        command=reading.command(chosen.command or tuple(file.command)),
        image=_image(reading, _first(chosen.image, default=file.image)),
        inputs=reading.inputs(file, folder, chosen),
        excludes=(*file.exclude, *chosen.excludes),
        outputs=reading.outputs((*file.outputs, *chosen.outputs, *everything)),
        landing=reading.landing(file, chosen),
        timeout=_timeout(reading, "timeout", chosen.timeout or file.timeout),
        grace=_grace(reading, chosen.grace or file.grace),
        env=reading.env({**file.env, **dict(chosen.env)}),
        cpus=cpus,
        memory=reading.size("resources.memory", memory, SMALLEST_MEMORY, host.memory),
        disk=reading.size("resources.disk", disk, SMALLEST_DISK, host.disk),
        vpn=vpn,
        vpn_beneath=folder if vpn is not None and chosen.vpn is None else None,
        gateway=gateway,
        rate=_rate(reading, _first(chosen.rate, file.resources.rate, default="")),
        quota=_quota(reading, _first(chosen.quota, file.resources.quota, default="")),
        on_rogue=OnRogue(
            reading.choice("policy.on_rogue", rogue, tuple(item.value for item in OnRogue))
        ),
        tunnel_timeout=_timeout(
            reading, "policy.tunnel_timeout", policy.tunnel_timeout, LONGEST_TUNNEL_TIMEOUT
        ),
        verify_timeout=_timeout(
            reading, "policy.verify_timeout", policy.verify_timeout, LONGEST_VERIFY_TIMEOUT
        ),
        guest_walls=GUEST_WALLS[reading.choice("policy.guest_walls", walls, tuple(GUEST_WALLS))],
        asked=frozenset(
            limit
            for limit in LIMITS
            if any(
                getattr(place, limit, None) is not None
                for place in (chosen, file, file.resources, policy)
            )
        ),
        of_file=frozenset(
            f"policy.{key}"
            for key, typed in (("on_rogue", chosen.on_rogue), ("guest_walls", chosen.guest_walls))
            if typed is None and getattr(policy, key) != getattr(_Policy(), key)
        ),
    )


def _tunnel(
    reading: _Reading, file: _JobFile, folder: Path, chosen: JobOptions, anchor: Path
) -> tuple[Path | None, GatewayAsked | None]:
    """The job's one tunnel. With neither [vpn] nor [gateway]: the gateway, with nothing open."""
    asks_gateway = bool(chosen.allow or chosen.services)
    if chosen.vpn is not None:
        if asks_gateway:
            reading.fail("--vpn", "can't be combined with --allow or --service: one tunnel a cell")
        return anchor / chosen.vpn, None
    if file.vpn is not None:
        if file.gateway is not None or asks_gateway:
            reading.fail("vpn, gateway", "both are given; a cell has exactly one tunnel")
        return reading.beside("vpn.config", file.vpn.config, folder), None
    asked = file.gateway or _Gateway()
    allow = tuple(dict.fromkeys((*asked.allow, *chosen.allow)))
    services = {**asked.services, **dict(chosen.services)}
    for what, found, most in (
        ("gateway.allow", allow, MOST_RULES),
        ("gateway.services", services, MOST_SERVICES),
    ):
        if len(found) > most:
            reading.fail(what, f"{len(found)} of them; allowed: at most {most}")
    typed = dict(chosen.services)
    for rule in allow:
        try:
            parse_rule(rule)
        except PolicyError as error:
            reading.fail("gateway.allow", error.message, error.mend, typed=rule in chosen.allow)
    for inner, outer in services.items():
        from wgcell.gateway.config import check_services  # 5 ms that most cells need not wait for

        try:
            check_services((parse_service(inner, outer),), inside.TAKEN)
        except PolicyError as error:
            reading.fail("gateway.services", error.message, error.mend, typed=inner in typed)
    return None, GatewayAsked(
        allow,
        tuple(services.items()),
        file_allow=tuple(rule for rule in allow if rule not in chosen.allow),
        file_services=tuple(pair for pair in services.items() if pair[0] not in typed),
    )


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


def _image(reading: _Reading, text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", text, re.ASCII) or ".." in text:
        reading.fail("image", f"found {text[:60]!r}; allowed: 1-64 of a-z, 0-9 and . _ -")
    return text


def _rate(reading: _Reading, text: str) -> float | None:
    try:
        return parse_rate(text) if text else None
    except ValueError as error:
        reading.fail("resources.rate", f"found {error}")


def _quota(reading: _Reading, text: str) -> int | None:
    return reading.size("resources.quota", text, SMALLEST_QUOTA, 1 << 62) if text else None


def _grace(reading: _Reading, value: str | float | None) -> float:
    if value is None:
        return DEFAULT_GRACE
    if value in (0, "0", "0s"):
        return 0.0
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        reading.fail("grace", f"found {error}")
    if seconds > LONGEST_GRACE:
        reading.fail("grace", f"found {value!r}; allowed: 0 to {LONGEST_GRACE / 60:g} minutes")
    return seconds


def _timeout(
    reading: _Reading, key: str, value: str | float | None, most: float = LONGEST_TIMEOUT
) -> float | None:
    if value is None:
        return None
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        reading.fail(key, f"found {error}")
    if seconds > most:
        reading.fail(key, f"found {value!r}; allowed: at most {duration_text(most)}")
    return seconds
