"""The ICMP messages for a refused or undeliverable datagram (RFC 792, RFC 4443). Pure.

The kernel itself rejects most refused datagrams. These messages are for a flow that is refused, or
fails, after the kernel has handed it over. A message quotes the headers of the datagram, by which
the sender's kernel finds the socket.
"""

from __future__ import annotations

import struct
from enum import Enum

from wgcell.net import addresses
from wgcell.wire import ipv4, udp

__all__ = ["Why", "unreachable"]

_HOPS = 64


class Why(Enum):
    """Type and code, of ICMP and of ICMPv6."""

    PROHIBITED = ((3, 13), (1, 1))
    PORT = ((3, 3), (1, 4))


def unreachable(source: tuple[str, int], target: tuple[str, int], why: Why) -> bytes:
    """The message to ``source`` about an empty datagram that it sent to ``target``.

    It has no IP header, and for ICMPv6 no checksum: the kernel fills both in for a raw socket.
    """
    begin, end = addresses.of_socket(source[0]), addresses.of_socket(target[0])
    datagram = struct.pack(">HHHH", source[1], target[1], udp.HEADER_LENGTH, 0)
    if begin.version == 6:
        kind, code = why.value[1]
        flow = 6 << 28
        about = struct.pack(">IHBB", flow, len(datagram), ipv4.PROTOCOL_UDP, _HOPS)
        return bytes([kind, code]) + bytes(6) + about + begin.packed + end.packed + datagram
    kind, code = why.value[0]
    about = ipv4.header(begin.packed, end.packed, len(datagram), _HOPS) + datagram
    message = bytes([kind, code]) + bytes(6) + about
    return message[:2] + struct.pack(">H", ipv4.checksum(message)) + message[4:]
