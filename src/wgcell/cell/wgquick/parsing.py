"""A `VpnConfig` from the text of a wg-quick file, and from the file."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from wgcell.cell import probe
from wgcell.cell.inputs import Input, opened
from wgcell.cell.wgquick import values
from wgcell.cell.wgquick.config import (
    DEFAULT_KEEPALIVE,
    DEFAULT_MTU,
    MINIMUM_MTU,
    MOST_NETWORKS,
    VpnConfig,
)
from wgcell.cell.wgquick.sections import Sections
from wgcell.cell.wgquick.values import BadValue
from wgcell.errors import VpnConfigError
from wgcell.net.addresses import Address, Interface, Network

__all__ = ["load_vpn_config", "parse_vpn_config"]

_MAXIMUM_FILE = 256 * 1024
_NO_WAY_TO_DNS = (
    "lies outside AllowedIPs: no lookup in the cell can reach it; add it to AllowedIPs, or name a "
    "resolver within them"
)


def load_vpn_config(path: Path, beneath: Path | None = None) -> VpnConfig:
    """`parse_vpn_config` of a file, at most 256 KiB. Raises `VpnConfigError`.

    ``beneath`` is the folder that must contain the file, even if a link is swapped meanwhile.
    """
    try:
        with path.open("rb") if beneath is None else _opened_beneath(path, beneath) as file:
            raw = file.read(_MAXIMUM_FILE + 1)
    except OSError as error:
        raise VpnConfigError(f"{path}: {error.strerror or error}") from None
    if len(raw) > _MAXIMUM_FILE:
        raise VpnConfigError(f"{path}: larger than 256 KiB, which no wg-quick file is")
    return parse_vpn_config(raw, str(path))


def _opened_beneath(path: Path, beneath: Path) -> BinaryIO:
    return os.fdopen(opened(Input(path, beneath=beneath)), "rb")


def parse_vpn_config(text: str | bytes, source: str = "the VPN configuration") -> VpnConfig:
    """A wg-quick file's text as a `VpnConfig`.

    Raises `VpnConfigError`, beginning ``source:line:``, for anything that wg-quick or wg refuses,
    that would act on this machine, or that a cell can't use.
    """
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    # One character for each byte, as for the tools: a comment may be in any encoding.
    file = Sections(raw.removeprefix(b"\xef\xbb\xbf").decode("latin-1"), source)
    file.refuse_actions()
    private_key = file.required("Interface", "PrivateKey", bytes)
    public_key = file.required("Peer", "PublicKey", bytes)
    host, port = file.required("Peer", "Endpoint", tuple)
    addresses, allowed = _addresses(file), _allowed_ips(file)
    dns, search = _dns(file, allowed)
    mtu = _mtu(file, 6 if any(one.version == 6 for one in (*addresses, *allowed)) else 4)
    if probe.choose(addresses, allowed, dns) is None:
        file.fail(
            0,
            "AllowedIPs has no address that an Address here could send to, so no check could show "
            "that the tunnel works",
            "give AllowedIPs a network beyond your own Address, of the same family",
        )
    preshared = file.get("PresharedKey", bytes)
    return VpnConfig(
        private_key=private_key,
        peer_public_key=public_key,
        # To WireGuard a preshared key of zeros is none.
        preshared_key=preshared if preshared != bytes(32) else None,
        endpoint_host=host,
        endpoint_port=port,
        addresses=addresses,
        allowed_ips=allowed,
        dns=dns,
        search=search,
        mtu=mtu,
        keepalive=file.get("PersistentKeepalive", int) or DEFAULT_KEEPALIVE,
        remarks=tuple(file.remarks),
    )


def _addresses(file: Sections) -> tuple[Interface, ...]:
    found: dict[object, Interface] = {}
    for word in file.words("address"):
        try:
            one = values.interface_address(word.text)
        except BadValue as bad:
            file.fail(word.line, f"Address: {bad}")
        if one.ip.is_unspecified:
            continue  # Linux accepts 0.0.0.0, and adds nothing
        # Linux has an IPv4 address once with each prefix length, an IPv6 address once.
        if (key := one.ip if one.version == 6 else one) in found:
            file.fail(word.line, "Address: the same one again")
        found[key] = one
    if not found:
        file.fail(0, "[Interface] has no Address")
    return tuple(found.values())


def _dns(file: Sections, allowed: Sequence[Network]) -> tuple[tuple[Address, ...], tuple[str, ...]]:
    """Resolvers and search domains. A resolver would ignore any other word, so it is left out.

    A resolver outside ``allowed`` can't be reached through the tunnel.
    """
    servers: dict[Address, None] = {}
    search: dict[str, None] = {}
    for word in file.words("dns"):
        server = values.nameserver(word.text)
        if server is not None:
            servers[server] = None
            if not any(server in network for network in allowed):
                file.remark(word.line, f"DNS {server} {_NO_WAY_TO_DNS}")
        elif values.is_domain(word.text):
            search[word.text] = None
        elif not _is_routing_domain(word.text):
            file.remark(word.line, "DNS has a word that is no address and no domain; left out")
    return tuple(servers), tuple(search)


def _is_routing_domain(text: str) -> bool:
    """systemd-resolved's ``~domain``: names that are looked up here. In a cell all names are."""
    return text.startswith("~") and ":" not in text


def _allowed_ips(file: Sections) -> tuple[Network, ...]:
    every: list[Network] = file.required("Peer", "AllowedIPs", list, "add: AllowedIPs = 0.0.0.0/0")
    four = [one for one in every if isinstance(one, ipaddress.IPv4Network)]
    six = [one for one in every if isinstance(one, ipaddress.IPv6Network)]
    joined: tuple[Network, ...] = (
        *ipaddress.collapse_addresses(four),
        *ipaddress.collapse_addresses(six),
    )
    if len(joined) > MOST_NETWORKS:
        file.fail(
            0,
            f"AllowedIPs has {len(joined)} networks, the adjacent ones joined; allowed: at "
            f"most {MOST_NETWORKS}",
            "list larger networks that hold them, or 0.0.0.0/0",
        )
    return joined


def _mtu(file: Sections, version: int) -> int:
    """The MTU of a tunnel that carries IP of that ``version``."""
    value = file.last("mtu")
    if value is None or not value.text:
        return DEFAULT_MTU
    try:
        written = values.mtu(value.text)
    except BadValue as bad:
        file.fail(value.line, f"MTU {bad}")
    least = MINIMUM_MTU[version]
    mtu = min(max(written, least), DEFAULT_MTU) if written else DEFAULT_MTU
    if not written:
        file.remark(value.line, f"MTU 0 is {mtu} here: 0 stands for none")
    elif written < least:
        why = f"less than a tunnel with IPv{version} must carry"
        file.remark(value.line, f"MTU {written} is {mtu} here: {why}")
    elif written > DEFAULT_MTU:
        why = "more than fits into a packet of 1500 bytes"
        file.remark(value.line, f"MTU {written} is {mtu} here: {why}")
    return mtu
