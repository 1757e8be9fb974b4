"""The provider's own word, which no job widens: ``$XDG_CONFIG_HOME/wgcell/config.toml``.

::

    allow_endpoints = ["203.0.113.0/24"]   # endpoints beyond the Internet's plain addresses
    allow_emulation = true                 # QEMU's TCG where KVM does not work
    require_walls = false                  # refuse to run where a wall of the host's is missing
    allow_embedded_gateway = true          # whether a job may ask for the embedded gateway
    gateway_engine = "auto"                # or "namespace", or "embedded"; see GatewayEngine
    allow_learn = true                     # whether --learn may open everything public
    allow_targets = ["192.168.1.5:8000"]   # what a job file may open on this side of the tunnel
    allow_publish = ["127.0.0.1:8000-8009"]  # what of this machine's ports a job file may publish
    allow_freeze = false                   # whether a job file may have a rogue machine kept
    allow_guest_walls_off = false          # whether a job file may start its guest without walls
    resolver = ["192.0.2.53"]              # where cells' names are asked, not this host's own
    [ceilings]
    cpus = 4
    memory = "8GiB"
    disk = "20GiB"
    timeout = "12h"
    rate = "100Mbit"
    quota = "50GiB"
    grace = "30s"
    tunnel_timeout = "5m"                  # these two only where a job asks for one of its own
    verify_timeout = "2m"

What a person types is that person's own word: only the ceilings, ``require_walls``,
``allow_learn``, ``allow_embedded_gateway`` and ``allow_emulation`` bind it. What a job *file* asks
for passes `wgcell.cell.permissions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from wgcell import toml
from wgcell.cell.endpoint import parse_networks
from wgcell.cell.job import Job
from wgcell.cell.rows import By, Column, Row, Unfit, column, less, with_values
from wgcell.cell.schema import Invalid, validated
from wgcell.cell.settings import SETTINGS
from wgcell.errors import EndpointError, JobError, PolicyError
from wgcell.gateway.model.rules import Rule, parse_rule
from wgcell.home import config_path
from wgcell.net.addresses import Network

__all__ = [
    "CEILINGS",
    "PERMISSIONS",
    "GatewayEngine",
    "Provider",
    "apply_ceilings",
    "load_provider",
    "model",
]


CEILINGS = tuple(row for row in SETTINGS if row.by is By.CEILING)
"""The keys of ``[ceilings]``."""
PERMISSIONS = tuple(row.why for row in SETTINGS if row.by is By.PERMISSION)
"""Keys of the file, each true or false: whether a job file may set a setting to anything but its
default."""


class GatewayEngine(Enum):
    """The engine of a cell's own gateway."""

    AUTO = "auto"
    """The namespace engine where this machine has what it takes, else the embedded one."""
    NAMESPACE = "namespace"
    """The host's kernel has the tunnel's end, in a network of its own: refusals in TCP's and ICMP's
    own words. Without what it takes, no cell with a gateway of its own runs."""
    EMBEDDED = "embedded"
    """A program has it, so that no packet of a guest's is parsed by the host's kernel."""


@dataclass(frozen=True, slots=True)
class Provider:
    """The provider's configuration. The defaults are those of a machine without a file."""

    allow_endpoints: tuple[Network, ...] = ()
    allow_emulation: bool = True
    require_walls: bool = False
    allow_embedded_gateway: bool = True
    gateway_engine: GatewayEngine = GatewayEngine.AUTO
    allow_learn: bool = True
    allow_targets: tuple[Rule, ...] = ()
    """Targets on this side that a job file may open: by a rule, or as a service."""
    allow_publish: tuple[Rule, ...] = ()
    """Where on this machine a job file may have a port of its cell's published: addresses and
    ports, and so how many."""
    permissions: frozenset[str] = frozenset()
    """Of `PERMISSIONS`, those that a job file has here."""
    resolver: tuple[str, ...] = ()
    ceilings: Mapping[str, object] = field(default_factory=dict)
    """By the setting's name, as `wgcell.cell.job.Job` has its value; a missing one is no limit."""


@dataclass(frozen=True, slots=True)
class _File:
    """The file's keys that no row of the table makes."""

    allow_endpoints: list[str] = field(default_factory=list)
    allow_emulation: bool = True
    require_walls: bool = False
    allow_embedded_gateway: bool = True
    gateway_engine: str = GatewayEngine.AUTO.value
    allow_learn: bool = True
    allow_targets: list[str] = field(default_factory=list)
    allow_publish: list[str] = field(default_factory=list)
    resolver: list[str] = field(default_factory=list)
    ceilings: object = None
    """A dataclass of `CEILINGS`, in the `model`."""


@cache
def model() -> type[_File]:
    """The file as `wgcell.cell.schema` reads it: with each permission and each ceiling."""
    ceilings = make_dataclass("ceilings", map(column, CEILINGS), frozen=True, slots=True)
    flags: list[Column] = [(name, bool, False) for name in PERMISSIONS]
    columns = [*flags, ("ceilings", ceilings, field(default_factory=ceilings))]
    return make_dataclass("provider", columns, bases=(_File,), frozen=True, slots=True)


def load_provider(path: Path | None = None) -> Provider:
    """The configuration at ``path`` (`config_path` unless given); the defaults if it is missing.

    A file that exists and can't be read or understood raises `JobError`: a limit that is not
    understood must not be no limit.
    """
    place = path or config_path()
    try:
        raw = place.read_bytes()
    except FileNotFoundError:
        return Provider()
    except OSError as error:
        raise JobError(f"{place}: {error.strerror or error}") from None
    try:
        file = validated(model(), toml.parse(raw))
    except Invalid as invalid:
        raise JobError(*(f"{place}: {fault}" for fault in invalid.faults)) from None
    except toml.TomlError as error:
        raise JobError(error.at(place)) from None
    return Provider(
        allow_endpoints=_networks(file.allow_endpoints, place),
        allow_emulation=file.allow_emulation,
        require_walls=file.require_walls,
        allow_embedded_gateway=file.allow_embedded_gateway,
        gateway_engine=_gateway_engine(file.gateway_engine, place),
        allow_learn=file.allow_learn,
        allow_targets=_targets(file.allow_targets, place),
        allow_publish=_places(file.allow_publish, place),
        permissions=frozenset(name for name in PERMISSIONS if getattr(file, name)),
        resolver=tuple(file.resolver),
        ceilings=_ceilings(file.ceilings, place),
    )


def _networks(texts: list[str], place: Path) -> tuple[Network, ...]:
    try:
        return parse_networks(texts, f"{place}: allow_endpoints")
    except EndpointError as error:
        raise JobError(error.message) from None


def _targets(texts: list[str], place: Path) -> tuple[Rule, ...]:
    try:
        rules = tuple(map(parse_rule, texts))
    except PolicyError as error:
        raise JobError(f"{place}: allow_targets: {error.message}") from None
    if any(rule.any for rule in rules):
        raise JobError(f"{place}: allow_targets: found *; allowed: names and addresses")
    return rules


def _places(texts: list[str], place: Path) -> tuple[Rule, ...]:
    try:
        rules = tuple(map(parse_rule, texts))
    except PolicyError as error:
        raise JobError(f"{place}: allow_publish: {error.message}") from None
    for text, rule in zip(texts, rules, strict=True):
        if rule.network is None:
            raise JobError(f"{place}: allow_publish: found {text[:80]!r}; allowed: ADDRESS:PORTS")
    return rules


def _gateway_engine(text: str, place: Path) -> GatewayEngine:
    try:
        return GatewayEngine(text)
    except ValueError:
        allowed = ", ".join(engine.value for engine in GatewayEngine)
        raise JobError(
            f"{place}: gateway_engine: found {text[:80]!r}; allowed: {allowed}"
        ) from None


def _ceilings(table: object, place: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for row in CEILINGS:
        written: object = getattr(table, row.name)
        try:
            if written is not None:
                found[row.name] = row.read(written)
        except Unfit as unfit:
            raise JobError(f"{place}: ceilings.{row.name}: found {unfit}") from None
    return found


def apply_ceilings(job: Job, provider: Provider) -> Job:
    """``job`` within what the provider gives.

    A default that nobody asked for is lowered to the ceiling, and no limit becomes the ceiling.
    Raises `JobError` if the job asks for more.
    """
    lowered: dict[Row[object], object] = {}
    for row in CEILINGS:
        value: object = getattr(job, row.name)
        ceiling = provider.ceilings.get(row.name)
        if ceiling is None or (value is None and row.own):
            continue
        if value is not None and not less(ceiling, value):
            continue
        if row.name in job.asked:
            most = row.kind.text(ceiling)
            raise JobError(
                f"job {job.name}: {row.key}: found {row.kind.text(value)}; "
                f"this provider allows at most {most}",
                hint=f"ask for {most} or less (ceilings.{row.name} in {config_path()})",
            )
        lowered[row] = ceiling
    if job.gateway is not None and job.gateway.learn and not provider.allow_learn:
        raise JobError(
            f"job {job.name}: --learn: this provider does not allow it",
            hint="it opens everything that is public; name what is needed with --allow",
        )
    if job.gateway is not None and not provider.allow_embedded_gateway:
        raise JobError(
            f"job {job.name}: gateway: this provider does not allow the embedded gateway",
            hint="give the job a [vpn] config of its own",
        )
    return with_values(job, lowered)
