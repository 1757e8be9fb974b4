"""A frame against the one link there is: the UDP payload it carries, or the reason why not.

Every header byte is checked but the type of service, which an honest WireGuard sets by the packet
within, the identification and time to live, whose value no one can misuse, and UDP's checksum: the
payload is sent anew under a checksum of the host's, and its own tag tells the endpoint of a changed
bit. None of them is forwarded.
"""

from __future__ import annotations

from wgcell.relay import link
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import ethernet, ipv4, udp

__all__ = ["classify"]

_HEADERS = ethernet.HEADER_LENGTH + ipv4.HEADER_LENGTH + udp.HEADER_LENGTH
_LONGEST = ethernet.HEADER_LENGTH + ethernet.MAXIMUM_PAYLOAD


def classify(frame: bytes) -> bytes | Refusal:
    """The payload of a frame that the guest may send, or a refusal. Never raises."""
    if len(frame) < ethernet.HEADER_LENGTH or len(frame) > _LONGEST:
        return Refusal(Reason.LENGTH, f"{len(frame)} bytes")
    if frame[ethernet.DESTINATION] != link.GATEWAY_MAC:
        return Refusal(Reason.DESTINATION_MAC, f"to {frame[ethernet.DESTINATION].hex(':')}")
    if frame[ethernet.SOURCE] != link.GUEST_MAC:
        return Refusal(Reason.SOURCE_MAC, f"from {frame[ethernet.SOURCE].hex(':')}")
    if frame[ethernet.TYPE] != ethernet.ETHERTYPE_IPV4:
        return Refusal(Reason.ETHERTYPE, f"0x{frame[ethernet.TYPE].hex()}")
    if len(frame) < ethernet.HEADER_LENGTH + ipv4.HEADER_LENGTH:
        return Refusal(Reason.LENGTH, f"{len(frame)} bytes")
    packet = frame[ethernet.HEADER_LENGTH :]
    datagram = packet[ipv4.HEADER_LENGTH :]
    return _packet(packet) or _datagram(datagram) or datagram[udp.HEADER_LENGTH :]


def _dotted(address: bytes) -> str:
    return ".".join(map(str, address))


def _packet(packet: bytes) -> Refusal | None:
    if packet[ipv4.VERSION_IHL] != ipv4.VERSION_4_IHL_5:
        return Refusal(Reason.IP_VERSION, f"0x{packet[ipv4.VERSION_IHL]:02x}")
    if int.from_bytes(packet[ipv4.TOTAL_LENGTH], "big") != len(packet):
        return Refusal(Reason.IP_LENGTH, "the packet's length is not the frame's")
    if int.from_bytes(packet[ipv4.FLAGS_FRAGMENT], "big") & ~ipv4.DONT_FRAGMENT:
        return Refusal(Reason.FRAGMENT)
    if packet[ipv4.TIME_TO_LIVE] == 0:
        return Refusal(Reason.TIME_TO_LIVE)
    if packet[ipv4.DESTINATION] != link.GATEWAY_ADDRESS:
        return Refusal(Reason.DESTINATION_ADDRESS, f"to {_dotted(packet[ipv4.DESTINATION])}")
    if packet[ipv4.SOURCE] != link.GUEST_ADDRESS:
        return Refusal(Reason.SOURCE_ADDRESS, f"from {_dotted(packet[ipv4.SOURCE])}")
    if packet[ipv4.PROTOCOL] != ipv4.PROTOCOL_UDP:
        return Refusal(Reason.PROTOCOL, f"IP protocol {packet[ipv4.PROTOCOL]}")
    if ipv4.checksum(packet[: ipv4.HEADER_LENGTH]):
        return Refusal(Reason.IP_CHECKSUM)
    return None


def _datagram(datagram: bytes) -> Refusal | None:
    if len(datagram) < udp.HEADER_LENGTH:
        return Refusal(Reason.UDP_LENGTH, f"{len(datagram)} bytes")
    if datagram[udp.DESTINATION_PORT] != link.PORT_BYTES:
        port = int.from_bytes(datagram[udp.DESTINATION_PORT], "big")
        return Refusal(Reason.DESTINATION_PORT, f"to port {port}")
    if datagram[udp.SOURCE_PORT] != link.PORT_BYTES:
        port = int.from_bytes(datagram[udp.SOURCE_PORT], "big")
        return Refusal(Reason.SOURCE_PORT, f"from port {port}")
    if int.from_bytes(datagram[udp.LENGTH], "big") != len(datagram):
        return Refusal(Reason.UDP_LENGTH, "the datagram's length is not the packet's")
    return None
