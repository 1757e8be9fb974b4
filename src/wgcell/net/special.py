"""Special addresses: the one table that endpoints, names and rules are held to.

A stranger chooses an endpoint, a name's addresses and a job's rules. What they choose must be
plainly out on the Internet: not this machine, not its LAN, not its cloud's metadata service. So the
table has

- every row of IANA's registries of special-purpose addresses (RFC 6890), the globally reachable
  ones too: an anycast address reaches the nearest of many machines;
- multicast and the like, and IPv6 beyond 2000::/3, which IANA has not given out (RFC 4291);
- forms of IPv6 that carry an IPv4 address;
- the addresses at which clouds give a machine its secrets.

Documentation's networks are nobody's, neither here nor elsewhere: no endpoint can be there. For
names and rules they are what they are to a router, addresses without an answer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from wgcell.net.addresses import Address, Network

__all__ = ["SPECIAL", "TARGETS", "Special", "carried", "plain_forms", "special"]


@dataclass(frozen=True, slots=True)
class Special:
    """One range that is not plainly out on the Internet."""

    network: Network
    kind: str
    """The kind of address, in a word or two."""
    source: str
    """The document that says so."""
    nobodys: bool = False
    """Documentation: nothing is there, so only an endpoint can be wrong with it."""
    carries: int | None = None
    """How many bits stand behind the IPv4 address that it carries and that is judged in its place
    where an endpoint is asked about; None if nothing is, and the whole range is refused."""

    @property
    def reason(self) -> str:
        """``private (RFC 1918)``."""
        return f"{self.kind} ({self.source})" if self.source else self.kind


_METADATA = (
    ("169.254.169.254/32", "AWS, Azure, Google and many others"),
    ("169.254.169.252/32", "Google Kubernetes Engine"),
    ("169.254.169.253/32", "AWS's resolver"),
    ("169.254.169.123/32", "AWS's clock"),
    ("169.254.170.2/32", "AWS ECS"),
    ("169.254.170.23/32", "AWS EKS"),
    ("169.254.42.42/32", "Scaleway"),
    ("169.254.0.23/32", "Tencent Cloud"),
    ("100.88.222.5/32", "Tencent Cloud"),
    ("100.100.100.200/32", "Alibaba Cloud"),
    ("168.63.129.16/32", "Azure"),
    ("192.0.0.192/32", "Oracle Cloud"),
    ("fd00:ec2::254/128", "AWS"),
    ("fd00:ec2::253/128", "AWS's resolver"),
    ("fd00:ec2::123/128", "AWS's clock"),
    ("fd00:ec2::23/128", "AWS EKS"),
    ("fd20:ce::254/128", "Google Cloud"),
    ("fd00:42::42/128", "Scaleway"),
    ("fd00:c1::a9fe:a9fe/128", "Oracle Cloud"),
    ("fe80::a9fe:a9fe/128", "OpenStack"),
)
"""As the clouds' own documentation has them, November 2026. Most lie in a range that is special
anyway; Azure's does not."""

_RANGES: tuple[tuple[str, str, str], ...] = (
    # IANA IPv4 Special-Purpose Address Registry.
    ("0.0.0.0/32", "unspecified", "RFC 1122"),
    ("0.0.0.0/8", "reserved", "this network, RFC 791"),
    ("10.0.0.0/8", "private", "RFC 1918"),
    ("100.64.0.0/10", "shared", "CGNAT, RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("169.254.0.0/16", "link-local", "RFC 3927"),
    ("172.16.0.0/12", "private", "RFC 1918"),
    ("192.0.0.0/24", "reserved", "IETF protocol assignments, RFC 6890"),
    ("192.0.0.0/29", "reserved", "IPv4 service continuity, RFC 7335"),
    ("192.0.0.8/32", "reserved", "dummy address, RFC 7600"),
    ("192.0.0.9/32", "reserved", "port control anycast, RFC 7723"),
    ("192.0.0.10/32", "reserved", "TURN anycast, RFC 8155"),
    ("192.0.0.170/32", "reserved", "NAT64 discovery, RFC 8880"),
    ("192.0.0.171/32", "reserved", "NAT64 discovery, RFC 8880"),
    ("192.31.196.0/24", "reserved", "AS112, RFC 7535"),
    ("192.52.193.0/24", "reserved", "AMT, RFC 7450"),
    ("192.88.99.0/24", "reserved", "6to4 relays, RFC 7526"),
    ("192.88.99.2/32", "reserved", "6a44 relays, RFC 6751"),
    ("192.168.0.0/16", "private", "RFC 1918"),
    ("192.175.48.0/24", "reserved", "AS112, RFC 7534"),
    ("198.18.0.0/15", "reserved", "benchmarking, RFC 2544"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("255.255.255.255/32", "broadcast", "RFC 919"),
    ("240.0.0.0/4", "reserved", "RFC 1112"),
    # IANA IPv6 Special-Purpose Address Registry.
    ("::/128", "unspecified", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    ("64:ff9b:1::/48", "private", "local NAT64, RFC 8215"),
    ("100::/64", "reserved", "discard, RFC 6666"),
    ("100:0:0:1::/64", "reserved", "dummy prefix, RFC 9780"),
    ("2001::/32", "IPv4-carrying", "Teredo, RFC 4380"),
    ("2001:1::1/128", "reserved", "port control anycast, RFC 7723"),
    ("2001:1::2/128", "reserved", "TURN anycast, RFC 8155"),
    ("2001:1::3/128", "reserved", "service registration anycast, RFC 9665"),
    ("2001:2::/48", "reserved", "benchmarking, RFC 5180"),
    ("2001:3::/32", "reserved", "AMT, RFC 7450"),
    ("2001:4:112::/48", "reserved", "AS112, RFC 7535"),
    ("2001:10::/28", "reserved", "ORCHID, RFC 4843"),
    ("2001:20::/28", "reserved", "ORCHIDv2, RFC 7343"),
    ("2001:30::/28", "reserved", "drone identities, RFC 9374"),
    ("2001::/23", "reserved", "IETF protocol assignments, RFC 2928"),
    ("2620:4f:8000::/48", "reserved", "AS112, RFC 7534"),
    ("5f00::/16", "reserved", "segment routing, RFC 9602"),
    ("fc00::/7", "private", "unique local, RFC 4193"),
    ("fe80::/10", "link-local", "RFC 4291"),
    # No unicast, and what was given up (IANA IPv6 Address Space).
    ("fec0::/10", "site-local", "private, RFC 3879"),
    ("ff00::/8", "multicast", "RFC 4291"),
)

_DOCUMENTATION = (
    ("192.0.2.0/24", "RFC 5737"),
    ("198.51.100.0/24", "RFC 5737"),
    ("203.0.113.0/24", "RFC 5737"),
    ("2001:db8::/32", "RFC 3849"),
    ("3fff::/20", "RFC 9637"),
)

_CARRIERS = (
    ("::ffff:0:0/96", "IPv4-mapped, RFC 4291", 0),
    ("64:ff9b::/96", "NAT64, RFC 6052", 0),
    ("2002::/16", "6to4, RFC 3056", 80),
)
"""An endpoint may be written so, or be found so behind a DNS64: it is where its IPv4 address is.
The number says how many bits stand behind that."""

_UNALLOCATED = ("::/3", "4000::/2", "8000::/1")
"""All but 2000::/3, of which alone IANA gives out (RFC 4291, 2.4)."""


def _table() -> Iterator[Special]:
    ranges = [Special(ipaddress.ip_network(text), kind, source) for text, kind, source in _RANGES]
    yield from ranges
    for text, whose in _METADATA:
        one = ipaddress.ip_network(text)
        wider = (f"; {row.kind}" for row in ranges if one.network_address in row.network)
        yield Special(one, "cloud metadata", whose + next(wider, ""))
    for text, source in _DOCUMENTATION:
        kind = "reserved"
        yield Special(ipaddress.ip_network(text), kind, f"documentation, {source}", nobodys=True)
    for text, source, bits in _CARRIERS:
        yield Special(ipaddress.ip_network(text), "IPv4-carrying", source, carries=bits)
    compatible = ipaddress.ip_network("::/96")
    yield Special(compatible, "reserved", "IPv4-compatible, RFC 4291")
    for text in _UNALLOCATED:
        yield Special(ipaddress.ip_network(text), "reserved", "not allocated, RFC 4291")


SPECIAL: tuple[Special, ...] = tuple(
    sorted(_table(), key=lambda row: row.network.prefixlen, reverse=True)
)
"""Narrow ranges before wider ones: the first range that holds an address names it."""

TARGETS: tuple[Special, ...] = tuple(row for row in SPECIAL if not row.nobodys)
"""Targets that no name may resolve to, and no rule opens unless it is that very address."""

_BY_VERSION = {
    version: tuple(row for row in SPECIAL if row.network.version == version) for version in (4, 6)
}


def special(address: Address) -> Special | None:
    """The narrowest row that ``address`` is in; None if it is plainly out on the Internet."""
    for row in _BY_VERSION[address.version]:
        if address in row.network:
            return row
    return None


def carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is judged in the place of ``address``, which only carries it."""
    row = special(address)
    if row is None or row.carries is None:
        return None
    return ipaddress.IPv4Address(int(address) >> row.carries & 0xFFFFFFFF)


def plain_forms(address: Address) -> tuple[Address, ...]:
    """``address``, and the IPv4 address it carries: mapped, 6to4 or NAT64."""
    inner = carried(address)
    return (address,) if inner is None else (address, inner)
