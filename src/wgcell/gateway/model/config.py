"""The configuration of one gateway and of its peers, checked. `parsing` reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.rules import Service
from wgcell.net.addresses import Address, Network

__all__ = ["GatewayConfig", "Peer", "both", "is_peer_name"]

_PEER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


def is_peer_name(name: str) -> bool:
    """Whether a peer may have this name: 1-32 of a-z, 0-9 and -, the first not -."""
    return _PEER_NAME.fullmatch(name) is not None


def both(one: Address, other: Address | None) -> tuple[Address, ...]:
    """One or two addresses of a tunnel's end."""
    return (one,) if other is None else (one, other)


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer, and what it may reach."""

    name: str
    public_key: str
    address: Address
    """Its own in the tunnel: a packet with any other source than `addresses` is not its own."""
    port: int
    """Where it comes to with the embedded engine; 0 is any that is free."""
    policy: Policy
    preshared_key: str = field(default="", repr=False)
    """Empty for none. Not for the embedded engine."""
    address6: Address | None = None
    """A second one, of IPv6, beside one of IPv4."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """One or two, of different families."""
        return both(self.address, self.address6)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one gateway is told."""

    listen: tuple[str, int]
    endpoint: str
    """HOST or HOST:PORT of the peers' files; empty if the file does not say."""
    private_key: str = field(repr=False)
    address: Address
    """The gateway's own address in the tunnel, where its resolver answers."""
    services: tuple[Service, ...]
    protected: tuple[Network, ...]
    peers: tuple[Peer, ...]
    resolver: tuple[tuple[str, int], ...] = ()
    """Where names are asked; empty is this machine's own resolver."""
    engine: str = "embedded"
    address6: Address | None = None
    """A second one, of IPv6, beside one of IPv4."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """One or two, of different families."""
        return both(self.address, self.address6)

    @property
    def inside(self) -> tuple[Address, ...]:
        """The gateway's own addresses in the tunnel, and its peers'."""
        return (*self.addresses, *(one for peer in self.peers for one in peer.addresses))

    @property
    def one_port(self) -> bool:
        """Whether all peers come to the same place."""
        return self.engine != "embedded"

    def port_of(self, peer: Peer) -> int:
        """Where ``peer`` comes to."""
        return self.listen[1] if self.one_port else peer.port
