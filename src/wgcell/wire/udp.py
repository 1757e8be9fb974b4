"""UDP headers over IPv4 (RFC 768)."""

from __future__ import annotations

import struct

from wgcell.wire.ipv4 import PROTOCOL_UDP
from wgcell.wire.ipv4 import checksum as internet_checksum

__all__ = ["HEADER_LENGTH", "checksum", "datagram"]

HEADER_LENGTH = 8
SOURCE_PORT = slice(0, 2)
DESTINATION_PORT = slice(2, 4)
LENGTH = slice(4, 6)
CHECKSUM = slice(6, 8)


def checksum(source: bytes, destination: bytes, datagram: bytes) -> int:
    """The checksum over pseudo-header and datagram; 0 if the one within is right."""
    pseudo = source + destination + struct.pack(">BBH", 0, PROTOCOL_UDP, len(datagram))
    return internet_checksum(pseudo + datagram)


def datagram(
    source: bytes, destination: bytes, source_port: int, destination_port: int, payload: bytes
) -> bytes:
    """Header and payload, with the checksum filled in (never 0, which would mean none)."""
    length = HEADER_LENGTH + len(payload)
    bare = struct.pack(">HHHH", source_port, destination_port, length, 0) + payload
    found = checksum(source, destination, bare) or 0xFFFF
    return bare[:6] + struct.pack(">H", found) + payload
