"""The addresses in the tunnel of a cell with a gateway of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["GATEWAY", "GATEWAY6", "GUEST", "GUEST6", "TAKEN"]

GATEWAY = "10.99.0.1"
GUEST = "10.99.0.2/32"
# Unique local ones (RFC 4193), where this machine's kernel has IPv6 at all.
GATEWAY6 = "fd77:6763:656c::1"
GUEST6 = "fd77:6763:656c::2/128"

TAKEN: Mapping[Address, str] = MappingProxyType(
    {
        addresses.address(GATEWAY): "the gateway's own",
        addresses.address(GATEWAY6): "the gateway's own",
        addresses.interface(GUEST).ip: "the cell's own",
        addresses.interface(GUEST6).ip: "the cell's own",
    }
)
"""Addresses that no service can have, and whose each is."""
