"""The names and numbers by which the rules, the sets and this process find each other.

The table of a gateway is the only one that it touches, beside whatever else the machine has. Each
peer has chains and sets of its own, and a set for each of its rules that has a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from wgcell.gateway.model.config import Peer
from wgcell.net.addresses import Address

__all__ = [
    "FAMILIES",
    "HOLD_GROUP",
    "LOG_GROUP",
    "PREFIX",
    "REDIRECT_PORT",
    "RELEASED",
    "RESET",
    "SET_SIZE",
    "TPROXY_MARK",
    "UNREACHABLE",
    "braces",
    "chain",
    "family",
    "identifier",
    "set_name",
    "set_text",
    "sets_for",
    "table_name",
]

LOG_GROUP = 5182
"""The NFLOG group that gets the first packet of each new flow."""
HOLD_GROUP = 5183
"""The NFLOG group that gets each SYN that is held; also the number of a routing table."""
PREFIX = "wgcell"
"""Begins a log prefix; behind it stand ``:allow`` or ``:refuse``, the peer and
the rule's number."""
REDIRECT_PORT = 5183
"""The port of the gateway's own address to which flows are redirected; open to no others."""
TPROXY_MARK = 1
"""The mark of what TPROXY redirects: on a packet, for its route; on a connection."""
RELEASED, RESET, UNREACHABLE = 0x5182_0001, 0x5182_0002, 0x5182_0003
"""The marks of a SYN that is put back: it goes on; it is reset; its target can't be reached."""
SET_SIZE = 4096
"""Elements of the set of one rule with a name."""
FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
"""IP's version, nftables' word for the family, and the type of an address."""


def table_name(interface: str) -> str:
    """The family and the name of the gateway's table."""
    return f"inet wgcell_{re.sub('[^a-z0-9]', '_', interface)}"


def identifier(peer: Peer) -> str:
    """The part of a chain's or a set's name that stands for ``peer``."""
    return peer.name.replace("-", "_")


def family(address: Address) -> str:
    """nftables' word for the family of ``address``."""
    return "ip" if address.version == 4 else "ip6"


def set_name(peer: Peer, number: int, version: int) -> str:
    """The set of the addresses that the name of rule ``number`` (from 0) resolves to."""
    return f"name_{identifier(peer)}_{number}_v{version}"


def sets_for(peer: Peer, name: str, address: Address) -> list[str]:
    """The sets that get ``address`` when an answer to ``peer`` leads from ``name`` to it."""
    return [
        set_name(peer, number, address.version)
        for number, rule in enumerate(peer.policy.rules)
        if rule.names(name) and not rule.any
    ]


def braces(items: Iterable[object]) -> str:
    """An anonymous set."""
    return "{ " + ", ".join(str(item) for item in items) + " }"


def set_text(name: str, *lines: str) -> Iterator[str]:
    """The lines of a set."""
    yield f"    set {name} {{"
    yield from (f"        {line}" for line in lines)
    yield "    }"


def chain(name: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines of a chain, the same for one that exists already: then they are added to it."""
    yield f"    chain {name} {{"
    yield from (f"        {line}" for line in lines)
    yield "    }"
