"""The gateway of one cell's own, on loopback: its keys and its configuration."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

from wgcell.cell.inside import GATEWAY, GATEWAY6, GUEST, GUEST6
from wgcell.cell.job import GatewayAsked
from wgcell.cell.provider import GatewayEngine
from wgcell.cell.wgquick import VpnConfig
from wgcell.errors import HostError
from wgcell.gateway import words
from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key
from wgcell.gateway.model.published import parse_published
from wgcell.home import config_path
from wgcell.net import addresses

__all__ = ["OwnGateway", "check_published"]

HOST = "127.0.0.1"


def check_published(asked: GatewayAsked, engine: GatewayEngine) -> None:
    """Raises HostError if ``engine`` can't publish what is ``asked``, or a port of it is taken."""
    if asked.publish and engine is GatewayEngine.EMBEDDED:
        raise HostError(
            "--publish needs the gateway's namespace engine: the embedded engine can't open "
            "connections into the tunnel",
            hint=f'gateway_engine = "auto" or "namespace" in {config_path()}',
        )
    for text in asked.publish:
        port = parse_published(text)
        family = socket.AF_INET6 if port.address.version == 6 else socket.AF_INET
        try:
            socket.create_server(port.place, family=family).close()
        except OSError as error:
            where, why = addresses.written(*port.place), os.strerror(error.errno or 0)
            raise HostError(
                f"--publish {text}: {where}: {why}",
                hint="choose another port, or 0 for any that is free",
            ) from None


@dataclass(frozen=True, slots=True)
class OwnGateway:
    """The pair of keys for one cell, and the configuration of both ends of its tunnel. ``six``:
    with IPv6."""

    gateway_key: str
    guest_key: str
    six: bool

    @classmethod
    def fresh(cls, *, six: bool) -> OwnGateway:
        """With new keys."""
        return cls(generate_private_key(), generate_private_key(), six)

    def configuration(
        self, asked: GatewayAsked, protected: tuple[IPv4Network | IPv6Network, ...]
    ) -> words.Configure:
        """The gateway's. ``protected`` are this host's own networks."""
        peer = words.Peer(
            public_key=public_key(self.guest_key),
            address=str(ip_interface(GUEST).ip),
            address6=str(ip_interface(GUEST6).ip) if self.six else None,
            publish=asked.publish,
        )
        return words.Configure(
            private_key=self.gateway_key,
            listen=f"{HOST}:0",
            address=GATEWAY,
            address6=GATEWAY6 if self.six else None,
            rules=tuple(f"allow {rule}" for rule in asked.allow),
            services=dict(asked.services),
            resolver=asked.resolver,
            protected=tuple(map(str, protected)),
            learn=asked.learn,
            peers={"cell": peer},
        )

    def tunnel(self, host: str, port: int) -> VpnConfig:
        """The guest's, to the gateway that listens at ``host`` and ``port``."""
        return VpnConfig(
            private_key=decode_key(self.guest_key),
            peer_public_key=decode_key(public_key(self.gateway_key)),
            endpoint_host=host,
            endpoint_port=port,
            addresses=tuple(map(ip_interface, (GUEST, GUEST6)[: 1 + self.six])),
            allowed_ips=tuple(map(ip_network, ("0.0.0.0/0", "::/0")[: 1 + self.six])),
            dns=(ip_address(GATEWAY),),
        )
