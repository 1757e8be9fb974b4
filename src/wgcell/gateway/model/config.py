"""The configuration of one gateway and of its peers, checked. `parsing` reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.published import Published
from wgcell.gateway.model.services import Service
from wgcell.net.addresses import Address, Network

__all__ = ["GatewayConfig", "Peer", "both", "is_peer_name"]

_PEER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


def is_peer_name(name: str) -> bool:
    """Whether a peer may have this name: 1-32 of a-z, 0-9 and -, the first not -."""
    return _PEER_NAME.fullmatch(name) is not None


def both(one: Address, other: Address | None) -> tuple[Address, ...]:
    """Both addresses of one end of the tunnel, or its only one."""
    return (one,) if other is None else (one, other)


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer and its policy."""

    name: str
    public_key: str
    address: Address
    """The peer's address in the tunnel. Packets from a source beside `addresses` are dropped."""
    port: int
    """The UDP port to which the peer sends with the embedded engine; 0 is any free one."""
    policy: Policy
    preshared_key: str = field(default="", repr=False)
    """Base64; empty for none. The embedded engine can use none."""
    address6: Address | None = None
    """A second one, of IPv6, beside one of IPv4."""
    published: tuple[Published, ...] = ()
    """Its ports that the gateway publishes on its own side."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """One address, or one of IPv4 and one of IPv6."""
        return both(self.address, self.address6)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The configuration of one gateway."""

    listen: tuple[str, int]
    endpoint: str
    """HOST or HOST:PORT in the peers' files; empty if the file has none."""
    private_key: str = field(repr=False)
    address: Address
    """The gateway's own address in the tunnel, where its resolver answers."""
    services: tuple[Service, ...]
    protected: tuple[Network, ...]
    peers: tuple[Peer, ...]
    resolver: tuple[tuple[str, int], ...] = ()
    """The upstream resolvers, each an address and a port; empty for this machine's own."""
    engine: str = "embedded"
    address6: Address | None = None
    """A second one, of IPv6, beside one of IPv4."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """One address, or one of IPv4 and one of IPv6."""
        return both(self.address, self.address6)

    @property
    def inside(self) -> tuple[Address, ...]:
        """The gateway's own addresses in the tunnel, and its peers'."""
        return (*self.addresses, *(one for peer in self.peers for one in peer.addresses))

    @property
    def one_port(self) -> bool:
        """Whether all peers send to one port."""
        return self.engine != "embedded"

    def port_of(self, peer: Peer) -> int:
        """The UDP port to which ``peer`` sends."""
        return self.listen[1] if self.one_port else peer.port
