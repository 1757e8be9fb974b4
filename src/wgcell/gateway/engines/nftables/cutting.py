"""Cuts the flows that the kernel forwards and another policy does not allow.

The kernel forwards an established flow without a look at the rules. So after a change the table of
the flows that it tracks is read, each flow of a peer is decided anew, and the kernel is told to
forget those that are refused. Their next packet is then a new flow's, which the rules refuse: a
datagram with an ICMP message, a TCP segment with a reset. Without the translation of addresses that
was forgotten too, an answer of the target's reaches no peer but this machine itself, whose kernel
resets it.

A peer that only receives would send nothing any more, and wait. So it gets a segment that no
connection expects: TCP answers that with an acknowledgement (RFC 9293, 3.10.7.4), and the
acknowledgement is what the rules reset. Cluster software ends connections of a dead node so, by
"tickle ACKs".
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from wgcell.errors import HostError
from wgcell.gateway.engines.nftables import netlink
from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.netlink import KernelFlow
from wgcell.net import linux
from wgcell.net.addresses import Address
from wgcell.wire import ipv4

__all__ = ["cut", "forwarded", "unexpected_segment"]

_TCP = 6
_ACK = 0x10
_HEADER_WORDS = 5
_WINDOW = 1024
_HOPS = 64
_SEQUENCE_NUMBERS = (0, 1 << 31)
"""One of these lies outside the window of any connection: a window has less than half of all."""


async def forwarded(host: HostContext, sources: frozenset[Address]) -> list[KernelFlow]:
    """The flows from ``sources`` that the kernel forwards now. Raises HostError."""
    try:
        found = await host.run_aside(netlink.tracked, sources)
    except OSError as error:
        raise HostError(f"open flows can't be listed: {error}") from error
    # A flow that was redirected is this process's own, whose admission ends it.
    return [one for one in found if one.answers_from == one.address]


async def cut(host: HostContext, flows: list[KernelFlow]) -> None:
    """Cut ``flows``, which the rules refuse. Raises HostError."""
    if not flows:
        return
    try:
        await host.run_aside(netlink.forget, flows)
        await host.run_aside(_tickle, host.interface, flows)
    except OSError as error:
        raise HostError(f"open flows can't be cut: {error}") from error


def _tickle(interface: str, flows: Iterable[KernelFlow]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        for flow in flows:
            if flow.protocol == "tcp":
                for sequence in _SEQUENCE_NUMBERS:
                    place = interface, linux.ETHERTYPES[flow.address.version]
                    with contextlib.suppress(OSError):  # a peer that is gone waits for nothing
                        sock.sendto(unexpected_segment(flow, sequence), place)


def unexpected_segment(flow: KernelFlow, sequence: int) -> bytes:
    """A packet from the target of ``flow`` to the peer: an acknowledgement without data."""
    source, destination = flow.address.packed, flow.source.packed
    segment = struct.pack(
        ">HHIIBBHHH",
        *(flow.port, flow.source_port, sequence, 0),
        *(_HEADER_WORDS << 4, _ACK, _WINDOW, 0, 0),
    )
    pseudo = source + destination + struct.pack(">II", len(segment), _TCP)
    segment = segment[:16] + struct.pack(">H", ipv4.checksum(pseudo + segment)) + segment[18:]
    if flow.address.version == 6:
        head = struct.pack(">IHBB", 6 << 28, len(segment), _TCP, _HOPS)
        return head + source + destination + segment
    return ipv4.header(source, destination, len(segment), _HOPS, _TCP) + segment
