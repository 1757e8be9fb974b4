"""A policy as nftables' text: the parts that `forwarding` and `tproxy` have in common. Pure.

The two filter chains ``input`` and ``forward`` drop by default. They concern only packets that come
from the tunnel or go into it, unless the gateway has made this machine a router: then the machine
must not become a router for others. A peer is known by its source address. WireGuard's AllowedIPs
have dropped any other source already, and the rules refuse it again.

A rule with a name matches a set. The resolver puts the addresses of each answer into it, for as
long as the answer lives (see `sets`).

The process may connect to a target before the peer's connection succeeds: then the SYN is *held*.
The rules drop it and copy it to the process, which puts it back on the loopback interface under a
mark that says how it goes on (see `pending`). The rules then see it a second time, and redirect
only a SYN that came back so, never one that comes from the tunnel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from wgcell.gateway.engines.nftables.table import (
    FAMILIES,
    HOLD_GROUP,
    LOG_GROUP,
    PREFIX,
    RELEASED,
    RESET,
    SET_SIZE,
    UNREACHABLE,
    braces,
    chain,
    family,
    identifier,
    set_name,
    set_text,
    table_name,
)
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.policy import PROTECTED
from wgcell.gateway.model.rules import Action, Rule
from wgcell.net.addresses import Address, Network

__all__ = [
    "answers_to_held",
    "dispatch",
    "flow_limit",
    "learned",
    "matches",
    "new_flow_limit",
    "services",
    "sources",
    "table",
]

_ECHO = {"ip": "icmp", "ip6": "icmpv6"}


def matches(peer: Peer, number: int, rule: Rule) -> Iterator[str]:
    """The matches of rule ``number``: for both families if it has a name, else for its own."""
    ports = f"{rule.first_port}-{rule.last_port}"
    if rule.first_port == rule.last_port:
        ports = str(rule.first_port)
    protocols = [rule.protocol] if rule.protocol else ["tcp", "udp"]
    what = f"{protocols[0]} dport" if rule.protocol else "meta l4proto { tcp, udp } th dport"
    for version, ip, _ in FAMILIES:
        if rule.network is not None and rule.network.version != version:
            continue
        to = f"@{set_name(peer, number, version)}" if rule.network is None else str(rule.network)
        place = f"meta nfproto ipv{version}" if rule.any else f"{ip} daddr {to}"
        match = f"{place} {what} {ports}"
        if rule.action is Action.ALLOW and not rule.single:
            match += f" {ip} daddr != @protected_v{version}"
        yield match


def learned(peer: Peer, verdict: str) -> Iterator[str]:
    """Where the policy learns: ``verdict`` for what no rule matches and is not protected."""
    if peer.policy.learn:
        for version, ip, _ in FAMILIES:
            match = f"{ip} daddr != @protected_v{version} meta l4proto {{ tcp, udp }}"
            yield f"{match} {verdict}"


def flow_limit(peer: Peer, beyond: str, first: str = "") -> Iterator[str]:
    """``beyond`` for a flow beyond the number that may be open, of each family.

    Counted are established flows. A held SYN is not one; the process counts it.
    """
    for address in peer.addresses:
        most = f"{family(address)} saddr ct count over {peer.policy.limits.flows}"
        yield f"{first}add @flows_v{address.version} {{ {most} }} {beyond}"


def new_flow_limit(peer: Peer, beyond: str, first: str = "") -> Iterator[str]:
    """``beyond`` for a flow beyond the number of new ones a second, of each family."""
    limits = peer.policy.limits
    rate = f"limit rate over {limits.flows_per_second}/second burst {limits.flows} packets"
    for address in peer.addresses:
        meter = f"@new_{identifier(peer)}_v{address.version}"
        yield f"{first}update {meter} {{ {family(address)} saddr {rate} }} {beyond}"


def answers_to_held() -> Iterator[str]:
    """Rejects a SYN that the process has put back because its target can't be reached."""
    back = 'iifname "lo" meta mark'
    yield f"{back} {RESET} meta l4proto tcp reject with tcp reset"
    yield f"{back} {UNREACHABLE} reject with icmpx host-unreachable"


def services(config: GatewayConfig, verdict: str) -> Iterator[str]:
    """``verdict`` for flows to the services."""
    for service in config.services:
        to = f"{family(service.address)} daddr {service.address} tcp dport {service.port}"
        yield f"{to} {verdict}"


def dispatch(peers: Iterable[Peer], target: str = "peer") -> Iterator[str]:
    """Sends a packet to the chain ``target`` of the peer whose source address it has."""
    for version, ip, _ in FAMILIES:
        pairs = [
            f"{address} : goto {target}_{identifier(peer)}"
            for peer in peers
            for address in peer.addresses
            if address.version == version
        ]
        if pairs:
            yield f"{ip} saddr vmap {braces(pairs)}"


def sources(peers: Iterable[Peer], version: int) -> list[Address]:
    """The addresses of the peers, of one family."""
    return [one for peer in peers for one in peer.addresses if one.version == version]


def table(config: GatewayConfig, interface: str, accepted: list[str], chains: list[str]) -> str:
    """The whole table: the sets, the limits of bytes, the input chain, refusals, and ``chains``.

    ``accepted`` are rules of the input chain for what was redirected.
    """
    inside = f'iifname "{interface}"'
    lines = [f"table {table_name(interface)}", f"delete table {table_name(interface)}"]
    lines.append(f"table {table_name(interface)} {{")
    for version, _, kind in FAMILIES:
        networks = _protected(version, config.protected)
        lines += set_text(
            f"protected_v{version}",
            f"type {kind}",
            "flags interval",
            f"elements = {braces(networks)}",
        )
        lines += set_text(f"flows_v{version}", f"type {kind}", "flags dynamic", "size 1024")
    for peer in config.peers:
        lines += _sets(peer)
        lines += chain(f"refuse_{identifier(peer)}", _refuse(peer.name))
    lines += chain("refuse", _refuse(""))
    lines += chain("hold", _hold())
    for peer in config.peers if config.services else ():
        lines += chain(f"serves_{identifier(peer)}", _serve(peer))
    if config.services:
        lines += chain("serve", [*dispatch(config.peers, "serves"), "goto refuse"])
    lines += chains
    lines += chain(
        "rate_out",
        [
            "type filter hook prerouting priority mangle - 1; policy accept;",
            *(f"{inside} {line}" for line in _byte_limits(config.peers, "saddr")),
        ],
    )
    lines += chain(
        "rate_in",
        [
            "type filter hook postrouting priority mangle; policy accept;",
            *(f'oifname "{interface}" {line}' for line in _byte_limits(config.peers, "daddr")),
        ],
    )
    lines += chain(
        "input",
        [
            "type filter hook input priority filter; policy drop;",
            f'iifname != "{interface}" accept',
            "ct state established,related accept",
            *_drop_other_sources(config.peers),
            *(line for address in config.addresses for line in _gateways_own(address)),
            *accepted,
            # Flows to this machine itself are refused, whatever a rule says about the address.
            *dispatch(config.peers, "refuse"),
            "goto refuse",
        ],
    )
    return "\n".join([*lines, "}", ""])


def _sets(peer: Peer) -> Iterator[str]:
    me = identifier(peer)
    for address in peer.addresses:
        kind, of = f"ipv{address.version}_addr", f"v{address.version}"
        meter = (f"type {kind}", "flags dynamic,timeout", "timeout 1m", "size 16")
        yield from set_text(f"new_{me}_{of}", *meter)
        if peer.policy.limits.bytes_per_second:
            yield from set_text(f"rate_{me}_{of}", *meter)
    for number, rule in enumerate(peer.policy.rules):
        for version, _, kind in FAMILIES if rule.name and not rule.any else ():
            lines = f"type {kind}", "flags timeout", f"size {SET_SIZE}"
            yield from set_text(set_name(peer, number, version), *lines)


def _refuse(who: str) -> list[str]:
    return [
        f'log prefix "{PREFIX}:refuse:{who}" group {LOG_GROUP}',
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx admin-prohibited",
    ]


def _hold() -> Iterator[str]:
    """Drops a SYN and copies it to the process; a segment that belongs to no flow is reset."""
    syn = "tcp flags & (fin | syn | rst | ack) == syn"
    # The process does not read IPv6 extension headers.
    for ip in ("meta nfproto ipv4", "ip6 nexthdr tcp"):
        yield f'{ip} {syn} log prefix "{PREFIX}:hold" group {HOLD_GROUP} drop'
    yield "meta l4proto tcp reject with tcp reset"
    yield "drop"


def _serve(peer: Peer) -> Iterator[str]:
    """A flow to a service, which this machine itself accepts."""
    yield f"meta mark {RELEASED} accept"
    yield from new_flow_limit(peer, f"goto refuse_{identifier(peer)}")
    yield "goto hold"


def _byte_limits(peers: Iterable[Peer], end: str) -> Iterator[str]:
    for peer in peers:
        rate = peer.policy.limits.bytes_per_second
        for address in peer.addresses if rate else ():
            ip = family(address)
            # A bucket of bytes holds the rate and the burst (Linux, net/netfilter/nft_limit.c).
            burst = max(65536 - rate, 0)
            limit = f"limit rate over {rate} bytes/second burst {burst} bytes"
            meter = f"update @rate_{identifier(peer)}_v{address.version} {{ {ip} {end} {limit} }}"
            yield f"{ip} {end} {address} {meter} drop"


def _protected(version: int, own: Iterable[Network]) -> list[Network]:
    """Without overlaps, which the elements of an interval set may not have."""
    every = [network for network, _ in PROTECTED] + list(own)
    if version == 4:
        return list(
            ipaddress.collapse_addresses(n for n in every if isinstance(n, ipaddress.IPv4Network))
        )
    return list(
        ipaddress.collapse_addresses(n for n in every if isinstance(n, ipaddress.IPv6Network))
    )


def _gateways_own(address: Address) -> Iterator[str]:
    """The gateway's own address answers DNS and echo requests."""
    ip = family(address)
    yield f"{ip} daddr {address} meta l4proto {{ tcp, udp }} th dport 53 accept"
    yield f"{ip} daddr {address} {_ECHO[ip]} type echo-request accept"


def _drop_other_sources(peers: Iterable[Peer]) -> Iterator[str]:
    """WireGuard's AllowedIPs have dropped these packets already; this is the same wall again."""
    for version, ip, _ in FAMILIES:
        found = sources(peers, version)
        among = f"{ip} saddr != {braces(found)}" if found else f"meta nfproto ipv{version}"
        yield f"{among} drop"
