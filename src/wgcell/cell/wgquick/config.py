"""The tunnel of a cell, as its wg-quick file describes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from wgcell.net.addresses import Address, Interface, Network

__all__ = ["DEFAULT_KEEPALIVE", "DEFAULT_MTU", "MINIMUM_MTU", "MOST_NETWORKS", "VpnConfig"]

DEFAULT_MTU = 1420
MINIMUM_MTU = {4: 576, 6: 1280}
"""Bytes that each link must carry, by IP version (RFC 791, RFC 8200 section 5)."""
DEFAULT_KEEPALIVE = 25
MOST_NETWORKS = 1024
"""Of AllowedIPs, joined: the guest's agent reads its routes every 5 s, and reports each."""


@dataclass(frozen=True, slots=True)
class VpnConfig:
    """One tunnel. Keys are 32 raw bytes and never shown by ``repr``."""

    private_key: bytes = field(repr=False)
    peer_public_key: bytes
    endpoint_host: str
    endpoint_port: int
    """0-65535 as written: `wgcell.cell.endpoint.vet` refuses 0 with its reason."""
    addresses: tuple[Interface, ...]
    allowed_ips: tuple[Network, ...]
    """Joined: none lies within another, and no two make a larger one."""
    preshared_key: bytes | None = field(default=None, repr=False)
    dns: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    """Domains in which a name without a dot is looked up."""
    mtu: int = DEFAULT_MTU
    """Bytes, 576-1420; at least 1280 if the tunnel carries IPv6."""
    keepalive: int = DEFAULT_KEEPALIVE
    """Seconds, 1-65535. An idle WireGuard is silent, so 0 and "off" become the default."""
    remarks: tuple[str, ...] = ()
    """Settings that differ here from the file's, in wgcell's own words."""

    @property
    def carries_ipv6(self) -> bool:
        """Whether the tunnel carries IPv6, which Linux refuses on an interface under 1280 bytes."""
        return any(one.version == 6 for one in (*self.addresses, *self.allowed_ips))
