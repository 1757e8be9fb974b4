"""The provider's own word, which no job widens: ``$XDG_CONFIG_HOME/wgcell/config.toml``.

::

    allow_endpoints = ["203.0.113.0/24"]   # endpoints beyond the Internet's plain addresses
    allow_emulation = true                 # QEMU's TCG where KVM does not work
    require_walls = false                  # refuse to run where a wall of the host's is missing
    allow_embedded_gateway = true          # whether a job may ask for the embedded gateway
    gateway_engine = "auto"                # or "namespace", or "embedded"; see GatewayEngine
    allow_learn = true                     # whether --learn may open everything public
    resolver = ["192.0.2.53"]              # where cells' names are asked, not this host's own
    [ceilings]
    cpus = 4
    memory = "8GiB"
    disk = "20GiB"
    timeout = "12h"
    rate = "100Mbit"
    quota = "50GiB"
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from wgcell.cell.endpoint import parse_networks
from wgcell.cell.job import Job, parse_duration, parse_rate, parse_size
from wgcell.cell.schema import Invalid, validated
from wgcell.errors import EndpointError, JobError

__all__ = [
    "Ceilings",
    "GatewayEngine",
    "Provider",
    "apply_ceilings",
    "config_path",
    "load_provider",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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


@dataclass(frozen=True, slots=True)
class Provider:
    """The provider's configuration. The defaults are those of a machine without a file."""

    allow_endpoints: tuple[Network, ...] = ()
    allow_emulation: bool = True
    require_walls: bool = False
    allow_embedded_gateway: bool = True
    gateway_engine: GatewayEngine = GatewayEngine.AUTO
    allow_learn: bool = True
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


@dataclass(frozen=True, slots=True)
class _File:
    allow_endpoints: list[str] = field(default_factory=list)
    allow_emulation: bool = True
    require_walls: bool = False
    allow_embedded_gateway: bool = True
    gateway_engine: str = GatewayEngine.AUTO.value
    allow_learn: bool = True
    resolver: list[str] = field(default_factory=list)
    ceilings: _Ceilings = field(default_factory=_Ceilings)


def config_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where the provider's configuration is, whether or not it exists."""
    variables = os.environ if environment is None else environment
    base = variables.get("XDG_CONFIG_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".config"
    return root / "wgcell" / "config.toml"


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
        file = validated(_File, tomllib.loads(raw.decode("utf-8")))
    except Invalid as invalid:
        lines = [
            f"{place}: {'.'.join(map(str, fault.place))}: {fault.reason}"
            for fault in invalid.faults
        ]
        raise JobError("\n".join(lines)) from None
    except (ValueError, RecursionError) as error:
        raise JobError(f"{place}: not TOML: {error}") from None
    return Provider(
        allow_endpoints=_networks(file.allow_endpoints, place),
        allow_emulation=file.allow_emulation,
        require_walls=file.require_walls,
        allow_embedded_gateway=file.allow_embedded_gateway,
        gateway_engine=_gateway_engine(file.gateway_engine, place),
        allow_learn=file.allow_learn,
        resolver=tuple(file.resolver),
        ceilings=_ceilings(file.ceilings, place),
    )


def _networks(texts: list[str], place: Path) -> tuple[Network, ...]:
    try:
        return parse_networks(texts, f"{place}: allow_endpoints")
    except EndpointError as error:
        raise JobError(error.message) from None


def _gateway_engine(text: str, place: Path) -> GatewayEngine:
    try:
        return GatewayEngine(text)
    except ValueError:
        allowed = ", ".join(engine.value for engine in GatewayEngine)
        raise JobError(
            f"{place}: gateway_engine: found {text[:80]!r}; allowed: {allowed}"
        ) from None


def _ceilings(file: _Ceilings, place: Path) -> Ceilings:
    if file.cpus is not None and file.cpus < 1:
        raise JobError(f"{place}: ceilings.cpus: found {file.cpus}; allowed: 1 and more")
    try:
        return Ceilings(
            cpus=file.cpus,
            memory=None if file.memory is None else parse_size(file.memory),
            disk=None if file.disk is None else parse_size(file.disk),
            timeout=None if file.timeout is None else parse_duration(file.timeout),
            rate=None if file.rate is None else parse_rate(file.rate),
            quota=None if file.quota is None else parse_size(file.quota),
        )
    except ValueError as error:
        raise JobError(f"{place}: ceilings: found {error}") from None


def apply_ceilings(job: Job, provider: Provider) -> None:
    """Raise `JobError` if ``job`` asks for more than the provider gives.

    A job without a timeout, rate or quota is refused where there is a ceiling for it: it must say.
    """
    ceilings = provider.ceilings
    asked: tuple[tuple[str, float, float | None, str], ...] = (
        ("resources.cpus", job.cpus, ceilings.cpus, ""),
        ("resources.memory", job.memory, ceilings.memory, " bytes"),
        ("resources.disk", job.disk, ceilings.disk, " bytes"),
        ("timeout", job.timeout or float("inf"), ceilings.timeout, " s"),
        ("resources.rate", job.rate or float("inf"), ceilings.rate, " bytes a second"),
        ("resources.quota", job.quota or float("inf"), ceilings.quota, " bytes"),
    )
    for key, value, ceiling, unit in asked:
        if ceiling is not None and value > ceiling:
            found = "none" if value == float("inf") else f"{value:g}{unit}"
            raise JobError(
                f"job {job.name}: {key}: found {found}; "
                f"this provider allows at most {ceiling:g}{unit}"
            )
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
