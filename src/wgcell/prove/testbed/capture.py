"""The oracle: captures of every packet on the wire, which know nothing of the relay.

An AF_PACKET socket that is bound to no interface sees every frame of every interface of the
network namespace in which it was made, loopback included, both ways. The testbed has one in the
host's namespace and one among the decoys. The kernel counts the frames that a capture has missed,
because a capture with holes proves nothing.

The parsers here share no line with the relay's, so they share no mistake with it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from wgcell.net import linux

__all__ = [
    "Capture",
    "Packet",
    "carries",
    "is_port_unreachable",
    "link_payload",
    "shown",
    "tunnel_payload",
]

BUFFER = 64 << 20
_LONGEST = 1 << 17
_LINK_MACS = bytes.fromhex("027767000001027767000002")
_LINK_ADDRESSES = bytes((192, 168, 64, 2, 192, 168, 64, 1))
_LINK_PORT = 51820


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured frame. ``out``: it was leaving the host.

    ``tunnel`` is its UDP payload if it was sent to the endpoint's address and port, else None.
    """

    place: str
    out: bool
    data: bytes
    tunnel: bytes | None

    def shown(self) -> str:
        """One line for a report."""
        if self.tunnel is not None:
            return (
                f"{self.place}: to the endpoint, {len(self.tunnel)} bytes: {self.tunnel[:32].hex()}"
            )
        return f"{self.place}: {len(self.data)} bytes: {self.data[:48].hex()}"


def tunnel_payload(frame: bytes, endpoints: frozenset[bytes], port: int) -> bytes | None:
    """The UDP payload of a frame to one of ``endpoints`` (4 bytes each) and ``port``, else None."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[14] >> 4 != 4:
        return None
    start = 14 + (frame[14] & 15) * 4
    fragmented = struct.unpack(">H", frame[20:22])[0] & 0x3FFF
    if frame[23] != 17 or fragmented or frame[30:34] not in endpoints or len(frame) < start + 8:
        return None
    total = struct.unpack(">H", frame[16:18])[0]
    _, destination, length = struct.unpack(">HHH", frame[start : start + 6])
    if destination != port or total != start - 14 + length:
        return None
    return frame[start + 8 : 14 + total]


def link_payload(frame: bytes) -> bytes | None:
    """The payload of a guest's frame that a relay may let pass; None for any other frame.

    IPv4 (RFC 791) without options or fragments, with a right checksum (RFC 1071); UDP (RFC 768)
    whose length is the rest of the packet; the link's own addresses and ports.
    """
    head = frame[:42]
    if len(head) < 42 or head[:12] != _LINK_MACS or head[12:15] != b"\x08\x00\x45":
        return None
    total, _, fragment = struct.unpack(">HHH", head[16:22])
    words = sum(struct.unpack(">10H", head[14:34]))
    right = (
        total == len(frame) - 14 <= 1500
        and fragment & 0xBFFF == 0
        and head[22] > 0
        and head[23] == 17
        and (words & 0xFFFF) + (words >> 16) == 0xFFFF
        and head[26:34] == _LINK_ADDRESSES
        and struct.unpack(">HHH", head[34:40]) == (_LINK_PORT, _LINK_PORT, total - 20)
    )
    return frame[42:] if right else None


def is_port_unreachable(frame: bytes, host: bytes) -> bool:
    """Whether a frame is the answer of ``host``'s kernel to a datagram for a closed port.

    The host sends such an answer by itself to a packet from outside. It contains only the
    beginning of that packet.
    """
    return (
        len(frame) >= 14 + 20 + 8 + 20
        and frame[12:15] == b"\x08\x00\x45"
        and frame[23] == 1
        and frame[26:30] == host
        and frame[34:36] == b"\x03\x03"
        and frame[54:58] != host
        and frame[58:62] == host
    )


def shown(packets: Iterable[Packet]) -> list[str]:
    """A line for each packet; a packet in both captures has one line."""
    return list({packet.data: packet.shown() for packet in reversed(list(packets))}.values())[::-1]


def carries(packets: Iterable[Packet], mark: bytes) -> bool:
    """Whether one of ``packets`` holds ``mark``."""
    return any(mark in packet.data for packet in packets)


class Capture:
    """Captures every frame of the network namespace in which it is made."""

    def __init__(self, place: str, outward: bool, endpoints: frozenset[bytes], port: int) -> None:
        """``outward``: frames that this namespace sends leave the host (else: that it receives)."""
        self._place, self._outward = place, outward
        self._endpoints, self._port = endpoints, port
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(linux.ETH_P_ALL)
        )
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, linux.SO_RCVBUFFORCE, BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)

    def collect(self) -> list[Packet]:
        """All frames since the last call."""
        found: list[Packet] = []
        while True:
            try:
                data, (interface, _, kind, *_) = self._socket.recvfrom(_LONGEST)
            except BlockingIOError:
                return found
            # Loopback shows both directions of a frame; one of them is enough.
            out = (kind == socket.PACKET_OUTGOING) is self._outward
            payload = tunnel_payload(data, self._endpoints, self._port)
            found.append(Packet(f"{self._place} {interface}", out, data, payload))

    def lost(self) -> int:
        """How many frames since the last call were missed."""
        raw = self._socket.getsockopt(linux.SOL_PACKET, linux.PACKET_STATISTICS, 8)
        return int(struct.unpack("II", raw)[1])

    def close(self) -> None:
        """Stop capturing."""
        self._socket.close()
