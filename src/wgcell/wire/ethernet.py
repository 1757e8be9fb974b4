"""Ethernet II headers (IEEE 802.3, clause 3)."""

from __future__ import annotations

__all__ = ["ETHERTYPE_IPV4", "HEADER_LENGTH", "MAXIMUM_PAYLOAD", "header", "mac"]

HEADER_LENGTH = 14
DESTINATION = slice(0, 6)
SOURCE = slice(6, 12)
TYPE = slice(12, 14)
ETHERTYPE_IPV4 = b"\x08\x00"
MAXIMUM_PAYLOAD = 1500
"""Bytes behind the header, without the frame check sequence."""


def mac(text: str) -> bytes:
    """``"02:77:67:00:00:01"`` -> 6 bytes. Raises ValueError."""
    raw = bytes.fromhex(text.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{text!r} is no MAC address")
    return raw


def header(destination: bytes, source: bytes) -> bytes:
    """The header of a frame that carries IPv4."""
    return destination + source + ETHERTYPE_IPV4
