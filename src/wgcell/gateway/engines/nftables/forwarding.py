"""The table of a gateway in the machine's own network: the kernel forwards what the policy allows.

The kernel does not look into a flow. So TCP that a name allows is redirected (DNAT) to
`REDIRECT_PORT` of the gateway's own address, where the process checks the host and connects to the
target. For this the rules stand twice, in the same order: in the chains of the NAT hook, which
decide what is redirected, and in the chains of the forward hook, which decide what is forwarded.
"""

from __future__ import annotations

from collections.abc import Iterator

from wgcell.gateway.engines.nftables import rules
from wgcell.gateway.engines.nftables.table import (
    FAMILIES,
    LOG_GROUP,
    PREFIX,
    REDIRECT_PORT,
    RELEASED,
    braces,
    chain,
    family,
    identifier,
)
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.policy import LEARNED
from wgcell.gateway.model.rules import Action, Rule

__all__ = ["ruleset"]


def ruleset(config: GatewayConfig, interface: str, *, router: bool = True) -> str:
    """The whole table, as one transaction that replaces the old one.

    ``router`` says that this machine forwards for others already, whose packets this table leaves
    alone. Otherwise the gateway has made it a router for the tunnel, and nothing else is forwarded.
    """
    inside = f'iifname "{interface}"'
    redirected = _redirected_peers(config)
    lines: list[str] = []
    for peer in config.peers:
        lines += chain(f"peer_{identifier(peer)}", _forward(peer))
    for peer in redirected:
        me = identifier(peer)
        lines += chain(f"redirect_{me}", _redirect(peer, config))
        lines += chain(f"redirects_{me}", _match_redirected(peer, "redirect"))
        lines += chain(f"hold_{me}", _hold(peer))
        lines += chain(f"holds_{me}", _match_redirected(peer, "hold"))
    lines += chain(
        "holding",
        [
            "type filter hook prerouting priority mangle; policy accept;",
            *rules.answers_to_held(),
            f'iifname != "{interface}" accept',
            "ct state != new accept",
            *rules.services(config, "goto serve"),
            # Other flows to this machine itself are refused by the input chain.
            "fib daddr type local accept",
            *(f"meta l4proto tcp {line}" for line in rules.dispatch(redirected, "holds")),
        ],
    )
    back = f'iifname "lo" meta mark {RELEASED}'
    to_process = rules.dispatch(redirected, "redirects")
    lines += chain(
        "redirected",
        [
            "type nat hook prerouting priority dstnat; policy accept;",
            f"{back} fib daddr type local accept",
            *(f"{back} meta l4proto tcp {line}" for line in to_process),
        ],
    )
    lines += chain(
        "forward",
        [
            "type filter hook forward priority filter; policy drop;",
            # A SYN that was put back and is not redirected: the rules have changed meanwhile.
            f"{back} reject with tcp reset",
            *([f'iifname != "{interface}" oifname != "{interface}" accept'] if router else []),
            "ct state established,related accept",
            "ct state invalid drop",
            f'{inside} oifname "{interface}" goto refuse',
            *(f"{inside} {line}" for line in rules.dispatch(config.peers)),
            # A source that is no peer's, although WireGuard let it pass.
            f"{inside} goto refuse",
        ],
    )
    lines += chain(
        "postrouting",
        [
            "type nat hook postrouting priority srcnat; policy accept;",
            *(
                f'{name} saddr {braces(found)} oifname != "{interface}" masquerade'
                for version, name, _ in FAMILIES
                if (found := rules.sources(config.peers, version))
            ),
        ],
    )
    return rules.table(config, interface, [], lines)


def _checks_host(rule: Rule) -> bool:
    """Whether the process checks the host of the flows that this rule allows."""
    named = bool(rule.name) and not rule.any
    return rule.action is Action.ALLOW and named and rule.protocol == "tcp"


def _redirected_peers(config: GatewayConfig) -> list[Peer]:
    """The peers that may have a flow redirected, to an address of the gateway of their family."""
    families = {address.version for address in config.addresses}
    return [
        peer
        for peer in config.peers
        if {address.version for address in peer.addresses} & families
        and any(map(_checks_host, peer.policy.rules))
    ]


def _forward(peer: Peer) -> Iterator[str]:
    """The rules of a peer for what the kernel forwards."""
    refuse = f"goto refuse_{identifier(peer)}"
    log = f'log prefix "{PREFIX}:allow:{peer.name}:%s" group {LOG_GROUP} accept'
    yield from rules.flow_limit(peer, refuse)
    yield from rules.new_flow_limit(peer, refuse)
    for number, rule in enumerate(peer.policy.rules):
        # Flows whose host is checked were redirected before. One that comes here was beyond a
        # limit, or came before its answer was in the set.
        refused = rule.action is Action.REFUSE or _checks_host(rule)
        for match in rules.matches(peer, number, rule):
            yield f"{match} {refuse if refused else log % number}"
    yield from rules.learned(peer, log % LEARNED)
    yield refuse


def _match_redirected(peer: Peer, target: str) -> Iterator[str]:
    """The same rules, in the same order: a flow whose host is checked goes to chain ``target``."""
    for number, rule in enumerate(peer.policy.rules):
        verdict = f"goto {target}_{identifier(peer)}" if _checks_host(rule) else "accept"
        for match in rules.matches(peer, number, rule):
            yield f"{match} {verdict}"


def _hold(peer: Peer) -> Iterator[str]:
    """A flow beyond the limit goes on, not held, to the forward chain, which refuses it."""
    yield from rules.new_flow_limit(peer, "accept")
    yield "goto hold"


def _redirect(peer: Peer, config: GatewayConfig) -> Iterator[str]:
    """A flow beyond the limit goes on, not redirected, to the forward chain, which refuses it."""
    yield from rules.flow_limit(peer, "accept")
    for to in config.addresses:
        place = f"[{to}]" if to.version == 6 else str(to)
        of = f"meta nfproto ipv{to.version} meta l4proto tcp"
        yield f"{of} dnat {family(to)} to {place}:{REDIRECT_PORT}"
