"""Frames as an attacker builds them: every field has an honest value until a case changes it.

All other fields stay right, checksums included. So a frame has only the defect of its case: a relay
without that check lets the frame pass, and the captures show it.
"""

from __future__ import annotations

import struct

from wgcell.relay import link
from wgcell.wire import ipv4 as ip_wire
from wgcell.wire import udp as udp_wire
from wgcell.wire import wireguard

__all__ = [
    "BROADCAST",
    "arp",
    "cookie_reply",
    "ethernet",
    "icmp",
    "initiation",
    "ipv4",
    "ipv6",
    "mark_of",
    "response",
    "tcp_syn",
    "transport",
    "udp",
]

BROADCAST = b"\xff" * 6
DONT_FRAGMENT = 0x4000


def ethernet(
    payload: bytes,
    *,
    destination: bytes = link.GATEWAY_MAC,
    source: bytes = link.GUEST_MAC,
    kind: int = 0x0800,
    tags: bytes = b"",
) -> bytes:
    """A frame, with VLAN ``tags`` between its addresses and its type."""
    return destination + source + tags + struct.pack(">H", kind) + payload


def ipv4(
    payload: bytes,
    *,
    protocol: int = 17,
    source: bytes = link.GUEST_ADDRESS,
    destination: bytes = link.GATEWAY_ADDRESS,
    version_ihl: int | None = None,
    length: int | None = None,
    fragment: int = DONT_FRAGMENT,
    ttl: int = 64,
    checksum: int | None = None,
    options: bytes = b"",
) -> bytes:
    """A packet. ``fragment`` is the 16 bits of the flags and the fragment's offset."""
    size = ip_wire.HEADER_LENGTH + len(options)
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 + size // 4 if version_ihl is None else version_ihl,
        0,
        size + len(payload) if length is None else length,
        0,
        fragment,
        ttl,
        protocol,
        0,
        source,
        destination,
    )
    right = ip_wire.checksum(head + options)
    filled = struct.pack(">H", right if checksum is None else checksum)
    return head[:10] + filled + head[12:] + options + payload


def udp(
    payload: bytes,
    *,
    source: bytes = link.GUEST_ADDRESS,
    destination: bytes = link.GATEWAY_ADDRESS,
    source_port: int = link.PORT,
    destination_port: int = link.PORT,
    length: int | None = None,
    checksum: int | None = None,
) -> bytes:
    """A datagram for `ipv4`; its checksum covers the addresses."""
    size = udp_wire.HEADER_LENGTH + len(payload) if length is None else length
    bare = struct.pack(">HHHH", source_port, destination_port, size, 0) + payload
    if checksum is None:
        checksum = udp_wire.checksum(source, destination, bare) or 0xFFFF
    return bare[:6] + struct.pack(">H", checksum) + payload


def icmp(kind: int, code: int, body: bytes) -> bytes:
    """An ICMP message (RFC 792) with its checksum."""
    bare = struct.pack(">BBH", kind, code, 0) + body
    return bare[:2] + struct.pack(">H", ip_wire.checksum(bare)) + body


def tcp_syn(port: int, *, source_port: int = 40000, flags: int = 0x02) -> bytes:
    """A TCP header without payload. Its checksum is 0: a relay refuses the packet before that."""
    return struct.pack(">HHIIBBHHH", source_port, port, 1, 0, 0x50, flags, 64240, 0, 0)


def arp(
    operation: int,
    *,
    sender: bytes = link.GUEST_ADDRESS,
    target: bytes = link.GATEWAY_ADDRESS,
    sender_mac: bytes = link.GUEST_MAC,
    target_mac: bytes = bytes(6),
) -> bytes:
    """An ARP packet (RFC 826) for Ethernet and IPv4."""
    head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
    return head + sender_mac + sender + target_mac + target


def ipv6(payload: bytes, *, next_header: int, source: bytes, destination: bytes) -> bytes:
    """An IPv6 packet (RFC 8200)."""
    return struct.pack(">IHBB", 6 << 28, len(payload), next_header, 255) + (
        source + destination + payload
    )


def _handshake(head: bytes, size: int, key: bytes, body: bytes, mac2: bytes) -> bytes:
    covered = (head + body)[: size - 32].ljust(size - 32, b"\0")
    return covered + wireguard.mac1(key, covered) + mac2


def initiation(
    sender: int, key: bytes, body: bytes, *, mac2: bytes = bytes(16), size: int = 148
) -> bytes:
    """A message in the form of an initiation: a right mac1 under ``key``, and junk in it."""
    return _handshake(struct.pack("<II", 1, sender), size, key, body, mac2)


def response(
    sender: int, receiver: int, key: bytes, body: bytes, *, mac2: bytes = bytes(16), size: int = 92
) -> bytes:
    """A message in the form of a response, with a right mac1 under ``key``."""
    return _handshake(struct.pack("<III", 2, sender, receiver), size, key, body, mac2)


def cookie_reply(receiver: int, body: bytes, *, size: int = 64) -> bytes:
    """A message in the form of a cookie reply."""
    return (struct.pack("<II", 3, receiver) + body)[:size].ljust(size, b"\0")


def transport(receiver: int, counter: int, body: bytes, *, size: int = 64) -> bytes:
    """A message in the form of transport; ``size`` is its whole length, in bytes."""
    return (struct.pack("<IIQ", 4, receiver, counter) + body)[:size].ljust(size, b"\0")


_SHORTEST_MARK, _LONGEST_MARK = 16, 48


def mark_of(frame: bytes) -> bytes:
    """The part of a frame by which a capture recognises it: the end of its payload.

    The headers can't serve: the kernel may take tags off before a capture sees the frame, and a
    relay lets only the payload out. A frame with next to no payload has a longer mark.
    """
    payload = len(frame) - link.HEADERS
    if payload >= _SHORTEST_MARK:
        return frame[-min(payload, _LONGEST_MARK) :]
    return frame[22:] or frame
