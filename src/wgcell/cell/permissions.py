"""What a stranger's job file may ask of the provider, key by key.

Whoever types a command line speaks for himself, and only the provider's ceilings bind him. A job
*file* may come from a stranger, and he from nowhere near: what it asks for passes this table first.
Each key has a row: a ceiling, a permission in the provider's configuration, or a sentence that says
why the key is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from wgcell.cell.job import Job, OnRogue
from wgcell.cell.provider import Provider
from wgcell.errors import JobError
from wgcell.gateway.policy import Policy, Rule, parse_rule
from wgcell.guest.walls import Wall
from wgcell.home import config_path
from wgcell.net import addresses
from wgcell.net.addresses import Address, Network

__all__ = ["ROWS", "By", "Row", "vet"]


class By(Enum):
    """What bounds a key of a job file."""

    CEILING = "ceiling"
    """The key of the provider's ``[ceilings]`` that ``why`` names."""
    PERMISSION = "permission"
    """The key of the provider's configuration that ``why`` names."""
    HARMLESS = "harmless"
    """``why`` says it in a sentence."""


@dataclass(frozen=True, slots=True)
class Row:
    """One key of a job file."""

    key: str
    by: By
    why: str


ROWS: tuple[Row, ...] = (
    Row("name", By.HARMLESS, "At most 32 of a-z, 0-9 and -: a part of the cell's id."),
    Row("command", By.HARMLESS, "It is run in the machine, which is what a cell is for."),
    Row("image", By.HARMLESS, "One of the images that the provider has built, or wgcell's own."),
    Row("inputs", By.HARMLESS, "They lie in the job file's own folder, whatever links say."),
    Row("exclude", By.HARMLESS, "It only leaves inputs out."),
    Row("outputs", By.HARMLESS, "They stay in the cell's folder, and within its disk."),
    Row("timeout", By.CEILING, "timeout"),
    Row("grace", By.CEILING, "grace"),
    Row("env", By.HARMLESS, "It is the workload's, in the machine; no program of the host has it."),
    Row("resources.cpus", By.CEILING, "cpus"),
    Row("resources.memory", By.CEILING, "memory"),
    Row("resources.disk", By.CEILING, "disk"),
    Row("resources.rate", By.CEILING, "rate"),
    Row("resources.quota", By.CEILING, "quota"),
    Row("vpn.config", By.PERMISSION, "allow_endpoints"),
    Row("gateway.allow", By.PERMISSION, "allow_targets"),
    Row("gateway.services", By.PERMISSION, "allow_targets"),
    Row("policy.on_rogue", By.PERMISSION, "allow_freeze"),
    Row("policy.tunnel_timeout", By.CEILING, "tunnel_timeout"),
    Row("policy.verify_timeout", By.CEILING, "verify_timeout"),
    Row("policy.guest_walls", By.PERMISSION, "allow_guest_walls_off"),
)
"""Ceilings are held by `wgcell.cell.provider.apply_ceilings`, ``vpn.config`` by
`wgcell.cell.endpoint.vet`; the other permissions here. Without a ceiling in the provider's
configuration, `wgcell.cell.job` has one of its own for each time."""


def vet(job: Job, provider: Provider, own: Callable[[], Sequence[Network]]) -> None:
    """Raise `JobError` for the first thing that the job's file may not ask of this provider.

    ``own`` says what this machine's own addresses and networks are; called only if it matters.
    """
    walls_off = job.guest_walls != frozenset(Wall)
    if walls_off and provider.require_walls:
        raise JobError(
            f"job {job.name}: policy.guest_walls: this provider requires every wall",
            mend="leave guest_walls out; off exists to test the host's walls",
        )
    if walls_off and "policy.guest_walls" in job.of_file and not provider.allow_guest_walls_off:
        raise _refused(
            *(job, "policy.guest_walls", "found 'off', which a job file may not say here"),
            *("--guest-walls off", "allow_guest_walls_off = true"),
        )
    frozen = job.on_rogue is OnRogue.FREEZE and "policy.on_rogue" in job.of_file
    if frozen and not provider.allow_freeze:
        raise _refused(
            *(job, "policy.on_rogue", "found 'freeze', which a job file may not say here"),
            *("--on-rogue freeze", "allow_freeze = true"),
        )
    if job.gateway is not None and (job.gateway.file_allow or job.gateway.file_services):
        _vet_gateway(job, provider, own)


def _vet_gateway(job: Job, provider: Provider, own: Callable[[], Sequence[Network]]) -> None:
    asked = job.gateway
    if asked is None:
        return
    rules = [(text, parse_rule(text)) for text in asked.file_allow]
    single = [(text, rule) for text, rule in rules if rule.single]
    if not single and not asked.file_services:
        return
    # A rule opens a protected address only by being that very one; ranges and names never do.
    side = Policy(protected=tuple(own()))
    for text, rule in single:
        address = None if rule.network is None else rule.network.network_address
        kind = "" if address is None else side.kept(address)
        protocols = (rule.protocol,) if rule.protocol else ("tcp", "udp")
        ports = rule.first_port, rule.last_port
        if kind and not all(
            _listed(provider.allow_targets, "", address, ports, protocol) for protocol in protocols
        ):
            raise _refused(
                *(job, "gateway.allow", f"{text!r} is {kind}, on this side of the tunnel"),
                *(f"--allow {text}", f'allow_targets = ["{text}"]'),
            )
    for inside, outside in asked.file_services:
        host, port = addresses.host_and_port(outside)
        address = addresses.address(host) if addresses.is_address(host) else None
        # A name is asked of this machine's resolver, and may lead anywhere.
        kind = "a name" if address is None else side.kept(address)
        name = "" if address is not None else host.lower().rstrip(".")
        if kind and not _listed(provider.allow_targets, name, address, (port, port), "tcp"):
            raise _refused(
                *(job, "gateway.services", f"{outside!r} is {kind}, on this side of the tunnel"),
                *(f"--service {inside}={outside}", f'allow_targets = ["{outside}"]'),
            )


def _listed(
    allowed: Sequence[Rule],
    name: str,
    address: Address | None,
    ports: tuple[int, int],
    protocol: str,
) -> bool:
    """Whether one line of the provider's list has all of it."""
    return any(
        rule.protocol in ("", protocol)
        and rule.first_port <= ports[0]
        and ports[1] <= rule.last_port
        and (
            (address is not None and rule.network is not None and address in rule.network)
            or (bool(name) and rule.names(name))
        )
        for rule in allowed
    )


def _refused(job: Job, key: str, found: str, typed: str, listed: str) -> JobError:
    return JobError(
        f"job {job.name}: {key}: {found}",
        mend=f"if you trust it: {typed} on the command line, or {listed} in {config_path()}",
    )
