"""What a peer may reach beyond its tunnel: a pure decision, default deny.

Rules (see `rules`) are read in their order. The first rule that matches decides. A flow that no
rule matches is refused.

A rule with a name matches an address because an answer of the resolver led from the name to it,
never by itself. The caller passes the names that lead to an address at this moment. A peer that
connects to an address without asking for a name needs a rule for the address.

The machine and the LAN of the gateway lie on this side of the tunnel's end, so a rule that is meant
for the Internet must not open them by accident. Private, loopback, link-local (cloud metadata),
multicast and reserved addresses, IPv6 forms that carry an IPv4 address, and the networks given as
``protected`` are refused unless a rule names that very address. ``192.168.1.0/24:80`` does not open
192.168.1.1; ``192.168.1.1:80`` does. A rule with a name never does: the author of the rule does not
control where the name leads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from wgcell.gateway.model.rules import Action, Rule
from wgcell.gateway.model.services import Service
from wgcell.net.addresses import Address, Network
from wgcell.net.special import TARGETS, special

__all__ = ["LEARNED", "PROTECTED", "Decision", "Limits", "Policy"]

PROTECTED: tuple[tuple[Network, str], ...] = tuple((row.network, row.kind) for row in TARGETS)
"""Ranges on this side of the tunnel's end, the narrow ones first, each with its kind."""


_EVERY_PORT = (1, 65535)

LEARNED = "learn"
"""In place of a rule: no rule refuses the flow, and the policy is being learned."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one peer, above 0; only ``bytes_per_second`` may be 0, which is none."""

    flows: int = 512
    """Open at a time; also the burst of new ones."""
    flows_per_second: int = 64
    """New ones, in the long run."""
    queries_per_second: int = 64
    """Of the resolver, in the long run; four seconds' worth as a burst."""
    bytes_per_second: int = 0
    """Both ways together, of all flows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The action for one flow, always with its reason."""

    action: Action
    rule: str
    reason: str
    target: tuple[str, int] | None = None
    """Set where a flow goes elsewhere: a service."""
    names: tuple[str, ...] = ()
    """The names that allow it; empty if a rule is about the address, or it is a service."""
    checked: bool = True
    """Whether it must ask for one of those names."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in their order, and services. A flow that none of them matches is refused."""

    rules: tuple[Rule, ...] = ()
    services: tuple[Service, ...] = ()
    protected: tuple[Network, ...] = ()
    limits: Limits = Limits()
    learn: bool = False
    """Allow what no rule refuses, to learn what a workload needs; but no protected address."""

    def evaluate(
        self, address: Address, port: int, protocol: str, names: Iterable[str] = ()
    ) -> Decision:
        """Whether a flow of ``protocol`` (``tcp`` or ``udp``) to ``address:port`` may go out.

        ``names`` are the names that lead to ``address`` now. A rule with a name matches if one of
        them matches. If a denied name and an allowed one share an address and the peer has asked
        for both, the flow is refused: a packet shows only the address.
        """
        for service in self.services:
            if (service.address, service.port, "tcp") == (address, port, protocol):
                target = (service.target_host, service.target_port)
                where = f"{service.target_host}:{service.target_port}"
                return Decision(Action.ALLOW, f"service {where}", "a service", target)
        every = tuple(names)
        decision, by_name = self._first(address, port, protocol, every)
        if decision.action is Action.REFUSE or not by_name:
            return decision
        granted = tuple(
            name
            for name in every
            if self._first(address, port, protocol, (name,))[0].action is Action.ALLOW
        )
        return replace(decision, names=granted)

    def _allowing(self, rule: Rule) -> Decision:
        return Decision(Action.ALLOW, rule.text, "a rule allows it", checked=rule.checked)

    def rule_for_name(self, name: str) -> str:
        """The rule by which ``name`` may be asked of the resolver; empty if it may not.

        A rule allows it if the rules before it have not denied all that it would open.
        """
        denied: list[Rule] = []
        for rule in self.rules:
            if not rule.names(name):
                continue
            if rule.action is Action.REFUSE:
                denied.append(rule)
            elif _leaves_open(denied, (rule.first_port, rule.last_port), rule.protocol):
                return rule.text
        return LEARNED if self.learn and _leaves_open(denied, _EVERY_PORT, "") else ""

    def is_above(self, name: str) -> bool:
        """Whether a rule, or a service, has a name below ``name``: then ``name`` exists in the DNS
        (RFC 8020)."""
        below = f".{name}"
        return any(
            rule.action is Action.ALLOW and rule.name.endswith(below) for rule in self.rules
        ) or any(service.name.endswith(below) for service in self.services)

    def services_named(self, name: str) -> tuple[Address, ...]:
        """The addresses of the services with that name."""
        return tuple(dict.fromkeys(one.address for one in self.services if one.name == name))

    def listed(self, address: Address) -> bool:
        """Whether a rule allows that very address, on any port."""
        single = (r.network for r in self.rules if r.single and r.action is Action.ALLOW)
        return any(network is not None and address in network for network in single)

    def protection(self, address: Address) -> str:
        """`protected_kind`, unless a rule allows that very address: then empty."""
        return "" if self.listed(address) else self.protected_kind(address)

    def protected_kind(self, address: Address) -> str:
        """The kind of a protected address, whatever a rule says about it; empty if it is none."""
        row = special(address)
        if row is not None and not row.nobodys:
            return row.kind
        return "protected" if any(address in network for network in self.protected) else ""

    def _first(
        self, address: Address, port: int, protocol: str, names: tuple[str, ...]
    ) -> tuple[Decision, bool]:
        """The decision of the first rule that matches, and whether it matched a name."""
        kind = self.protected_kind(address)
        refusal = "no rule allows it"
        if kind:
            refusal = f"{_article(kind)} address, and no rule is that address"
        for rule in self.rules:
            by_address = rule.any or (rule.network is not None and address in rule.network)
            by_name = not rule.any and any(map(rule.names, names))
            if not (rule.covers(port, protocol) and (by_address or by_name)):
                continue
            if rule.action is Action.REFUSE:
                return Decision(Action.REFUSE, rule.text, "a rule denies it"), by_name
            if not kind or rule.single:
                return self._allowing(rule), by_name
        if self.learn and not kind:
            learned = Decision(Action.ALLOW, LEARNED, "learning: no rule refuses it")
            return learned, bool(names)
        return Decision(Action.REFUSE, "", refusal), False


def _leaves_open(denied: Iterable[Rule], ports: tuple[int, int], protocol: str) -> bool:
    """Whether a port of ``ports``, by ``protocol`` or either, is denied by none of ``denied``."""
    every = list(denied)
    for one in (protocol,) if protocol else ("tcp", "udp"):
        spans = sorted((r.first_port, r.last_port) for r in every if r.protocol in ("", one))
        least = ports[0]
        for first, last in spans:
            if first <= least:
                least = max(least, last + 1)
        if least <= ports[1]:
            return True
    return False


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiouI' else 'a'} {word}"
