"""Whether this machine has a route to an address. The kernel is asked; no packet is sent."""

from __future__ import annotations

import socket

from wgcell.net.addresses import Address

__all__ = ["has_ipv6", "has_route"]

_ANY_PORT = 9


def has_route(address: Address) -> bool:
    """Whether the kernel has a route to ``address``, in the calling thread's network namespace."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), _ANY_PORT))
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    """Whether this machine's kernel has IPv6 at all, with a route or without."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True
