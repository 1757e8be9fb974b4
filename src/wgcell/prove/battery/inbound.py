"""Packets of others: none may reach the guest, none may be answered, and no cell may end by one."""

from __future__ import annotations

import os
from collections.abc import Callable

from wgcell.prove.battery import packets
from wgcell.prove.battery.case import Attacker, Case, Injection, Probe
from wgcell.prove.battery.probes import DROP, PASS, Build, group, ip, ip6, mac, single, tunnel
from wgcell.relay import link

__all__ = ["INBOUND_CASES"]


def _forged_response(attacker: Attacker) -> Probe:
    """The relay can't distinguish it from a true one, and passes it; the live session must go on."""
    index = 0x0BADCAFE
    asked = tunnel(packets.initiation(index, attacker.endpoint_key, os.urandom(108)))
    forged = packets.response(5, index, attacker.guest_key, os.urandom(48))
    return Probe((forged,), first=(asked,))


_FROM_ENDPOINT = (
    ("in-response-forged", "a forged response to a rekey: a candidate, never a replacement", PASS, _forged_response),
    ("in-junk", "junk from the endpoint's address", DROP, lambda a: Probe(tuple(os.urandom(n) for n in (1, 31, 64, 92, 148, 512)))),
    ("in-transport-unknown", "transport to an index the guest never announced", DROP, lambda a: Probe((packets.transport(a.ours ^ 0x5A5A, 0, os.urandom(48)),))),
    ("in-initiation-mac1", "an initiation with a wrong mac1", DROP, lambda a: Probe((packets.initiation(1, os.urandom(32), os.urandom(108)),))),
    ("in-response-unsolicited", "a response to no initiation", DROP, lambda a: Probe((packets.response(1, a.ours ^ 0x5A5A, a.guest_key, os.urandom(48)),))),
    ("in-cookie-unsolicited", "a cookie reply to no message", DROP, lambda a: Probe((packets.cookie_reply(a.ours ^ 0x5A5A, os.urandom(56)),))),
    ("in-oversize", "datagrams longer than the link's frame", DROP, lambda a: Probe(tuple(packets.transport(a.ours, n, os.urandom(n), size=n) for n in (1473, 8000, 60000)))),
    ("in-empty", "an empty datagram and one of three bytes", DROP, lambda a: Probe((os.urandom(3), b"\x04\0\0" + os.urandom(1)))),
    ("in-flood", "200 datagrams of junk", DROP, lambda a: Probe(tuple(os.urandom(100) for _ in range(200)))),
)  # fmt: skip
_FROM_STRANGER = (
    ("in-stranger", "WireGuard-shaped datagrams from another host", DROP, lambda a: Probe((packets.transport(a.ours, 1, os.urandom(48)), packets.initiation(1, a.guest_key, os.urandom(108))))),
)  # fmt: skip


def _from_lan(
    packet: Callable[[Attacker], bytes], kind: int = 0x0800, broadcast: bool = False
) -> Build:
    """A frame from a LAN host to the machine's card, or to the broadcast address."""
    to = packets.BROADCAST if broadcast else mac("02:00:00:00:02:01")
    source = mac("02:00:00:00:02:fe")

    def build(attacker: Attacker) -> bytes:
        body = packet(attacker) + os.urandom(16)
        return packets.ethernet(body, kind=kind, destination=to, source=source)

    return single(build)


_ROUTER = ip("192.0.2.254")
_ENDPOINT = ip("198.51.100.10")
_FROM_LAN = (
    ("in-dhcp-121", "a DHCP offer with classless routes (option 121)", DROP, _from_lan(lambda a: packets.ipv4(packets.udp(bytes.fromhex("02010600") + bytes(232) + bytes.fromhex("63825363350102790800c0000201ff"), source_port=67, destination_port=68, destination=b"\xff" * 4, source=_ROUTER), destination=b"\xff" * 4, source=_ROUTER), broadcast=True)),
    ("in-arp-probe", "ARP for the tunnel's address", DROP, _from_lan(lambda a: packets.arp(1, sender=ip("192.0.2.254"), target=ip("10.99.0.2"), sender_mac=mac("02:00:00:00:02:fe")), kind=0x0806, broadcast=True)),
    ("in-syn-ack", "a SYN/ACK for the tunnel's address (CVE-2019-14899)", DROP, _from_lan(lambda a: packets.ipv4(packets.tcp_syn(40000, flags=0x12), protocol=6, destination=ip("10.99.0.2"), source=_ROUTER))),
    ("in-to-guest", "a packet for the guest's address on the link", DROP, _from_lan(lambda a: packets.ipv4(packets.udp(os.urandom(32), destination=link.GUEST_ADDRESS, source=_ROUTER), destination=link.GUEST_ADDRESS, source=_ROUTER))),
    ("in-icmp-unreachable", "ICMP port unreachable about the tunnel itself, in the endpoint's name", DROP, _from_lan(lambda a: packets.ipv4(packets.icmp(3, 3, bytes(4) + packets.ipv4(packets.udp(bytes(8), source=a.host, destination=_ENDPOINT, source_port=a.port), source=a.host, destination=_ENDPOINT)), protocol=1, destination=a.host, source=_ENDPOINT))),
    ("in-ra", "a router advertisement", DROP, _from_lan(lambda a: packets.ipv6(bytes.fromhex("86000000400807080000000000000000"), next_header=58, source=ip6("fe80::1"), destination=ip6("ff02::1")), kind=0x86DD, broadcast=True)),
)  # fmt: skip

INBOUND_CASES: tuple[Case, ...] = (
    *group("inbound", *_FROM_ENDPOINT, injection=Injection.ENDPOINT),
    *group("inbound", *_FROM_STRANGER, injection=Injection.STRANGER),
    *group("inbound", *_FROM_LAN, injection=Injection.LAN, wall="no route"),
)
