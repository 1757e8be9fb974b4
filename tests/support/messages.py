"""WireGuard's messages as a relay sees them, and the guest's frames around them.

Nothing in them is sealed: a relay knows two public keys, and with these the first MAC alone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from wgcell.relay import link
from wgcell.wire import wireguard

GUEST, ENDPOINT = bytes([1]) * 32, bytes([2]) * 32
"""Public keys."""
UNSEALED = bytes(16)
"""A second MAC that is none."""
MAC = {"src": link.GUEST_MAC_TEXT, "dst": link.GATEWAY_MAC_TEXT}
ADDRESSES = {"src": "192.168.64.2", "dst": "192.168.64.1"}
PORTS = {"sport": 51820, "dport": 51820}
PAYLOAD = b"\x04\0\0\0" + bytes(60)


def handshake(head: bytes, size: int, to: bytes, mac2: bytes = UNSEALED) -> bytes:
    """``head``, zeros up to ``size`` bytes, and the MACs for whoever has the key ``to``."""
    covered = head + bytes(size - 32 - len(head))
    return covered + wireguard.mac1(to, covered) + mac2


def initiation(sender: int = 7, to: bytes = ENDPOINT, mac2: bytes = UNSEALED) -> bytes:
    return handshake(struct.pack("<BxxxI", 1, sender), 148, to, mac2)


def response(sender: int, receiver: int, to: bytes = GUEST) -> bytes:
    return handshake(struct.pack("<BxxxII", 2, sender, receiver), 92, to)


def cookie_reply(receiver: int) -> bytes:
    return struct.pack("<BxxxI", 3, receiver) + bytes(56)


def transport(receiver: int, counter: int = 0, size: int = 32) -> bytes:
    """``size`` bytes; each counter has other contents."""
    body = struct.pack("<Q", counter * 0x9E3779B97F4A7C15 % (1 << 64)) * (size // 8 + 1)
    return struct.pack("<BxxxIQ", 4, receiver, counter) + body[: size - 16]


def frame(
    payload: bytes = PAYLOAD,
    *,
    eth: Mapping[str, object] | None = None,
    ip: Mapping[str, object] | None = None,
    udp: Mapping[str, object] | None = None,
) -> bytes:
    """An honest frame of the guest's around ``payload``, but for the fields that are given."""
    return bytes(
        Ether(**{**MAC, **(eth or {})})
        / IP(**{**ADDRESSES, "flags": "DF", **(ip or {})})
        / UDP(**{**PORTS, **(udp or {})})
        / Raw(payload)
    )
