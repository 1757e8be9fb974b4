"""The files of WireGuard's tools (wg(8), wg-quick(8)) for a gateway and its peers. Pure text.

Each holds a private key.
"""

from __future__ import annotations

from collections.abc import Iterable

from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.keys import public_key
from wgcell.gateway.model.parsing import split_endpoint
from wgcell.net.addresses import Address

__all__ = ["peer_file", "server_file", "wireguard_settings"]

_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def wireguard_settings(config: GatewayConfig) -> str:
    """The text that ``wg setconf`` and ``wg syncconf`` read."""
    lines = [
        "[Interface]",
        f"PrivateKey = {config.private_key}",
        f"ListenPort = {config.listen[1]}",
    ]
    for peer in config.peers:
        lines += _peer_section(peer)
    return "\n".join([*lines, ""])


def server_file(config: GatewayConfig) -> str:
    """The wg-quick file of the gateway itself."""
    lines = [
        "[Interface]",
        f"PrivateKey = {config.private_key}",
        f"ListenPort = {config.listen[1]}",
    ]
    lines += [f"Address = {_hosts(config.addresses)}", "MTU = 1420"]
    for peer in config.peers:
        lines += _peer_section(peer)
    return "\n".join([*lines, ""])


def peer_file(config: GatewayConfig, peer: Peer, private_key: str) -> str:
    """The wg-quick file of ``peer``, ready for ``wgcell run --vpn``."""
    named, port = split_endpoint(config.endpoint)
    host = named or config.listen[0]
    host = f"[{host}]" if ":" in host else host
    lines = [
        f"# {peer.name}",
        "[Interface]",
        f"PrivateKey = {private_key}",
        f"Address = {_hosts(peer.addresses)}",
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


def _peer_section(peer: Peer) -> list[str]:
    lines = ["", f"# {peer.name}", "[Peer]", f"PublicKey = {peer.public_key}"]
    if peer.preshared_key:
        lines.append(f"PresharedKey = {peer.preshared_key}")
    return [*lines, f"AllowedIPs = {_hosts(peer.addresses)}"]


def _hosts(addresses: Iterable[Address]) -> str:
    return ", ".join(f"{address}/{address.max_prefixlen}" for address in addresses)
