"""The one link that a cell has: two addresses, two ports, and nothing else exists.

The guest's endpoint is 192.168.64.1:51820; the guest never learns the real one.

``FIELDS`` is the whole link as bytes: the value of each field in every frame that the guest may
send, and the reason for refusing a frame with another value. Bytes that no field covers are either
a length, which must be the frame's own, or free: see `wgcell.relay.classify`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from wgcell.relay.verdict import Reason
from wgcell.wire import ethernet, ipv4, udp
from wgcell.wire import link as addresses

__all__ = ["FIELDS", "GATEWAY_MAC_TEXT", "GUEST_MAC_TEXT", "HEADERS", "PORT", "Field", "wrap"]

GUEST_MAC_TEXT = addresses.GUEST_MAC
GATEWAY_MAC_TEXT = addresses.GATEWAY_MAC
GUEST_MAC = ethernet.mac(GUEST_MAC_TEXT)
GATEWAY_MAC = ethernet.mac(GATEWAY_MAC_TEXT)
GUEST_ADDRESS = socket.inet_aton(addresses.GUEST)
GATEWAY_ADDRESS = socket.inet_aton(addresses.GATEWAY)
PORT = addresses.PORT
PORT_BYTES = struct.pack(">H", PORT)

IP = ethernet.HEADER_LENGTH
UDP = IP + ipv4.HEADER_LENGTH
HEADERS = UDP + udp.HEADER_LENGTH
"""Bytes of a frame before its UDP payload."""


@dataclass(frozen=True, slots=True)
class Field:
    """Constant bytes at an offset of the frame; only the bits of ``mask`` count."""

    reason: Reason
    offset: int
    value: bytes
    mask: bytes
    shown: Callable[[bytes], str]
    """The value that was found there, for a person."""

    @property
    def at(self) -> slice:
        """Its place in the frame."""
        return slice(self.offset, self.offset + len(self.value))


def _hexadecimal(found: bytes) -> str:
    return f"0x{found.hex()}"


_SHOWN: Mapping[Reason, Callable[[bytes], str]] = MappingProxyType(
    {
        Reason.DESTINATION_MAC: lambda found: f"to {found.hex(':')}",
        Reason.SOURCE_MAC: lambda found: f"from {found.hex(':')}",
        Reason.DESTINATION_ADDRESS: lambda found: f"to {socket.inet_ntoa(found)}",
        Reason.SOURCE_ADDRESS: lambda found: f"from {socket.inet_ntoa(found)}",
        Reason.PROTOCOL: lambda found: f"IP protocol {found[0]}",
        Reason.DESTINATION_PORT: lambda found: f"to port {int.from_bytes(found, 'big')}",
        Reason.SOURCE_PORT: lambda found: f"from port {int.from_bytes(found, 'big')}",
    }
)


def _field(reason: Reason, header: int, place: slice, value: bytes, mask: bytes = b"") -> Field:
    mask = mask or b"\xff" * len(value)
    return Field(reason, header + place.start, value, mask, _SHOWN.get(reason, _hexadecimal))


def _byte(offset: int) -> slice:
    return slice(offset, offset + 1)


_VERSION = bytes([ipv4.VERSION_4_IHL_5])
_ALL_BUT_DF = (0xFFFF & ~ipv4.DONT_FRAGMENT).to_bytes(2, "big")

FIELDS = (
    _field(Reason.DESTINATION_MAC, 0, ethernet.DESTINATION, GATEWAY_MAC),
    _field(Reason.SOURCE_MAC, 0, ethernet.SOURCE, GUEST_MAC),
    _field(Reason.ETHERTYPE, 0, ethernet.TYPE, ethernet.ETHERTYPE_IPV4),
    _field(Reason.IP_VERSION, IP, _byte(ipv4.VERSION_IHL), _VERSION),
    _field(Reason.FRAGMENT, IP, ipv4.FLAGS_FRAGMENT, bytes(2), _ALL_BUT_DF),
    _field(Reason.DESTINATION_ADDRESS, IP, ipv4.DESTINATION, GATEWAY_ADDRESS),
    _field(Reason.SOURCE_ADDRESS, IP, ipv4.SOURCE, GUEST_ADDRESS),
    _field(Reason.PROTOCOL, IP, _byte(ipv4.PROTOCOL), bytes([ipv4.PROTOCOL_UDP])),
    _field(Reason.DESTINATION_PORT, UDP, udp.DESTINATION_PORT, PORT_BYTES),
    _field(Reason.SOURCE_PORT, UDP, udp.SOURCE_PORT, PORT_BYTES),
)

_TO_GUEST = ethernet.header(GUEST_MAC, GATEWAY_MAC)


@lru_cache(maxsize=2048)
def headers(size: int) -> bytes:
    """Ethernet, IPv4 and UDP headers for the guest, before a payload of ``size`` bytes.

    UDP's checksum is zero, which means none (RFC 768): the payload has a tag of its own.
    """
    length = udp.HEADER_LENGTH + size
    ip = ipv4.header(GATEWAY_ADDRESS, GUEST_ADDRESS, length)
    return _TO_GUEST + ip + PORT_BYTES + PORT_BYTES + struct.pack(">HH", length, 0)


def wrap(payload: bytes) -> bytes:
    """A frame for the guest, from the gateway's address and port, with that ``payload``."""
    return headers(len(payload)) + payload
