"""The permissions that a stranger's job file needs from the provider, key by key.

A person who types a command line needs none of these permissions. A job *file* may come from a
stranger. So each row of `wgcell.cell.settings` has a ceiling, a permission in the provider's
configuration, or a sentence that says why the key is harmless. `wgcell.cell.provider` holds the
ceilings, `wgcell.cell.endpoint.vet` holds ``vpn.config``, and this module the other permissions.
Times have a bound in their rows besides, for a provider without ceilings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from wgcell.cell.job import GatewayAsked, Job
from wgcell.cell.provider import Provider
from wgcell.cell.settings import SETTINGS
from wgcell.errors import JobError
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.published import parse_published
from wgcell.gateway.model.rules import Rule, parse_rule
from wgcell.guest.walls import Wall
from wgcell.home import config_path
from wgcell.net import addresses
from wgcell.net.addresses import Address, Network

__all__ = ["vet", "vet_rule"]


def vet(job: Job, provider: Provider, own: Callable[[], Sequence[Network]]) -> None:
    """Raise `JobError` for the first thing that the job's file may not ask of this provider.

    ``own`` says what this machine's own addresses and networks are; called only if it matters.
    """
    walls_off = job.guest_walls != frozenset(Wall)
    if walls_off and provider.require_walls:
        raise JobError(
            f"job {job.name}: policy.guest_walls: this provider requires every wall",
            hint="leave guest_walls out; off exists to test the host's walls",
        )
    for row in SETTINGS:
        if row.key in job.of_file and row.why not in provider.permissions:
            word = row.kind.text(getattr(job, row.name))
            typed = " ".join((*row.flags[-1:], word)) if row.flags else ""
            found = f"found {word!r}, which a job file may not say here"
            raise _refused(job, row.key, found, typed, f"{row.why} = true")
    if job.gateway is not None:
        _vet_gateway(job, job.gateway, provider, cache(own))
        _vet_published(job, job.gateway, provider)


def vet_rule(text: str, provider: Provider, own: Callable[[], Sequence[Network]]) -> str:
    """The targets beyond the provider's permissions that an ``allow`` of that rule by a stranger
    would open; in words, empty if there are none. Raises `PolicyError` for a malformed rule.
    ``own`` has the meaning of `vet`'s."""
    rule = parse_rule(text)
    if not rule.single or rule.network is None:
        # A rule opens a protected address only by being that very one: ranges and names never do.
        return ""
    address = rule.network.network_address
    kind = Policy(protected=tuple(own())).protection(address)
    protocols = (rule.protocol,) if rule.protocol else ("tcp", "udp")
    ports = rule.first_port, rule.last_port
    if not kind or all(
        _listed(provider.allow_targets, "", address, ports, protocol) for protocol in protocols
    ):
        return ""
    return f"{text!r} is {kind}, on this side of the tunnel"


def _vet_published(job: Job, asked: GatewayAsked, provider: Provider) -> None:
    for text in asked.file_publish:
        port = parse_published(text)
        # Any free port may be any port.
        ports = (port.port, port.port) if port.port else (1, 65535)
        if not _listed(provider.allow_publish, "", port.address, ports, "tcp"):
            where = addresses.written(str(port.address), port.port) if port.port else ""
            place = where or f"{addresses.written(str(port.address), 1)}-65535"
            raise _refused(
                *(job, "gateway.publish", f"{text!r} is a port of this machine's"),
                *(f"--publish {text}", f'allow_publish = ["{place}"]'),
            )


def _vet_gateway(
    job: Job, asked: GatewayAsked, provider: Provider, own: Callable[[], Sequence[Network]]
) -> None:
    for text in asked.file_allow:
        if refused := vet_rule(text, provider, own):
            raise _refused(
                *(job, "gateway.allow", refused),
                *(f"--allow {text}", f'allow_targets = ["{text}"]'),
            )
    side = Policy(protected=tuple(own())) if asked.file_services else Policy()
    for inside, outside in asked.file_services:
        host, port = addresses.host_and_port(outside)
        address = addresses.address(host) if addresses.is_address(host) else None
        # A name is asked of this machine's resolver, and may lead anywhere.
        kind = "a name" if address is None else side.protection(address)
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
    on_command_line = f"{typed} on the command line, or " if typed else ""
    return JobError(
        f"job {job.name}: {key}: {found}",
        hint=f"if you trust it: {on_command_line}{listed} in {config_path()}",
    )
