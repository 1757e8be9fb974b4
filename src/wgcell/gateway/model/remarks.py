"""What is right about a policy's rules and yet not meant: said before it surprises. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.policy import PROTECTED
from wgcell.gateway.model.rules import Action, Rule
from wgcell.net import addresses
from wgcell.net.addresses import Address, Network

__all__ = ["of_gateway", "of_rules", "without_way"]


def of_gateway(config: GatewayConfig) -> list[str]:
    """Of every peer's rules, each once."""
    about = config.protected, tuple(map(addresses.only, config.inside))
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
    read = _Read()
    last = _last_protected(rules, protected)
    for number, rule in enumerate(rules):
        own = rule.network is not None and _touches(rule.network, protected)
        # A rule that denies by name may close what a later one opens: a protected address.
        closes = number < last and rule.network is None and rule.action is Action.REFUSE
        around = (r for r in read.around(rule) if not (closes and r.action is Action.ALLOW))
        before = next((r for r in around if _covers(r, rule, own)), None)
        if before is not None and before.text != rule.text:
            found.append(f"{rule.text!r} is never read: {before.text!r} stands before it")
        read.add(rule)
    return found


def _last_protected(rules: tuple[Rule, ...], protected: tuple[Network, ...]) -> int:
    """The place of the last rule that opens a protected address; -1 if none does."""
    opens = (
        number
        for number, rule in enumerate(rules)
        if rule.single and rule.action is Action.ALLOW
        if rule.network is not None and _touches(rule.network, protected)
    )
    return max(opens, default=-1)


def without_way(rules: tuple[Rule, ...], way: Callable[[Address], bool]) -> list[str]:
    """Of rules for IPv6 that open nothing on this machine; ``way`` says whether it has one."""
    return [
        f"{rule.text!r} opens nothing: this machine has no way to {rule.network.network_address}"
        for rule in rules
        if rule.action is Action.ALLOW and rule.network is not None and rule.network.version == 6
        if not way(rule.network.network_address + (0 if rule.single else 1))
    ]


class _Read:
    """The rules so far, found by their hosts: to compare each with each takes a minute of 1,024."""

    def __init__(self) -> None:
        self._rules: dict[object, list[tuple[int, Rule]]] = {}
        self._count = 0

    def add(self, rule: Rule) -> None:
        """One more rule."""
        key = rule.name if rule.network is None else _key(rule.network)
        self._rules.setdefault(key, []).append((self._count, rule))
        self._count += 1

    def around(self, rule: Rule) -> Iterator[Rule]:
        """Those in their order whose host may hold all that ``rule``'s does."""
        keys: list[object] = ["*", rule.name]
        if rule.network is not None:
            keys = ["*", *_keys_around(rule.network)]
        elif not rule.any:
            labels = rule.name.removeprefix("*.").split(".")
            keys += ["*." + ".".join(labels[at:]) for at in range(1, len(labels))]
        found = [self._rules.get(key, ()) for key in dict.fromkeys(keys)]
        return (one for _, one in heapq.merge(*found, key=lambda item: item[0]))


def _key(network: Network) -> tuple[int, int, int]:
    return network.version, network.prefixlen, int(network.network_address)


def _keys_around(network: Network) -> Iterator[tuple[int, int, int]]:
    number, width = int(network.network_address), network.max_prefixlen
    for length in range(network.prefixlen + 1):
        yield network.version, length, number >> (width - length) << (width - length)


def _alone(
    rule: Rule, protected: tuple[Network, ...], inside: tuple[Network, ...]
) -> Iterator[str]:
    if rule.written:
        yield f"{rule.written} is {rule.name} in the form that is asked of resolvers"
    if rule.action is Action.REFUSE:
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


def _touches(network: Network, protected: tuple[Network, ...]) -> bool:
    """Whether something within ``network`` is protected."""
    own = (*(wide for wide, _ in PROTECTED), *protected)
    return any(network.version == one.version and network.overlaps(one) for one in own)


def _covers(before: Rule, rule: Rule, own: bool) -> bool:
    """Whether ``rule`` can't be reached, for ``before`` matches all that it does.

    ``own``: something of what ``rule`` matches is protected.
    """
    ports = before.first_port <= rule.first_port and rule.last_port <= before.last_port
    if not ports or before.protocol not in ("", rule.protocol):
        return False
    # One that allows a range passes over what is protected in it.
    passes_over = before.action is Action.ALLOW and not before.single
    if rule.network is not None:
        if passes_over and own:
            return False
        return before.any or (before.network is not None and _holds(before.network, rule.network))
    if before.any:
        return True
    return bool(before.name) and not rule.any and before.names(rule.name.removeprefix("*"))
