"""The captures' parsers against scapy's, which it shares nothing with."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from wgcell.prove.battery.case import Attacker, Injection
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.probes import tunnel
from wgcell.prove.testbed.capture import is_port_unreachable, link_payload, tunnel_payload
from wgcell.prove.verdict import Verdict
from wgcell.relay import link

HOST = socket.inet_aton("192.0.2.1")
GATEWAY = frozenset({link.GATEWAY_ADDRESS})


def attacker() -> Attacker:
    return Attacker(b"g" * 32, b"e" * 32, HOST, ours=7, theirs=9)


@given(st.binary(max_size=200))
def test_a_tunnel_frame_gives_its_payload_and_scapy_agrees(payload: bytes) -> None:
    frame = tunnel(payload)
    assert tunnel_payload(frame, GATEWAY, link.PORT) == payload
    packet = Ether(frame)
    assert bytes(packet[UDP].payload) == payload
    again = packet.copy()
    del again[IP].chksum, again[UDP].chksum
    assert bytes(again) == frame  # every checksum of ours is the one scapy computes


@given(st.binary(max_size=120))
def test_no_bytes_raise(frame: bytes) -> None:
    tunnel_payload(frame, GATEWAY, link.PORT)
    is_port_unreachable(frame, HOST)


def test_only_the_hosts_own_answer_to_a_stranger_is_an_answer() -> None:
    theirs = IP(src="192.0.2.10", dst="192.0.2.1") / UDP(sport=5, dport=6)
    answer = Ether() / IP(src="192.0.2.1", dst="192.0.2.10") / ICMP(type=3, code=3) / theirs
    assert is_port_unreachable(bytes(answer), HOST)
    forged = Ether() / IP(src="192.168.64.2", dst="192.0.2.10") / ICMP(type=3, code=3) / theirs
    assert not is_port_unreachable(bytes(forged), HOST)
    own = IP(src="192.0.2.1", dst="192.0.2.10") / UDP() / Raw(b"secret")
    smuggled = Ether() / IP(src="192.0.2.1", dst="192.0.2.10") / ICMP(type=3, code=3) / own
    assert not is_port_unreachable(bytes(smuggled), HOST)


def test_the_independent_parser_takes_what_is_the_tunnels_and_nothing_else() -> None:
    for size in (32, 96, 1452):
        message = attacker().transport(size)
        assert link_payload(tunnel(message)) == message
    # Only a defect of the frame's headers is its business.
    groups = ("link", "ARP and neighbours", "IPv4", "IPv6", "ICMP", "names and addresses")
    cases = [case for case in CASES if case.group in groups and case.injection is Injection.FRAMES]
    assert len(cases) > 60
    passed = [
        case.name
        for case in cases
        if case.verdict is not Verdict.PASS
        and any(link_payload(frame) is not None for frame in case.probe(attacker()).frames)
    ]
    assert passed == []
