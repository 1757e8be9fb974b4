"""How a row of a table makes its frames: one change to a frame that would pass."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from wgcell.prove.battery import packets
from wgcell.prove.battery.case import Attacker, Case, Injection, Probe
from wgcell.prove.verdict import Phase, Verdict
from wgcell.relay import link

__all__ = [
    "DROP",
    "KILL",
    "PASS",
    "Build",
    "Row",
    "ethernet_with",
    "ethertype",
    "group",
    "ip",
    "ip6",
    "ipv4_with",
    "ipv6",
    "mac",
    "message",
    "ping",
    "protocol",
    "single",
    "tunnel",
    "udp_to",
    "udp_with",
]

KILL, DROP, PASS = Verdict.KILL, Verdict.DROP, Verdict.PASS

Build = Callable[[Attacker], Probe]
Row = tuple[str, str, Verdict, Build]
"""A case's name, what it does, the verdict that is due, and its probe."""

_GUEST_LINK_LOCAL = "fe80::77:67ff:fe00:2"


def group(
    name: str,
    *rows: Row,
    injection: Injection = Injection.FRAMES,
    wall: str = "relay",
    phases: tuple[Phase, ...] = (Phase.RUNNING,),
) -> tuple[Case, ...]:
    """The cases of ``rows``."""
    return tuple(
        Case(case, name, does, verdict, probe, injection, wall, phases)
        for case, does, verdict, probe in rows
    )


# Addresses, from text.


def ip(text: str) -> bytes:
    """An IPv4 address."""
    return socket.inet_aton(text)


def ip6(text: str) -> bytes:
    """An IPv6 address."""
    return socket.inet_pton(socket.AF_INET6, text)


def mac(text: str) -> bytes:
    """A MAC address."""
    return bytes.fromhex(text.replace(":", ""))


# Probes of one frame.


def single(build: Callable[[Attacker], bytes]) -> Build:
    """The one frame that ``build`` makes."""
    return lambda attacker: Probe((build(attacker),))


def tunnel(payload: bytes) -> bytes:
    """The one kind of frame that may leave, around ``payload``."""
    return packets.ethernet(packets.ipv4(packets.udp(payload)))


def message(build: Callable[[Attacker], bytes]) -> Build:
    """A right frame around the message that ``build`` makes."""
    return single(lambda attacker: tunnel(build(attacker)))


def ethernet_with(**changes: object) -> Build:
    """A frame that would pass, with ``changes`` to its Ethernet header."""
    return single(
        lambda attacker: packets.ethernet(
            packets.ipv4(packets.udp(attacker.payload())),
            **changes,  # type: ignore[arg-type]
        )
    )


def ipv4_with(udp: dict[str, object] | None = None, **changes: object) -> Build:
    """A frame that would pass, with ``changes`` to its IPv4 header and ``udp`` to its UDP header.

    The UDP checksum covers the link's own addresses: a relay that does not check an address would
    find the checksum right.
    """

    def build(attacker: Attacker) -> bytes:
        datagram = packets.udp(attacker.payload(), **(udp or {}))  # type: ignore[arg-type]
        return packets.ethernet(packets.ipv4(datagram, **changes))  # type: ignore[arg-type]

    return single(build)


def udp_with(**changes: object) -> Build:
    """A frame that would pass, with ``changes`` to its UDP header."""
    return ipv4_with(udp=changes)


# Probes that carry something else. Eight random bytes let a capture recognise each.


def ethertype(kind: int, payload: bytes, destination: bytes = link.GATEWAY_MAC) -> Build:
    """A frame of another ethertype than IPv4."""
    return single(
        lambda attacker: packets.ethernet(
            payload + os.urandom(8), kind=kind, destination=destination
        )
    )


def protocol(number: int, payload: bytes, **changes: object) -> Build:
    """An IPv4 packet of another protocol than UDP."""
    return single(
        lambda attacker: packets.ethernet(
            packets.ipv4(payload + os.urandom(8), protocol=number, **changes)  # type: ignore[arg-type]
        )
    )


def udp_to(host: str, port: int, payload: bytes = b"", source_port: int = 40000) -> Build:
    """An ordinary UDP datagram to a host outside the tunnel."""
    to = ip(host)

    def build(attacker: Attacker) -> bytes:
        body = (payload or attacker.payload()) + os.urandom(8)
        datagram = packets.udp(body, destination=to, source_port=source_port, destination_port=port)
        return packets.ethernet(packets.ipv4(datagram, destination=to))

    return single(build)


def ping(host: str) -> Build:
    """An ICMP echo request to ``host``."""
    to = ip(host)
    return single(
        lambda attacker: packets.ethernet(
            packets.ipv4(
                packets.icmp(8, 0, b"\0\1\0\1" + os.urandom(24)), protocol=1, destination=to
            )
        )
    )


def ipv6(
    next_header: int, body: bytes, destination: str, mac_address: str = "33:33:00:00:00:01"
) -> Build:
    """An IPv6 packet from the guest's link-local address."""
    source, to = ip6(_GUEST_LINK_LOCAL), ip6(destination)
    return single(
        lambda attacker: packets.ethernet(
            packets.ipv6(
                body + os.urandom(8), next_header=next_header, source=source, destination=to
            ),
            kind=0x86DD,
            destination=mac(mac_address),
        )
    )
