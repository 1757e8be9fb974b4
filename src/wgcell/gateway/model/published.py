"""Ports of a peer that the gateway publishes on its own side. Pure.

A published port is written ``[ADDRESS:]PORT:PORT``: where the gateway listens, 127.0.0.1 unless an
address is given, and the port of the peer's to which each connection is joined. A first port of 0
is any that is free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wgcell.errors import PolicyError
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["Published", "parse_published"]

_SHAPE = "[ADDRESS:]PORT:PORT, the host's first, as 8080:80, 127.0.0.1:8080:80 or [::1]:8080:80"
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_LOOPBACK = "127.0.0.1"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Published:
    """One published port."""

    address: Address
    """Where the gateway listens."""
    port: int
    """0 is any that is free."""
    inside: int
    """The peer's port."""

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{addresses.written(str(self.address), self.port)}:{self.inside}"

    @property
    def place(self) -> tuple[str, int]:
        """Where the gateway listens, as a socket takes it."""
        return str(self.address), self.port


def parse_published(text: str) -> Published:
    """The port that ``text`` publishes. Raises `PolicyError`."""
    shown = f"found {text[:_SHOWN]!r}"
    if text.endswith(("/udp", "/tcp")):
        raise PolicyError(f"{shown}: a published port is TCP's", hint="leave out what is behind /")
    place, _, inside = text.strip().rpartition(":")
    host, _, port = place.rpartition(":") if ":" in place else (_LOOPBACK, "", place)
    if not (_PORT.fullmatch(port) and _PORT.fullmatch(inside)):
        raise PolicyError(f"{shown}; allowed: {_SHAPE}")
    if int(port) > 65535 or not 1 <= int(inside) <= 65535:
        raise PolicyError(f"{shown}: a port is 1-65535, and 0 for any free one of the host")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = addresses.address(host[1:-1] if bracketed else host)
    except ValueError as error:
        raise PolicyError(f"{shown}: {error}; allowed: {_SHAPE}") from None
    if bracketed is not (address.version == 6):
        raise PolicyError(f"{shown}: write IPv6, and nothing else, in brackets: [::1]:8080:80")
    return Published(address, int(port), int(inside))
