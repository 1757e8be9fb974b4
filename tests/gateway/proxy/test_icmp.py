"""The message as an independent parser, scapy's, reads it."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6

from wgcell.gateway.proxy.icmp import Why, unreachable


@pytest.mark.parametrize(("why", "code"), [(Why.PROHIBITED, 13), (Why.PORT, 3)])
def test_the_message_quotes_the_datagram(why: Why, code: int) -> None:
    raw = unreachable(("10.99.0.2", 4000), ("203.0.113.7", 53), why)
    message = ICMP(raw)
    assert (message.type, message.code) == (3, code)
    about = message[IPerror]
    assert (about.src, about.dst, about.proto) == ("10.99.0.2", "203.0.113.7", 17)
    assert (about[UDPerror].sport, about[UDPerror].dport) == (4000, 53)
    again = IP(bytes(IP(src="203.0.113.7", dst="10.99.0.2", proto=1) / raw))
    del again[ICMP].chksum
    assert bytes(again)[20:] == raw


@pytest.mark.parametrize(("why", "code"), [(Why.PROHIBITED, 1), (Why.PORT, 4)])
def test_the_message_of_ipv6_quotes_it_too(why: Why, code: int) -> None:
    raw = unreachable(("fd99::2", 4000), ("2001:db8::7", 53), why)
    message = IPv6(bytes(IPv6(src="fd99::1", dst="fd99::2", nh=58) / raw))
    assert (message[ICMPv6DestUnreach].type, message[ICMPv6DestUnreach].code) == (1, code)
    about = message[IPerror6]
    assert (about.src, about.dst) == ("fd99::2", "2001:db8::7")
    assert (about[UDPerror].sport, about[UDPerror].dport) == (4000, 53)
