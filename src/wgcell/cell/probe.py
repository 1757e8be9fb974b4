"""The address that a guest sends an echo to, so that its endpoint has something to answer.

It must lie within AllowedIPs, and the guest must have an address of its family: a packet for any
other address never enters the tunnel, and no check could show that the tunnel works. The address
need not exist, since an endpoint owes a keepalive for every packet that it accepts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from wgcell.net import addresses
from wgcell.net.addresses import Address, Interface, Network

__all__ = ["choose"]


_USUAL = {4: 24, 6: 64}
"""Prefix length of the network that a tunnel's far end is usually in, whatever our own says."""


def choose(
    own: Sequence[Interface], allowed: Sequence[Network], dns: Sequence[Address] = ()
) -> Address | None:
    """An address in the tunnel; None if ``own`` and ``allowed`` leave no way for any packet.

    First a resolver, then the first address of a network that the cell is in, then one of
    AllowedIPs.
    """
    versions = {address.version for address in own}
    for address in _candidates(own, allowed, dns):
        inside = any(address in network for network in allowed)
        if inside and address.version in versions and _reachable(address, own):
            return address
    return None


def _candidates(
    own: Sequence[Interface], allowed: Sequence[Network], dns: Sequence[Address]
) -> Iterator[Address]:
    yield from dns
    for one in own:
        wide = _USUAL[one.version]
        if one.network.prefixlen <= wide:
            yield from _first(one.network, len(own))
        else:
            yield from _first(addresses.network(f"{one.ip}/{wide}", strict=False), len(own))
    for network in allowed:
        yield from _first(network, len(own))


def _first(network: Network, taken: int) -> Iterator[Address]:
    """The first addresses of a network, more than are ``taken``, and of its upper half."""
    size = network.num_addresses
    for begin in (0, size // 2):
        for number in range(1, min(size - begin, taken + 3)):
            yield network.network_address + begin + number
    yield network.network_address


def _reachable(address: Address, own: Sequence[Interface]) -> bool:
    """Whether Linux would route ``address``, alone, out by the tunnel's interface."""
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # A link-local address needs an interface beside it; IPv4 in IPv6 is not sent to.
        if address.is_link_local or address.ipv4_mapped is not None or int(address) < 1 << 32:
            return False
    elif address.is_reserved or int(address) >> 24 == 0:
        return False
    for one in own:
        if address == one.ip:
            return False
        narrow = one.version == 4 and one.network.prefixlen < 31
        if narrow and address in (one.network.network_address, one.network.broadcast_address):
            return False
    return True
