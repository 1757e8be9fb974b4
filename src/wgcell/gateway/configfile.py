"""Reads a gateway's file, and adds and removes its peers as text, so that its comments stay.

The private key of a new peer is written into the peer's own file and nowhere else.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import replace
from pathlib import Path

from wgcell import atomic, toml
from wgcell.errors import PolicyError
from wgcell.gateway.model.config import GatewayConfig, Peer, is_peer_name
from wgcell.gateway.model.document import written
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.parsing import configured, parse_config, split_endpoint
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.source import Source
from wgcell.gateway.model.wgquick import peer_file
from wgcell.gateway.words import Configure
from wgcell.net.addresses import Address

__all__ = [
    "add_peer",
    "check_name",
    "load",
    "load_config",
    "new_gateway",
    "remove_peer",
    "write_secret",
]

_LARGEST_FILE = 1 << 20
_MOST = 254


def load_config(path: Path) -> GatewayConfig:
    """Read a file's configuration. Raises `PolicyError` with the file and the line."""
    return load(path)[1]


def load(path: Path) -> tuple[Configure, GatewayConfig]:
    """A file's configuration, as the order to a gateway and as what it means.

    Raises `PolicyError` with the file and the line.
    """
    text = _read_text(path)
    order = written(_parse_toml(path, text), Source(str(path), text))
    return order, configured(order, str(path), text)


def _read_text(path: Path) -> str:
    """The text of a gateway's file, at most 1 MiB of UTF-8. Raises `PolicyError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror or error}") from None
    if len(raw) > _LARGEST_FILE:
        raise PolicyError(f"{path}: larger than 1 MiB, which no gateway file is")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError(f"{path}:{line}: not UTF-8 text") from None


def _parse_toml(path: Path, text: str) -> dict[str, object]:
    """The tables of a gateway's file. Raises `PolicyError` with the line."""
    try:
        return toml.parse(text.encode())
    except toml.TomlError as error:
        raise PolicyError(error.at(path)) from None


def write_secret(path: Path, text: str, *, fresh: bool = False) -> None:
    """Write ``path`` as a whole or not at all, mode 0600. With ``fresh``, it must not exist yet.

    Raises `PolicyError`.
    """
    if fresh and path.exists():
        raise PolicyError(f"{path} exists already", hint="take it away first, or name another")
    try:
        atomic.write(path, text.encode(), 0o600)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror or error}") from None


def new_gateway(engine: str) -> str:
    """The text of a new gateway's file: a new key, no peers, nothing allowed."""
    return (
        f'engine = "{engine}"\n'
        'listen = "0.0.0.0:51820"\n'
        f'private_key = "{generate_private_key()}"\n'
        'address = "10.99.0.1"\n'
        'rules = []  # as "allow api.example.com:443"\n'
    )


def check_name(name: str) -> None:
    """Raises `PolicyError` if no peer may have this name, which is also that of a file."""
    if not is_peer_name(name):
        raise PolicyError(f"peer {name!r}; allowed: 1-32 of a-z, 0-9 and -, not - first")


def add_peer(path: Path, name: str, *, endpoint: str, preshared: bool) -> tuple[Peer, str]:
    """Add a new peer to the gateway's file at ``path``. Returns it, and the text of its own file.

    ``endpoint`` is the host in the peer's file; empty for the one in the gateway's file. The
    embedded engine can't use a preshared key. Raises `PolicyError`.
    """
    text = _read_text(path)
    config = parse_config(_parse_toml(path, text), str(path), text)
    check_name(name)
    if any(peer.name == name for peer in config.peers):
        raise PolicyError(
            f"{path}: there is a peer {name} already", hint=f"wgcell gateway peer rm {name}"
        )
    if preshared and not config.one_port:
        raise PolicyError(
            f"{path}: the embedded engine can't use a preshared key",
            hint='engine = "namespace" and engine = "kernel" can',
        )
    if endpoint:
        try:
            split_endpoint(endpoint)
        except PolicyError as error:
            raise PolicyError(f"--endpoint: {error.message}") from None
        config = replace(config, endpoint=endpoint)
    if not config.endpoint and config.listen[0] in ("0.0.0.0", "::"):  # noqa: S104
        raise PolicyError(
            f"{path}: nothing says where peers come to",
            hint='give --endpoint HOST or HOST:PORT, or endpoint = "vpn.example.com" in the file',
        )
    private = generate_private_key()
    peer = Peer(
        name=name,
        public_key=public_key(private),
        address=_free_address(config, config.address),
        address6=config.address6 and _free_address(config, config.address6),
        port=config.listen[1] if config.one_port else _free_port(config),
        policy=Policy(),
        preshared_key=base64.b64encode(os.urandom(32)).decode() if preshared else "",
    )
    lines = [f"\n[peers.{name}]", f'public_key = "{peer.public_key}"']
    if preshared:
        lines.append(f'preshared_key = "{peer.preshared_key}"')
    lines.append(f'address = "{peer.address}"')
    if peer.address6 is not None:
        lines.append(f'address6 = "{peer.address6}"')
    lines += [""] if config.one_port else [f"port = {peer.port}", ""]
    new = text.rstrip("\n") + "\n" + "\n".join(lines)
    parse_config(_parse_toml(path, new), str(path), new)
    write_secret(path, new)
    return peer, peer_file(config, peer, private)


def _free_address(config: GatewayConfig, beside: Address) -> Address:
    taken = {*config.inside, *(service.address for service in config.services)}
    for number in range(1, _MOST):
        if (address := beside + number) not in taken:
            return address
    raise PolicyError(f"no address is free within {_MOST} of {beside}")


def _free_port(config: GatewayConfig) -> int:
    taken = {peer.port for peer in config.peers}
    for port in range(config.listen[1], 65536):
        if port not in taken:
            return port
    raise PolicyError(f"no UDP port is free from {config.listen[1]} on")


def remove_peer(path: Path, name: str) -> None:
    """Remove a peer from the file. Raises `PolicyError`, also if the text can't be cut safely."""
    text = _read_text(path)
    before = _parse_toml(path, text)
    peers = before.get("peers", {})
    if not isinstance(peers, dict) or name not in peers:
        known = ", ".join(peers) if isinstance(peers, dict) and peers else "none"
        raise PolicyError(f"{path}: there is no peer {name!r}", hint=f"there are: {known}")
    kept: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        head = re.match(r"\s*\[([^\[\]]+)\]", line)
        if head:
            parts = [part.strip().strip("\"'") for part in head[1].split(".")]
            inside = parts[:2] == ["peers", name]
        if not inside:
            kept.append(line)
    new = "".join(kept)
    del peers[name]
    after = _parse_toml(path, new)
    if {**after, "peers": after.get("peers", {})} != before:
        raise PolicyError(f"{path}: peer {name} is not a table [peers.{name}] of its own")
    write_secret(path, new)
