"""The one place where text becomes an address, a network, an interface, or HOST:PORT.

Python's `ipaddress` takes more than an address: behind ``%`` an IPv6 address may carry a scope id
(RFC 4007), which is any text at all, and which would go on into rulesets, command lines and
messages. Nothing that wgcell reads needs one, so ``%`` is refused everywhere. Integers, which
`ipaddress` takes as well, never come here.

Every function raises ValueError with words that quote no more than `_SHOWN` characters.
"""

from __future__ import annotations

import ipaddress
import re

__all__ = [
    "Address",
    "Interface",
    "Network",
    "address",
    "host_and_port",
    "interface",
    "is_address",
    "network",
    "of_socket",
    "only",
    "unpacked",
    "written",
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_SHOWN = 60
_LONGEST = 100
"""Characters; the longest network, an IPv6 one with a dotted end and a mask, has 49."""
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


def _checked(text: str, what: str) -> str:
    shown = f"{text[:_SHOWN]!r} is not {what}"
    if "%" in text:
        raise ValueError(f"{shown}: a scope id (%) has no meaning beyond one machine; leave it out")
    if len(text) > _LONGEST:
        raise ValueError(shown)
    return text


def address(text: str) -> Address:
    """An IPv4 or IPv6 address. Raises ValueError."""
    plain = _checked(text, "an IP address")
    try:
        return ipaddress.ip_address(plain)
    except ValueError:
        raise ValueError(f"{text[:_SHOWN]!r} is not an IP address") from None


def is_address(text: str) -> bool:
    """Whether `address` takes it."""
    try:
        address(text)
    except ValueError:
        return False
    return True


def network(text: str, *, strict: bool = True) -> Network:
    """A network; without a length that address alone. ``strict``: no bits behind the length.

    Raises ValueError.
    """
    plain = _checked(text, "a network")
    try:
        return ipaddress.ip_network(plain, strict=strict)
    except ValueError as error:
        words = str(error)
        if words.endswith("has host bits set"):
            within = ipaddress.ip_network(plain, strict=False)
            raise ValueError(f"{text[:_SHOWN]!r} has host bits set; the network is {within}") from (
                None
            )
        raise ValueError(f"{text[:_SHOWN]!r} is not a network") from None


def interface(text: str) -> Interface:
    """An address and the network it is in. Raises ValueError."""
    plain = _checked(text, "an address with its network")
    try:
        return ipaddress.ip_interface(plain)
    except ValueError:
        raise ValueError(f"{text[:_SHOWN]!r} is not an address with its network") from None


def only(one: Address) -> Network:
    """The network that is ``one`` alone."""
    return ipaddress.ip_network(one)


def of_socket(name: str) -> Address:
    """The address that a socket's own name has; the card of a link-local one is left out."""
    return address(name.partition("%")[0])


def unpacked(raw: bytes) -> Address:
    """The address of 4 or 16 bytes, as they are in a packet. Raises ValueError."""
    return ipaddress.ip_address(raw)


def host_and_port(text: str) -> tuple[str, int]:
    """HOST:PORT, ADDRESS:PORT or [V6]:PORT; the port is 0-65535, the host not looked at further.

    A bare IPv6 address is taken before its last colon. Raises ValueError.
    """
    plain = text.strip()
    host, colon, port = plain.rpartition(":")
    if not colon or not host or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{text[:_SHOWN]!r} is not HOST:PORT")
    if "%" in host:
        _checked(host, "a host")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, int(port)


def written(host: str, port: int) -> str:
    """HOST:PORT, with the brackets that IPv6 wants (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
