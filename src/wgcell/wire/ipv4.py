"""IPv4 headers without options (RFC 791) and the Internet checksum (RFC 1071)."""

from __future__ import annotations

import struct

__all__ = ["DONT_FRAGMENT", "HEADER_LENGTH", "PROTOCOL_UDP", "checksum", "header"]

HEADER_LENGTH = 20
VERSION_IHL = 0
TYPE_OF_SERVICE = 1
TOTAL_LENGTH = slice(2, 4)
IDENTIFICATION = slice(4, 6)
FLAGS_FRAGMENT = slice(6, 8)
TIME_TO_LIVE = 8
PROTOCOL = 9
CHECKSUM = slice(10, 12)
SOURCE = slice(12, 16)
DESTINATION = slice(16, 20)

VERSION_4_IHL_5 = 0x45
DONT_FRAGMENT = 0x4000
PROTOCOL_UDP = 17


def checksum(data: bytes) -> int:
    """The Internet checksum of ``data``; 0 over data that holds its own right checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def header(
    source: bytes,
    destination: bytes,
    payload_length: int,
    ttl: int = 64,
    protocol: int = PROTOCOL_UDP,
) -> bytes:
    """A packet's header: DF set, identification 0 (RFC 6864: atomic datagrams need none)."""
    head = struct.pack(
        ">BBHHHBBH4s4s",
        VERSION_4_IHL_5,
        0,
        HEADER_LENGTH + payload_length,
        0,
        DONT_FRAGMENT,
        ttl,
        protocol,
        0,
        source,
        destination,
    )
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:]
