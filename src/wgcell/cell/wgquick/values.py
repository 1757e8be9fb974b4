"""The values of a wg-quick file, each parsed by itself, as the tools parse it. Pure."""

from __future__ import annotations

import base64
import binascii
import re

from wgcell.cell.wgquick.config import DEFAULT_KEEPALIVE
from wgcell.net.addresses import Address, Interface, Network, address, interface, network

__all__ = [
    "BadValue",
    "allowed_ips",
    "endpoint",
    "fwmark",
    "interface_address",
    "is_domain",
    "keepalive",
    "key",
    "mtu",
    "nameserver",
    "port",
    "shown",
]

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = re.compile(r"0*([0-9]{1,10})", re.ASCII)
# wg's own: off, or a number that strtoul(3) reads with base 10, or 16 behind 0x; 32 bits.
_FWMARK = re.compile(r"(?i:off)|0*([0-9]{1,10})|0x0*[0-9a-fA-F]{1,8}", re.ASCII)
# strtol(3) with base 0, as ip-link(8) reads an MTU.
_C_INTEGER = re.compile(r"\+?(0x[0-9a-f]{1,8}|0[0-7]{0,11}|[1-9][0-9]{0,9})", re.ASCII | re.I)
# Not an inverted one, which Python would accept.
_NETMASK = re.compile(
    r"[0-9.]+(/([1-9]?[0-9]|(1|2)[0-9]{2}(\.[0-9]{1,3}){3}|0\.0\.0\.0))?", re.ASCII
)
_SHOWN = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,4}(/[0-9]{1,3})?|[0-9]{1,6}", re.ASCII)
_NAMESERVER = re.compile(r"[0-9.]+|.*:.*", re.ASCII)


class BadValue(ValueError):
    """A value that its key does not allow; the message names the values that it allows."""


def shown(value: str) -> str:
    """``value`` in quotes if it is a number or like an IPv4 address; no other text is repeated."""
    return f"{value!r} " if _SHOWN.fullmatch(value) else ""


def interface_address(text: str) -> Interface:
    """Address: as ip-address(8) has it, without forms that readers disagree about.

    Raises `BadValue`.
    """
    try:
        if ":" not in text and not _NETMASK.fullmatch(text):
            raise ValueError("neither a prefix length nor a netmask")
        if ":" in text and not re.fullmatch(
            r"[0-9a-f:.]+(/([1-9][0-9]{0,2}|0))?", text, re.A | re.I
        ):
            raise ValueError("not an IPv6 address")
        one = interface(text)
    except ValueError:
        raise BadValue(f"{shown(text)}is not an address as 10.0.0.2/32") from None
    if one.version == 6 and (one.ip.is_unspecified or one.ip.is_multicast or one.ip.is_loopback):
        raise BadValue("Linux gives such an address to no tunnel")
    return one


def nameserver(text: str) -> Address | None:
    """DNS: an address; None if it is none."""
    try:
        return address(text) if _NAMESERVER.fullmatch(text) else None
    except ValueError:
        return None


def is_domain(text: str) -> bool:
    """Whether ``text`` is a domain name, and not an address."""
    return not _NAMESERVER.fullmatch(text) and _HOST_NAME.fullmatch(text) is not None


def mtu(text: str) -> int:
    """MTU: 0 up to the largest that an interface can have. Raises `BadValue`."""
    if not _C_INTEGER.fullmatch(text):
        raise BadValue(f"{shown(text)}is not a number")
    digits = text.lower().lstrip("+")
    octal = digits.startswith("0") and not digits.startswith("0x")
    number = int(digits, 8) if octal else int(digits, 0)
    if number >= 1 << 31:
        raise BadValue(f"{shown(text)}is too large for any interface")
    return number


def key(text: str) -> bytes:
    """PrivateKey, PublicKey, PresharedKey: 32 bytes. Raises `BadValue`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # wg refuses bits behind the last byte, which base64 would ignore.
    if len(raw) != 32 or base64.b64encode(raw).decode() != text:
        raise BadValue("is not a WireGuard key (44 characters of base64)")
    return raw


def port(text: str) -> int:
    """ListenPort: 0-65535. Raises `BadValue`."""
    found = _NUMBER.fullmatch(text)
    number = int(found[1]) if found else -1
    if not 0 <= number <= 65535:
        raise BadValue(f"{shown(text)}is not a number of 0-65535")
    return number


def fwmark(text: str) -> None:
    """FwMark: checked, and not used. It marks packets of a machine's own WireGuard."""
    found = _FWMARK.fullmatch(text)
    if found is None or int(found[1] or 0) >= 1 << 32:
        raise BadValue(f"{shown(text)}is not off or a number of 32 bits")


def keepalive(text: str) -> int:
    """PersistentKeepalive: seconds, 1-65535. Raises `BadValue`."""
    return DEFAULT_KEEPALIVE if text.lower() == "off" else port(text) or DEFAULT_KEEPALIVE


def allowed_ips(text: str) -> list[Network]:
    """AllowedIPs: networks. Raises `BadValue`."""
    found: list[Network] = []
    for part in text.split(","):
        host, slash, prefix = part.partition("/")
        length = _NUMBER.fullmatch(prefix)
        try:
            if slash and length is None:
                raise ValueError("no prefix length")
            alone = 32 if ":" not in host else 128
            bits = int(length[1]) if length else alone
            found.append(network(f"{address(host)}/{bits}", strict=False))
        except ValueError:
            raise BadValue(f"{shown(part)}is not a network as 192.0.2.0/24") from None
    return found


def endpoint(text: str) -> tuple[str, int]:
    """Endpoint: host and port. Raises `BadValue`.

    The host stands in brackets, or ends at the last colon: so wg reads a bare IPv6 address.
    """
    if text.startswith("["):
        host, bracket, number = text[1:].partition("]")
        colon, number = number[:1], number[1:]
    else:
        host, colon, number = text.rpartition(":")
        bracket = "-"
    found = _NUMBER.fullmatch(number)
    value = int(found[1]) if found else -1
    if not bracket or colon != ":" or not _is_host(host) or not 0 <= value <= 65535:
        raise BadValue("is not HOST:PORT, ADDRESS:PORT or [V6]:PORT")
    return host, value


def _is_host(host: str) -> bool:
    try:
        address(host)
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None
    return True
