"""A frame, compared with the one link there is: the UDP payload that it carries, or the reason why
not.

Every header byte is checked but the type of service, which an honest WireGuard copies from the
packet within; the identification and time to live, whose values nobody can misuse; and UDP's
checksum: the payload is sent anew under a checksum of the host's, and its own tag shows a changed
bit to the endpoint. None of them is forwarded.

The link's fields stand in one table; all of them together are one number under one mask. Only if
that number is wrong is each field looked at.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from wgcell.relay import link
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import ethernet, ipv4, udp

__all__ = ["classify"]

Bytes = TypeVar("Bytes", bytes, memoryview)

_LONGEST = ethernet.HEADER_LENGTH + ethernet.MAXIMUM_PAYLOAD


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


_MASK = sum(_number(field.mask) << 8 * field.offset for field in link.FIELDS)
_VALUE = sum(_number(field.value) << 8 * field.offset for field in link.FIELDS)

_IP_BITS = 8 * link.IP
_IP_MASK = (1 << 8 * ipv4.HEADER_LENGTH) - 1
_TTL = link.IP + ipv4.TIME_TO_LIVE
_LENGTHS = struct.Struct(
    f">{link.IP + ipv4.TOTAL_LENGTH.start}xH"
    f"{link.UDP + udp.LENGTH.start - link.IP - ipv4.TOTAL_LENGTH.stop}xH"
)


def classify(frame: Bytes) -> Bytes | Refusal:
    """The payload of a frame that the guest may send, or a refusal. Never raises."""
    size = len(frame)
    if size < link.HEADERS or size > _LONGEST:
        return _explained(bytes(frame))
    headers = int.from_bytes(frame[: link.HEADERS], "little")
    if headers & _MASK != _VALUE:
        return _explained(bytes(frame))
    packet, datagram = _LENGTHS.unpack_from(frame)
    if packet != size - link.IP:
        return Refusal(Reason.IP_LENGTH, "the packet's length is not the frame's")
    if frame[_TTL] == 0:
        return Refusal(Reason.TIME_TO_LIVE)
    # The Internet checksum is a sum modulo 65535, of words in either byte order (RFC 1071).
    if (headers >> _IP_BITS & _IP_MASK) % 0xFFFF:
        return Refusal(Reason.IP_CHECKSUM)
    if datagram != size - link.UDP:
        return Refusal(Reason.UDP_LENGTH, "the datagram's length is not the packet's")
    return frame[link.HEADERS :]


def _explained(frame: bytes) -> Refusal:
    """The first field that is wrong, or cut off."""
    if len(frame) <= _LONGEST:
        for field in link.FIELDS:
            found = frame[field.at]
            if len(found) < len(field.value):
                break
            if _number(found) & _number(field.mask) != _number(field.value):
                return Refusal(field.reason, field.shown(found))
    return Refusal(Reason.LENGTH, f"{len(frame)} bytes")
