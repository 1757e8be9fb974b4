"""The table of a gateway in a private network namespace: everything allowed comes to the process.

TPROXY (Linux, Documentation/networking/tproxy.rst) hands over TCP and UDP with their destination
unchanged. Nothing is forwarded, for the namespace has no other link. A refused packet is rejected
before it is routed, so no route is needed (Linux 5.9: its commit f53b9b0bdc59).
"""

from __future__ import annotations

from collections.abc import Iterator

from wgcell.gateway.engines.nftables import rules
from wgcell.gateway.engines.nftables.table import (
    FAMILIES,
    REDIRECT_PORT,
    RELEASED,
    TPROXY_MARK,
    chain,
    identifier,
)
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.rules import Action

__all__ = ["ruleset"]


def ruleset(config: GatewayConfig, interface: str) -> str:
    """The whole table, as one transaction that replaces the old one.

    A connection that the process has taken bears a mark, and its further packets are not compared
    with the rules: the process ends it when another policy does not allow it.
    """
    lines: list[str] = []
    accept = f"meta mark set {TPROXY_MARK} accept"
    lines += chain(
        "taken",
        [
            f"meta nfproto ipv{version} meta l4proto {{ tcp, udp }} "
            f"tproxy {ip} to :{REDIRECT_PORT} {accept}"
            for version, ip, _ in FAMILIES
        ],
    )
    not_released = f"meta l4proto tcp meta mark != {RELEASED}"
    take = [f"{not_released} goto hold", f"ct mark set {TPROXY_MARK}", "goto taken"]
    lines += chain("take", take)
    for peer in config.peers:
        lines += chain(f"redirects_{identifier(peer)}", _take(peer))
    lines += chain(
        "redirected",
        [
            "type filter hook prerouting priority mangle; policy accept;",
            *rules.answers_to_held(),
            f'iifname != {{ "{interface}", "lo" }} accept',
            f'iifname "lo" meta mark != {RELEASED} accept',
            *rules.services(config, "ct state new goto serve"),
            # The input chain has its own rules for what is sent to this machine itself.
            "fib daddr type local accept",
            f"ct mark {TPROXY_MARK} meta l4proto {{ tcp, udp }} goto taken",
            *rules.dispatch(config.peers, "redirects"),
            "goto refuse",
        ],
    )
    lines += chain("forward", ["type filter hook forward priority filter; policy drop;"])
    return rules.table(config, interface, [f"meta mark {TPROXY_MARK} accept"], lines)


def _take(peer: Peer) -> Iterator[str]:
    """The process gets what is allowed and within the limits; the rest is refused here."""
    refuse = f"goto refuse_{identifier(peer)}"
    new, back = "ct state new", f"meta mark {RELEASED}"
    yield from rules.new_flow_limit(peer, refuse, f"{new} meta mark != {RELEASED} ")
    yield from rules.flow_limit(peer, refuse, f"{new} meta l4proto udp ")
    yield from rules.flow_limit(peer, refuse, f"{new} {back} ")
    for number, rule in enumerate(peer.policy.rules):
        for match in rules.matches(peer, number, rule):
            yield f"{match} {refuse if rule.action is Action.REFUSE else 'goto take'}"
    yield from rules.learned(peer, "goto take")
    yield refuse
