"""What is right about a policy's rules and yet not meant: said before it surprises. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from wgcell.gateway.config import GatewayConfig
from wgcell.gateway.policy import PROTECTED, Network, Rule, Verdict
from wgcell.net import addresses

__all__ = ["of_gateway", "of_rules"]


def of_gateway(config: GatewayConfig) -> list[str]:
    """Of every peer's rules, each once."""
    own = [config.address, *(peer.address for peer in config.peers)]
    about = config.protected, tuple(map(addresses.only, own))
    said = [text for peer in config.peers for text in of_rules(peer.policy.rules, *about)]
    return list(dict.fromkeys(said))


def of_rules(
    rules: tuple[Rule, ...],
    protected: tuple[Network, ...] = (),
    inside: tuple[Network, ...] = (),
) -> list[str]:
    """Of rules in their order: what opens more, or less, than its author may think.

    ``inside`` are the addresses of the gateway and its peers in the tunnel.
    """
    found = [text for rule in rules for text in _alone(rule, protected, inside)]
    for number, rule in enumerate(rules):
        before = next((r for r in rules[:number] if _covers(r, rule, protected)), None)
        if before is not None and before.text != rule.text:
            found.append(f"{rule.text!r} is never read: {before.text!r} stands before it")
    return found


def _alone(
    rule: Rule, protected: tuple[Network, ...], inside: tuple[Network, ...]
) -> Iterator[str]:
    if rule.written:
        yield f"{rule.written} is {rule.name} in the form that is asked of resolvers"
    if rule.verdict is Verdict.REFUSE:
        return
    if rule.any:
        yield f"{rule.text!r} OPENS EVERY PUBLIC HOST on that port, and checks none of them"
    if not rule.checked:
        yield f"{rule.text!r} opens whatever shares an address with {rule.name}: no host is checked"
    if rule.network is not None and not rule.single:
        kind = _within(rule.network, protected)
        if kind:
            why = f"{rule.network} is {kind}, which only a rule for the very address opens"
            yield f"{rule.text!r} opens nothing: {why}"
    elif rule.network in inside:
        yield f"{rule.text!r} opens nothing: only a service of another address is in the tunnel"


def _within(network: Network, protected: tuple[Network, ...]) -> str:
    """What kind of protected range holds all of ``network``; empty if none does."""
    for wide, kind in (*PROTECTED, *((own, "this side's own") for own in protected)):
        if _holds(wide, network):
            return kind
    return ""


def _holds(wide: Network, narrow: Network) -> bool:
    first, last = narrow.network_address, narrow.broadcast_address
    return wide.version == narrow.version and first in wide and last in wide


def _covers(before: Rule, rule: Rule, protected: tuple[Network, ...]) -> bool:
    """Whether ``rule`` can't be reached, for ``before`` matches all that it does."""
    ports = before.first_port <= rule.first_port and rule.last_port <= before.last_port
    if not ports or before.protocol not in ("", rule.protocol):
        return False
    # One that allows a range passes over what is protected in it.
    passes_over = before.verdict is Verdict.ALLOW and not before.single
    if rule.network is not None:
        own = [network for network, _ in PROTECTED] + list(protected)
        if passes_over and any(rule.network.overlaps(network) for network in own):
            return False
        return before.any or (before.network is not None and _holds(before.network, rule.network))
    if before.any:
        return True
    return bool(before.name) and not rule.any and before.names(rule.name.removeprefix("*"))
