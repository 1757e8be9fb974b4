"""The one link a cell has: two addresses, two ports, and nothing else exists.

The guest is told that its endpoint is 192.168.64.1:51820; it never learns the real one.
"""

from __future__ import annotations

import socket
import struct

from wgcell.wire import ethernet, ipv4, udp

__all__ = ["GATEWAY_MAC_TEXT", "GUEST_MAC_TEXT", "PORT", "wrap"]

GUEST_MAC_TEXT = "02:77:67:00:00:02"
GATEWAY_MAC_TEXT = "02:77:67:00:00:01"
GUEST_MAC = ethernet.mac(GUEST_MAC_TEXT)
GATEWAY_MAC = ethernet.mac(GATEWAY_MAC_TEXT)
GUEST_ADDRESS = socket.inet_aton("192.168.64.2")
GATEWAY_ADDRESS = socket.inet_aton("192.168.64.1")
PORT = 51820
PORT_BYTES = struct.pack(">H", PORT)

_TO_GUEST = ethernet.header(GUEST_MAC, GATEWAY_MAC)


def wrap(payload: bytes) -> bytes:
    """A frame for the guest, from the gateway's address and port, around ``payload``."""
    carried = udp.datagram(GATEWAY_ADDRESS, GUEST_ADDRESS, PORT, PORT, payload)
    return _TO_GUEST + ipv4.header(GATEWAY_ADDRESS, GUEST_ADDRESS, len(carried)) + carried
