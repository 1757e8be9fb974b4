"""The provider's own word, which no job widens: ``$XDG_CONFIG_HOME/wgcell/config.toml``.

::

    allow_endpoints = ["203.0.113.0/24"]   # endpoints beyond the Internet's plain addresses
    allow_emulation = true                 # QEMU's TCG where KVM does not work
    require_walls = false                  # refuse to run where a wall of the host's is missing
    allow_embedded_gateway = true          # whether a job may ask for the embedded gateway
    gateway_engine = "auto"                # or "namespace", or "embedded"; see GatewayEngine
    allow_learn = true                     # whether --learn may open everything public
    allow_targets = ["192.168.1.5:8000"]   # what a job file may open on this side of the tunnel
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

What a person types is its own word: only ceilings, ``require_walls``, ``allow_learn`` and
``allow_embedded_gateway`` bind it. What a job *file* asks for, `wgcell.cell.permissions` looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from wgcell import toml
from wgcell.cell.endpoint import parse_networks
from wgcell.cell.job import (
    Job,
    duration_text,
    parse_duration,
    parse_rate,
    parse_size,
    rate_text,
    size_text,
)
from wgcell.cell.schema import Invalid, validated
from wgcell.display import one_line
from wgcell.errors import EndpointError, JobError, PolicyError
from wgcell.gateway.policy import Rule, parse_rule
from wgcell.home import config_path
from wgcell.net.addresses import Network

__all__ = [
    "Ceilings",
    "GatewayEngine",
    "Provider",
    "apply_ceilings",
    "load_provider",
]


class GatewayEngine(Enum):
    """Which engine a cell's own gateway is."""

    AUTO = "auto"
    """The namespace engine where this machine has what it takes, else the embedded one."""
    NAMESPACE = "namespace"
    """The host's kernel has the tunnel's end, in a network of its own: refusals in TCP's and ICMP's
    own words. Without what it takes, no cell with a gateway of its own runs."""
    EMBEDDED = "embedded"
    """A program has it, so that no packet of a guest's is parsed by the host's kernel."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most a job may ask for; None is no ceiling. Bytes, and seconds."""

    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    timeout: float | None = None
    rate: float | None = None
    quota: int | None = None
    grace: float | None = None
    tunnel_timeout: float | None = None
    verify_timeout: float | None = None


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
    """What a job file may open although it is on this side: by a rule, or as a service."""
    allow_freeze: bool = False
    """Whether a job file may have a rogue machine frozen: it keeps its memory until it is ended."""
    allow_guest_walls_off: bool = False
    """Whether a job file may start its guest without walls."""
    resolver: tuple[str, ...] = ()
    ceilings: Ceilings = Ceilings()


@dataclass(frozen=True, slots=True)
class _Ceilings:
    cpus: int | None = None
    memory: str | None = None
    disk: str | None = None
    timeout: str | int | None = None
    rate: str | None = None
    quota: str | None = None
    grace: str | int | None = None
    tunnel_timeout: str | int | None = None
    verify_timeout: str | int | None = None


@dataclass(frozen=True, slots=True)
class _File:
    allow_endpoints: list[str] = field(default_factory=list)
    allow_emulation: bool = True
    require_walls: bool = False
    allow_embedded_gateway: bool = True
    gateway_engine: str = GatewayEngine.AUTO.value
    allow_learn: bool = True
    allow_targets: list[str] = field(default_factory=list)
    allow_freeze: bool = False
    allow_guest_walls_off: bool = False
    resolver: list[str] = field(default_factory=list)
    ceilings: _Ceilings = field(default_factory=_Ceilings)


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
        file = validated(_File, toml.parse(raw))
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
        allow_freeze=file.allow_freeze,
        allow_guest_walls_off=file.allow_guest_walls_off,
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


def _gateway_engine(text: str, place: Path) -> GatewayEngine:
    try:
        return GatewayEngine(text)
    except ValueError:
        allowed = ", ".join(engine.value for engine in GatewayEngine)
        raise JobError(
            f"{place}: gateway_engine: found {text[:80]!r}; allowed: {allowed}"
        ) from None


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "memory": parse_size,
    "disk": parse_size,
    "timeout": parse_duration,
    "rate": parse_rate,
    "quota": parse_size,
    "grace": parse_duration,
    "tunnel_timeout": parse_duration,
    "verify_timeout": parse_duration,
}
_IN_WORDS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "cpus": ("resources.cpus", str),
    "memory": ("resources.memory", size_text),
    "disk": ("resources.disk", size_text),
    "timeout": ("timeout", duration_text),
    "rate": ("resources.rate", rate_text),
    "quota": ("resources.quota", size_text),
    "grace": ("grace", duration_text),
    "tunnel_timeout": ("policy.tunnel_timeout", duration_text),
    "verify_timeout": ("policy.verify_timeout", duration_text),
}
"""Of each limit: its key in a job file, and a value as that file has it."""
_OWN = ("tunnel_timeout", "verify_timeout")
"""Limits for which wgcell has a value of its own where nobody asks for one."""


def _ceilings(file: _Ceilings, place: Path) -> Ceilings:
    if file.cpus is not None and file.cpus < 1:
        raise JobError(f"{place}: ceilings.cpus: found {file.cpus}; allowed: 1 and more")
    parsed: dict[str, Any] = {"cpus": file.cpus}
    for key, parse in _PARSERS.items():
        value = getattr(file, key)
        try:
            parsed[key] = None if value is None else parse(value)
        except ValueError as error:
            raise JobError(one_line(f"{place}: ceilings.{key}: found {error}")) from None
    return Ceilings(**parsed)


def apply_ceilings(job: Job, provider: Provider) -> Job:
    """``job`` within what the provider gives.

    A default that nobody asked for is lowered to the ceiling, and no limit becomes the ceiling.
    Raises `JobError` if the job asks for more.
    """
    lowered: dict[str, Any] = {}
    for limit, (key, text) in _IN_WORDS.items():
        value, ceiling = getattr(job, limit), getattr(provider.ceilings, limit)
        if ceiling is None or (value is not None and value <= ceiling):
            continue
        if value is None and limit in _OWN:
            continue
        if limit in job.asked:
            raise JobError(
                f"job {job.name}: {key}: found {text(value)}; "
                f"this provider allows at most {text(ceiling)}",
                mend=f"ask for {text(ceiling)} or less (ceilings.{limit} in {config_path()})",
            )
        lowered[limit] = ceiling
    if job.gateway is not None and job.gateway.learn and not provider.allow_learn:
        raise JobError(
            f"job {job.name}: --learn: this provider does not allow it",
            mend="it opens everything that is public; name what is needed with --allow",
        )
    if job.gateway is not None and not provider.allow_embedded_gateway:
        raise JobError(
            f"job {job.name}: gateway: this provider does not allow the embedded gateway",
            mend="give the job a [vpn] config of its own",
        )
    return replace(job, **lowered) if lowered else job
