"""The one tunnel of a job: a VPN file, or the cell's own gateway with rules, services and ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wgcell.cell import inside
from wgcell.cell.job import GatewayAsked, JobOptions
from wgcell.cell.jobsource import JobSource
from wgcell.cell.rows import Written
from wgcell.cell.settings import ALLOW, PUBLISH, SERVICES, VPN
from wgcell.errors import PolicyError
from wgcell.gateway.model.published import parse_published
from wgcell.gateway.model.rules import parse_rule
from wgcell.gateway.model.services import parse_service, placed
from wgcell.net import addresses

__all__ = ["MOST_PUBLISHED", "MOST_RULES", "MOST_SERVICES", "tunnel"]

MOST_RULES = 1024
"""Of a job: each is compared with each flow."""
MOST_SERVICES = 256
MOST_PUBLISHED = 64
_GATEWAY = addresses.address(inside.GATEWAY)


def tunnel(
    source: JobSource, file: Written, folder: Path, chosen: JobOptions
) -> tuple[Path | None, GatewayAsked | None]:
    """The job's VPN file or its gateway. With neither: the gateway, with nothing open.

    ``folder`` anchors the file's path. Raises `JobError`.
    """
    asks_gateway = bool(chosen.allow or chosen.services or chosen.publish)
    if chosen.vpn is not None:
        if asks_gateway:
            words = "can't be combined with --allow, --service or --publish: one tunnel a cell"
            source.fail("--vpn", words)
        return Path.cwd() / chosen.vpn, None
    config = file.get(VPN)
    if config is None:
        return None, _gateway(source, file, chosen)
    if file.has("gateway") or asks_gateway:
        source.fail("vpn, gateway", "both are given; a cell has exactly one tunnel")
    return source.beside(VPN.key, config, folder), None


def _gateway(source: JobSource, file: Written, chosen: JobOptions) -> GatewayAsked:
    allow = tuple(dict.fromkeys((*(file.get(ALLOW) or ()), *chosen.allow)))
    typed = dict(chosen.services)
    services = (file.get(SERVICES) or {}) | typed
    publish = tuple(dict.fromkeys((*(file.get(PUBLISH) or ()), *chosen.publish)))
    _check_rules(source, allow, chosen.allow)
    _check_services(source, services, typed)
    _check_published(source, publish, chosen.publish)
    return GatewayAsked(
        allow,
        tuple(services.items()),
        publish=publish,
        file_allow=tuple(rule for rule in allow if rule not in chosen.allow),
        file_services=tuple(pair for pair in services.items() if pair[0] not in typed),
        file_publish=tuple(one for one in publish if one not in chosen.publish),
    )


def _check_rules(source: JobSource, rules: Sequence[str], typed: Sequence[str]) -> None:
    _check_number(source, ALLOW.key, len(rules), MOST_RULES)
    for rule in rules:
        try:
            parse_rule(rule)
        except PolicyError as error:
            source.fail(ALLOW.key, error.message, error.hint, typed=rule in typed)


def _check_number(source: JobSource, key: str, count: int, most: int) -> None:
    if count > most:
        source.fail(key, f"{count} of them; allowed: at most {most}")


def _check_services(
    source: JobSource, services: Mapping[str, str], typed: Mapping[str, str]
) -> None:
    _check_number(source, SERVICES.key, len(services), MOST_SERVICES)
    for inner, outer in services.items():
        try:
            placed((parse_service(inner, outer),), inside.TAKEN, _GATEWAY)
        except PolicyError as error:
            source.fail(SERVICES.key, error.message, error.hint, typed=inner in typed)
    try:
        placed(tuple(parse_service(*pair) for pair in services.items()), inside.TAKEN, _GATEWAY)
    except PolicyError as error:
        source.fail(SERVICES.key, error.message, error.hint)


def _check_published(source: JobSource, publish: Sequence[str], typed: Sequence[str]) -> None:
    """Refuse too many ports, a malformed one, and a place that is published twice."""
    _check_number(source, PUBLISH.key, len(publish), MOST_PUBLISHED)
    seen: set[tuple[str, int]] = set()
    for text in publish:
        try:
            place = parse_published(text).place
        except PolicyError as error:
            source.fail(PUBLISH.key, error.message, error.hint, typed=text in typed)
        if place in seen:
            where = addresses.written(*place)
            source.fail(PUBLISH.key, f"{where} is published twice", typed=text in typed)
        if place[1]:
            seen.add(place)
