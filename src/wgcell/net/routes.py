"""Whether this machine has a way to an address: what the kernel's routes say, no packet is sent."""

from __future__ import annotations

import socket

from wgcell.net.addresses import Address

__all__ = ["has_ipv6", "has_way"]

_ANY_PORT = 9


def has_way(address: Address) -> bool:
    """Whether a datagram to ``address`` would be routed, in the network of the calling thread."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), _ANY_PORT))
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    """Whether this machine's kernel has IPv6 at all, be there a way or not."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True
