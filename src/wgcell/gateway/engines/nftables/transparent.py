"""Transparent sockets: they receive what TPROXY redirects, and speak for any address (ip(7)).

Linux, Documentation/networking/tproxy.rst. Each function runs in the network namespace of the
socket.
"""

from __future__ import annotations

import contextlib
import socket

from wgcell.gateway.engines.nftables.table import REDIRECT_PORT
from wgcell.net import addresses

__all__ = [
    "CONTROL_SIZE",
    "Ends",
    "connected_socket",
    "families",
    "icmp_socket",
    "redirect_socket",
    "target_of",
]

# linux/in.h and linux/in6.h: IP_TRANSPARENT and IP_RECVORIGDSTADDR, and the same of IPv6. The
# latter's number is also that of its control message.
_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, 19, 20),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 75, 74),
}
_ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104
CONTROL_SIZE = socket.CMSG_SPACE(28)
"""Bytes of the control message that `target_of` reads."""

Ends = tuple[tuple[str, int], tuple[str, int]]
"""The source and the target of a datagram, each an address and a port."""


def families() -> list[socket.AddressFamily]:
    """The address families that this machine has: IPv6 may be off."""
    found = []
    for family in _OPTIONS:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM):
            found.append(family)
    return found


def redirect_socket(family: socket.AddressFamily, kind: int) -> socket.socket:
    """A socket that receives what is redirected, whatever its destination. Raises OSError.

    ``kind`` is SOCK_STREAM or SOCK_DGRAM; with the latter, datagrams carry their destination.
    """
    sock = _transparent(family, kind)
    level, _, receive_target = _OPTIONS[family]
    if kind == socket.SOCK_DGRAM:
        sock.setsockopt(level, receive_target, 1)
    sock.bind((_ANY[family], REDIRECT_PORT))
    return sock


def connected_socket(family: socket.AddressFamily, ends: Ends) -> socket.socket:
    """A UDP socket that bears the target's address and sends to the source. Raises OSError."""
    sock = _transparent(family, socket.SOCK_DGRAM)
    try:
        sock.bind(ends[1])
        sock.connect(ends[0])
    except OSError:
        sock.close()
        raise
    return sock


def icmp_socket(family: socket.AddressFamily) -> socket.socket:
    """A raw socket that only sends."""
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ICMP[family])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return sock


def target_of(control: list[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """The destination in a control message: a sockaddr_in or sockaddr_in6. None without one."""
    for level, kind, raw in control:
        for family, (at, _, number) in _OPTIONS.items():
            if (level, kind) == (at, number):
                begin, end = (4, 8) if family == socket.AF_INET else (8, 24)
                return str(addresses.unpacked(raw[begin:end])), int.from_bytes(raw[2:4], "big")
    return None


def _transparent(family: socket.AddressFamily, kind: int) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    level, transparent, _ = _OPTIONS[family]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_STREAM:  # beside a service with the same port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(level, transparent, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(level, socket.IPV6_V6ONLY, 1)
    return sock
