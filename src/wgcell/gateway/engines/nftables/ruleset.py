"""A policy as nftables and WireGuard text. Pure: nothing is applied here.

The table's two filter chains drop by default all that comes from the tunnel or goes into it, and
say nothing of other interfaces' packets, unless this machine is made a router for the tunnel's
sake: then it must not become one for others. A peer is known by its source address, which
WireGuard's AllowedIPs has already held it to; any other source is refused here again.

A rule with a name matches a set that the resolver fills, an element for each answer, as long as
the answer lives. The kernel does not look into a flow, so TCP that a name allows is turned to this
machine's own `ASKED_PORT`, where the engine compares the host that is asked for, and joins it.

The SYN of a flow that the engine joins, a service's too, is dropped and copied to it. It comes back
by the loopback interface under a mark that says how it goes on (see `pending`), and
is asked about again: what is turned is never what comes from the tunnel itself.

Of an engine in a namespace apart (see `engines.nftables.private`) all that is allowed is turned
there, UDP too, and nothing is forwarded.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.keys import public_key
from wgcell.gateway.model.parsing import split_endpoint
from wgcell.gateway.model.policy import LEARNED, PROTECTED
from wgcell.gateway.model.rules import Rule, Verdict
from wgcell.net.addresses import Address, Network

__all__ = [
    "ASKED_PORT",
    "HOLD_GROUP",
    "LOG_GROUP",
    "MOST_LEADS",
    "MOST_TOLD",
    "RELEASED",
    "RESET",
    "TURNED",
    "UNREACHABLE",
    "leads",
    "peer_file",
    "portions",
    "remember",
    "ruleset",
    "server_file",
    "shut",
    "table_name",
    "turning_ruleset",
    "unshut",
    "wireguard_settings",
]

LOG_GROUP = 5182
"""The NFLOG group where each new flow's first packet goes."""
HOLD_GROUP = 5183
"""The NFLOG group where each SYN that is held goes."""
PREFIX = "wgcell"
"""Begins a log prefix; behind it ``:allow`` or ``:refuse``, the peer and the rule's number."""
ASKED_PORT = 5183
"""Of the gateway's address, for flows that are turned there; open to none but those."""
TURNED = 1
"""The mark of what is turned as it is, by tproxy: a packet's for its route, a connection's."""
RELEASED, RESET, UNREACHABLE = 0x5182_0001, 0x5182_0002, 0x5182_0003
"""The marks of a SYN that comes back: it goes on; it is reset; its target can't be reached."""
MOST_TOLD = 300
"""Elements of a transaction. One that changes an element takes some 500 bytes, and a transaction is
one message, of which whoever is not root may send as much as net.core.wmem_max: 212,992 bytes."""
MOST_TEXT = 24_000
"""Characters of a transaction that makes a table: rules take some four times as many bytes."""
_SHUT = ("shut", "shut_forward")
MOST_LEADS = 4096
"""Elements of a name's set."""
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_ECHO = {"ip": "icmp", "ip6": "icmpv6"}
_FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))


def table_name(interface: str) -> str:
    """The one table that is ours, beside whatever else the machine has."""
    return f"inet wgcell_{re.sub('[^a-z0-9]', '_', interface)}"


def _chain_of(peer: Peer) -> str:
    """Behind a chain's or a set's own word."""
    return peer.name.replace("-", "_")


def _family(address: Address) -> str:
    return "ip" if address.version == 4 else "ip6"


def _set_name(peer: Peer, number: int, version: int) -> str:
    return f"lead_{_chain_of(peer)}_{number}_v{version}"


def leads(peer: Peer, name: str, address: Address) -> list[str]:
    """The sets that an answer to ``peer``, ``name`` leads to ``address``, belongs into."""
    return [
        _set_name(peer, number, address.version)
        for number, rule in enumerate(peer.policy.rules)
        if rule.names(name) and not rule.any
    ]


def remember(
    interface: str, elements: Sequence[tuple[str, Address, float]], *, empty: bool = False
) -> list[str]:
    """The transactions that put addresses into sets, each for so many seconds from now; each of
    at most `MOST_TOLD` elements.

    ``empty``: nothing is in them yet.
    """
    table = table_name(interface)
    parts = []
    for begin in range(0, len(elements), MOST_TOLD):
        lines = []
        for name, address, seconds in elements[begin : begin + MOST_TOLD]:
            element = f"element {table} {name} {{ {address} timeout {max(1, round(seconds))}s }}"
            plain = f"element {table} {name} {{ {address} }}"
            # An element that is there keeps its old end; out and in again gives it the new one.
            lines += [] if empty else [f"add {element}", f"delete {plain}"]
            lines.append(f"add {element}")
        parts.append("\n".join([*lines, ""]))
    return parts


def shut(interface: str, *, router: bool = True) -> str:
    """Chains that drop whatever is new from the tunnel or into it: while a table is made in several
    transactions, not all that it denies is denied yet. Whoever is dropped tries again.

    ``router`` as for `ruleset`.
    """
    into = f'oifname "{interface}" ct state new drop'
    hooks = {
        "prerouting priority mangle - 2": f'iifname "{interface}" ct state new drop',
        "forward priority filter - 1": into if router else "ct state new drop",
    }
    lines = [f"table {table_name(interface)} {{"]
    for name, (hook, rule) in zip(_SHUT, hooks.items(), strict=True):
        lines += _chain(name, [f"type filter hook {hook}; policy accept;", rule])
    return "\n".join([*lines, "}", ""])


def unshut(interface: str) -> str:
    """`shut` is over."""
    return "".join(f"delete chain {table_name(interface)} {name}\n" for name in _SHUT)


def portions(text: str) -> list[str]:
    """A ruleset's text in transactions that each are small enough: the first one takes the old
    table away, each of the others adds to the new one."""
    if len(text) <= MOST_TEXT:
        return [text]
    lines = text.splitlines()
    opening = lines[2]
    found, part, size = ["\n".join([*lines[:3], "}", ""])], [], 0
    head: list[str] = []
    for line in lines[3:-1]:
        part.append(line)
        size += len(line) + 1
        if line.startswith("    set ") or line.startswith("    chain "):
            head = [line]
        elif line == "    }":
            head = []
        # A set is never cut, for it is short; a chain may be, and goes on under its own name.
        if size > MOST_TEXT and (not head or head[0].startswith("    chain ")):
            found.append("\n".join([opening, *part, *(["    }"] if head else []), "}", ""]))
            part = list(head)
            size = 0
    return [*found, "\n".join([opening, *part, "}", ""])]


def _braces(items: Iterable[object]) -> str:
    return "{ " + ", ".join(str(item) for item in items) + " }"


def _set(name: str, *lines: str) -> Iterator[str]:
    yield f"    set {name} {{"
    yield from (f"        {line}" for line in lines)
    yield "    }"


def _chain(name: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"    chain {name} {{"
    yield from (f"        {line}" for line in lines)
    yield "    }"


def _refuse(who: str) -> list[str]:
    return [
        f'log prefix "{PREFIX}:refuse:{who}" group {LOG_GROUP}',
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx admin-prohibited",
    ]


def _match(peer: Peer, number: int, rule: Rule) -> Iterator[str]:
    """The matches of one rule: of both families for a name, of one for an address."""
    ports = f"{rule.first_port}-{rule.last_port}"
    if rule.first_port == rule.last_port:
        ports = str(rule.first_port)
    protocols = [rule.protocol] if rule.protocol else ["tcp", "udp"]
    what = f"{protocols[0]} dport" if rule.protocol else "meta l4proto { tcp, udp } th dport"
    for version, family, _ in _FAMILIES:
        if rule.network is not None and rule.network.version != version:
            continue
        to = f"@{_set_name(peer, number, version)}" if rule.network is None else str(rule.network)
        place = f"meta nfproto ipv{version}" if rule.any else f"{family} daddr {to}"
        match = f"{place} {what} {ports}"
        if rule.verdict is Verdict.ALLOW and not rule.single:
            match += f" {family} daddr != @protected_v{version}"
        yield match


def _most(peer: Peer, beyond: str, first: str = "") -> Iterator[str]:
    """So many flows at a time, of each family: of those that have come about, a SYN that is held
    counts for none here, but does in the engine."""
    for address in peer.addresses:
        most = f"{_family(address)} saddr ct count over {peer.policy.limits.flows}"
        yield f"{first}add @flows_v{address.version} {{ {most} }} {beyond}"


def _rate(peer: Peer, beyond: str, first: str = "") -> Iterator[str]:
    """So many new flows a second, of each family."""
    limits = peer.policy.limits
    rate = f"limit rate over {limits.flows_per_second}/second burst {limits.flows} packets"
    for address in peer.addresses:
        meter = f"@new_{_chain_of(peer)}_v{address.version}"
        yield f"{first}update {meter} {{ {_family(address)} saddr {rate} }} {beyond}"


def _answered() -> Iterator[str]:
    """What becomes of a SYN that the engine has put back and not released."""
    back = 'iifname "lo" meta mark'
    yield f"{back} {RESET} meta l4proto tcp reject with tcp reset"
    yield f"{back} {UNREACHABLE} reject with icmpx host-unreachable"


def _hold() -> Iterator[str]:
    """Drop a SYN and copy it to the engine; what belongs to no flow is reset, as ever."""
    syn = "tcp flags & (fin | syn | rst | ack) == syn"
    for ip in ("meta nfproto ipv4", "ip6 nexthdr tcp"):  # the engine reads no extension headers
        yield f'{ip} {syn} log prefix "{PREFIX}:hold" group {HOLD_GROUP} drop'
    yield "meta l4proto tcp reject with tcp reset"
    yield "drop"


def _services(config: GatewayConfig, verdict: str) -> Iterator[str]:
    for service in config.services:
        to = f"{_family(service.address)} daddr {service.address} tcp dport {service.port}"
        yield f"{to} {verdict}"


def _asked(rule: Rule) -> bool:
    """Whether what this rule allows is compared with the host that it asks for."""
    named = bool(rule.name) and not rule.any
    return rule.verdict is Verdict.ALLOW and named and rule.protocol == "tcp"


def _rules(peer: Peer) -> Iterator[str]:
    refuse = f"goto refuse_{_chain_of(peer)}"
    log = f'log prefix "{PREFIX}:allow:{peer.name}:%s" group {LOG_GROUP} accept'
    yield from _most(peer, refuse)
    yield from _rate(peer, refuse)
    for number, rule in enumerate(peer.policy.rules):
        # What is compared is turned before; what comes here was beyond a limit, or is late.
        refused = rule.verdict is Verdict.REFUSE or _asked(rule)
        for match in _match(peer, number, rule):
            yield f"{match} {refuse if refused else log % number}"
    yield from _learned(peer, log % LEARNED)
    yield refuse


def _learned(peer: Peer, verdict: str) -> Iterator[str]:
    """What no rule refuses, where the policy learns: all that is not protected."""
    if peer.policy.learn:
        for version, family, _ in _FAMILIES:
            match = f"{family} daddr != @protected_v{version} meta l4proto {{ tcp, udp }}"
            yield f"{match} {verdict}"


def _turns(peer: Peer, chain: str) -> Iterator[str]:
    """What is asked of this machine in the target's place: the same rules, in the same order."""
    for number, rule in enumerate(peer.policy.rules):
        verdict = f"goto {chain}_{_chain_of(peer)}" if _asked(rule) else "accept"
        for match in _match(peer, number, rule):
            yield f"{match} {verdict}"


def _holds_asked(peer: Peer) -> Iterator[str]:
    """Beyond the limit it goes its way, unheld: to where it is refused, and told."""
    yield from _rate(peer, "accept")
    yield "goto hold"


def _serves(peer: Peer) -> Iterator[str]:
    """A service's flow, which comes to this machine itself."""
    yield f"meta mark {RELEASED} accept"
    yield from _rate(peer, f"goto refuse_{_chain_of(peer)}")
    yield "goto hold"


def _takes(peer: Peer) -> Iterator[str]:
    """All that is allowed and beyond no limit is taken; the rest is refused on the spot."""
    refuse = f"goto refuse_{_chain_of(peer)}"
    new, back = "ct state new", f"meta mark {RELEASED}"
    yield from _rate(peer, refuse, f"{new} meta mark != {RELEASED} ")
    yield from _most(peer, refuse, f"{new} meta l4proto udp ")
    yield from _most(peer, refuse, f"{new} {back} ")
    for number, rule in enumerate(peer.policy.rules):
        for match in _match(peer, number, rule):
            yield f"{match} {refuse if rule.verdict is Verdict.REFUSE else 'goto take'}"
    yield from _learned(peer, "goto take")
    yield refuse


def _turned(peer: Peer, config: GatewayConfig) -> Iterator[str]:
    """Beyond the limit it goes its way unturned: to where it is refused."""
    yield from _most(peer, "accept")
    for to in config.addresses:
        place = f"[{to}]" if to.version == 6 else str(to)
        of = f"meta nfproto ipv{to.version} meta l4proto tcp"
        yield f"{of} dnat {_family(to)} to {place}:{ASKED_PORT}"


def _asking(config: GatewayConfig) -> list[Peer]:
    """The peers that may have a flow turned, to an address of the gateway's of the same family."""
    families = {address.version for address in config.addresses}
    return [
        peer
        for peer in config.peers
        if {address.version for address in peer.addresses} & families
        and any(map(_asked, peer.policy.rules))
    ]


def _dispatch(peers: Iterable[Peer], chain: str = "peer") -> Iterator[str]:
    for version, family, _ in _FAMILIES:
        pairs = [
            f"{address} : goto {chain}_{_chain_of(peer)}"
            for peer in peers
            for address in peer.addresses
            if address.version == version
        ]
        if pairs:
            yield f"{family} saddr vmap {_braces(pairs)}"


def _pace(peers: Iterable[Peer], end: str) -> Iterator[str]:
    for peer in peers:
        rate = peer.policy.limits.bytes_per_second
        for address in peer.addresses if rate else ():
            family = _family(address)
            # A bucket of bytes holds the rate and the burst (Linux, net/netfilter/nft_limit.c).
            burst = max(65536 - rate, 0)
            limit = f"limit rate over {rate} bytes/second burst {burst} bytes"
            meter = (
                f"update @pace_{_chain_of(peer)}_v{address.version} {{ {family} {end} {limit} }}"
            )
            yield f"{family} {end} {address} {meter} drop"


def _protected(version: int, own: Iterable[Network]) -> list[Network]:
    """Without overlaps, which an interval set's elements may not have."""
    every = [network for network, _ in PROTECTED] + list(own)
    if version == 4:
        return list(
            ipaddress.collapse_addresses(n for n in every if isinstance(n, ipaddress.IPv4Network))
        )
    return list(
        ipaddress.collapse_addresses(n for n in every if isinstance(n, ipaddress.IPv6Network))
    )


def ruleset(config: GatewayConfig, interface: str, *, router: bool = True) -> str:
    """The whole table, as one transaction that replaces it.

    ``router``: this machine already forwards for others, whose packets are none of our business.
    If it does not, nothing but the tunnel's is forwarded.
    """
    inside = f'iifname "{interface}"'
    asking = _asking(config)
    lines: list[str] = []
    for peer in config.peers:
        lines += _chain(f"peer_{_chain_of(peer)}", _rules(peer))
    for peer in asking:
        lines += _chain(f"asked_{_chain_of(peer)}", _turned(peer, config))
        lines += _chain(f"asks_{_chain_of(peer)}", _turns(peer, "asked"))
        lines += _chain(f"held_{_chain_of(peer)}", _holds_asked(peer))
        lines += _chain(f"holds_{_chain_of(peer)}", _turns(peer, "held"))
    lines += _chain(
        "holding",
        [
            "type filter hook prerouting priority mangle; policy accept;",
            *_answered(),
            f'iifname != "{interface}" accept',
            "ct state != new accept",
            *_services(config, "goto serve"),
            # What else is for this machine is refused on its way there, as ever.
            "fib daddr type local accept",
            *(f"meta l4proto tcp {line}" for line in _dispatch(asking, "holds")),
        ],
    )
    back = f'iifname "lo" meta mark {RELEASED}'
    lines += _chain(
        "turn",
        [
            "type nat hook prerouting priority dstnat; policy accept;",
            f"{back} fib daddr type local accept",
            *(f"{back} meta l4proto tcp {line}" for line in _dispatch(asking, "asks")),
        ],
    )
    lines += _chain(
        "forward",
        [
            "type filter hook forward priority filter; policy drop;",
            # What came back and is not turned any more: the rules have changed meanwhile.
            f"{back} reject with tcp reset",
            *([f'iifname != "{interface}" oifname != "{interface}" accept'] if router else []),
            "ct state established,related accept",
            "ct state invalid drop",
            f'{inside} oifname "{interface}" goto refuse',
            *(f"{inside} {line}" for line in _dispatch(config.peers)),
            # A source that is no peer's comes here, whatever WireGuard let it be.
            f"{inside} goto refuse",
        ],
    )
    lines += _chain(
        "postrouting",
        [
            "type nat hook postrouting priority srcnat; policy accept;",
            *(
                f'{name} saddr {_braces(found)} oifname != "{interface}" masquerade'
                for version, name, _ in _FAMILIES
                if (found := _sources(config.peers, version))
            ),
        ],
    )
    return _table(config, interface, [], lines)


def turning_ruleset(config: GatewayConfig, interface: str) -> str:
    """`ruleset` for a namespace apart: what is allowed comes to `ASKED_PORT` as it is, by tproxy,
    and nothing is forwarded. It is refused before it is routed, so that no route is needed (Linux
    5.9: its commit f53b9b0bdc59).

    A connection that is taken bears a mark, and its packets are asked about no more: this process
    has it, and ends it when another policy does not allow it.
    """
    lines: list[str] = []
    turn = f"meta mark set {TURNED} accept"
    lines += _chain(
        "taken",
        [
            f"meta nfproto ipv4 meta l4proto {{ tcp, udp }} tproxy ip to :{ASKED_PORT} {turn}",
            f"meta nfproto ipv6 meta l4proto {{ tcp, udp }} tproxy ip6 to :{ASKED_PORT} {turn}",
        ],
    )
    released = f"meta l4proto tcp meta mark != {RELEASED}"
    lines += _chain("take", [f"{released} goto hold", f"ct mark set {TURNED}", "goto taken"])
    for peer in config.peers:
        lines += _chain(f"asks_{_chain_of(peer)}", _takes(peer))
    lines += _chain(
        "turn",
        [
            "type filter hook prerouting priority mangle; policy accept;",
            *_answered(),
            f'iifname != {{ "{interface}", "lo" }} accept',
            f'iifname "lo" meta mark != {RELEASED} accept',
            *_services(config, "ct state new goto serve"),
            # What else is for this machine itself has its own rules.
            "fib daddr type local accept",
            f"ct mark {TURNED} meta l4proto {{ tcp, udp }} goto taken",
            *_dispatch(config.peers, "asks"),
            "goto refuse",
        ],
    )
    lines += _chain("forward", ["type filter hook forward priority filter; policy drop;"])
    return _table(config, interface, [f"meta mark {TURNED} accept"], lines)


def _table(config: GatewayConfig, interface: str, turned: list[str], chains: list[str]) -> str:
    """What every table has: the sets, who is paced, what may come to this machine, refusals."""
    inside = f'iifname "{interface}"'
    lines = [f"table {table_name(interface)}", f"delete table {table_name(interface)}"]
    lines.append(f"table {table_name(interface)} {{")
    for version, _, kind in _FAMILIES:
        networks = _protected(version, config.protected)
        lines += _set(
            f"protected_v{version}",
            f"type {kind}",
            "flags interval",
            f"elements = {_braces(networks)}",
        )
        lines += _set(f"flows_v{version}", f"type {kind}", "flags dynamic", "size 1024")
    for peer in config.peers:
        me = _chain_of(peer)
        for address in peer.addresses:
            kind, of = f"ipv{address.version}_addr", f"v{address.version}"
            meter = (f"type {kind}", "flags dynamic,timeout", "timeout 1m", "size 16")
            lines += _set(f"new_{me}_{of}", *meter)
            if peer.policy.limits.bytes_per_second:
                lines += _set(f"pace_{me}_{of}", *meter)
        for number, rule in enumerate(peer.policy.rules):
            for version, _, of in _FAMILIES if rule.name and not rule.any else ():
                name = _set_name(peer, number, version)
                # What the resolver has answered for this peer; see the module's head.
                lines += _set(name, f"type {of}", "flags timeout", f"size {MOST_LEADS}")
        lines += _chain(f"refuse_{me}", _refuse(peer.name))
    lines += _chain("refuse", _refuse(""))
    lines += _chain("hold", _hold())
    for peer in config.peers if config.services else ():
        lines += _chain(f"serves_{_chain_of(peer)}", _serves(peer))
    if config.services:
        lines += _chain("serve", [*_dispatch(config.peers, "serves"), "goto refuse"])
    lines += chains
    lines += _chain(
        "pace_out",
        [
            "type filter hook prerouting priority mangle - 1; policy accept;",
            *(f"{inside} {line}" for line in _pace(config.peers, "saddr")),
        ],
    )
    lines += _chain(
        "pace_in",
        [
            "type filter hook postrouting priority mangle; policy accept;",
            *(f'oifname "{interface}" {line}' for line in _pace(config.peers, "daddr")),
        ],
    )
    lines += _chain(
        "input",
        [
            "type filter hook input priority filter; policy drop;",
            f'iifname != "{interface}" accept',
            "ct state established,related accept",
            *_spoofed(config.peers),
            *(line for address in config.addresses for line in _own(address)),
            *turned,
            # What is this machine's own is refused, whatever a rule says of the address.
            *_dispatch(config.peers, "refuse"),
            "goto refuse",
        ],
    )
    return "\n".join([*lines, "}", ""])


def _own(address: Address) -> Iterator[str]:
    """What is answered at the gateway's own address."""
    family = _family(address)
    yield f"{family} daddr {address} meta l4proto {{ tcp, udp }} th dport 53 accept"
    yield f"{family} daddr {address} {_ECHO[family]} type echo-request accept"


def _sources(peers: Iterable[Peer], version: int) -> list[Address]:
    return [one for peer in peers for one in peer.addresses if one.version == version]


def _spoofed(peers: Iterable[Peer]) -> Iterator[str]:
    """WireGuard's AllowedIPs have dropped these already; here is that wall a second time."""
    for version, family, _ in _FAMILIES:
        sources = _sources(peers, version)
        among = f"{family} saddr != {_braces(sources)}" if sources else f"meta nfproto ipv{version}"
        yield f"{among} drop"


def _peer_section(peer: Peer) -> list[str]:
    lines = ["", f"# {peer.name}", "[Peer]", f"PublicKey = {peer.public_key}"]
    if peer.preshared_key:
        lines.append(f"PresharedKey = {peer.preshared_key}")
    return [*lines, f"AllowedIPs = {_alone(peer.addresses)}"]


def _alone(addresses: Iterable[Address]) -> str:
    return ", ".join(f"{address}/{address.max_prefixlen}" for address in addresses)


def wireguard_settings(config: GatewayConfig) -> str:
    """What ``wg setconf`` and ``wg syncconf`` take. Holds the private key."""
    lines = [
        "[Interface]",
        f"PrivateKey = {config.private_key}",
        f"ListenPort = {config.listen[1]}",
    ]
    for peer in config.peers:
        lines += _peer_section(peer)
    return "\n".join([*lines, ""])


def server_file(config: GatewayConfig) -> str:
    """The gateway's own wg-quick file. Holds the private key."""
    lines = [
        "[Interface]",
        f"PrivateKey = {config.private_key}",
        f"ListenPort = {config.listen[1]}",
    ]
    lines += [f"Address = {_alone(config.addresses)}", "MTU = 1420"]
    for peer in config.peers:
        lines += _peer_section(peer)
    return "\n".join([*lines, ""])


def peer_file(config: GatewayConfig, peer: Peer, private_key: str) -> str:
    """A wg-quick file for ``peer``, ready for ``wgcell run --vpn``. Holds its private key."""
    named, port = split_endpoint(config.endpoint)
    host = named or config.listen[0]
    host = f"[{host}]" if ":" in host else host
    lines = [
        f"# {peer.name}",
        "[Interface]",
        f"PrivateKey = {private_key}",
        f"Address = {_alone(peer.addresses)}",
        f"DNS = {config.address}",
        "MTU = 1420",
        "",
        "[Peer]",
        f"PublicKey = {public_key(config.private_key)}",
    ]
    if peer.preshared_key:
        lines.append(f"PresharedKey = {peer.preshared_key}")
    lines += [
        f"Endpoint = {host}:{port or peer.port}",
        f"AllowedIPs = {', '.join(_EVERYWHERE[one.version] for one in peer.addresses)}",
        "PersistentKeepalive = 25",
    ]
    return "\n".join([*lines, ""])
