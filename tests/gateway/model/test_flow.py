"""The hint: the rule that would have allowed a refused flow."""

from __future__ import annotations

import ipaddress

import pytest

from wgcell.gateway.model.flow import Flow, hint, learned_rule
from wgcell.gateway.model.rules import parse_rule

V4, V6 = ipaddress.ip_address("203.0.113.7"), ipaddress.ip_address("2001:db8::7")


def test_no_rule_would_allow_a_ping_and_none_is_named() -> None:
    assert hint("icmp", 0, "") == hint("ip47", 0, "a.example.com") == ""


@pytest.mark.parametrize(
    ("protocol", "host", "rule"),
    [
        ("tcp", "a.example.com", "a.example.com:80"),
        ("udp", "a.example.com", "a.example.com:80/udp"),
        ("dns", "a.example.com", "a.example.com:443"),
    ],
)
def test_a_hint_is_a_rule(protocol: str, host: str, rule: str) -> None:
    assert hint(protocol, 80, host) == rule
    parse_rule(rule)
    parse_rule(hint("tcp", 22, host, checked=False))


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "@", "_http._tcp.example.com", "7.113.0.203.in-addr.arpa", "a..example.com"),
        *("ip6.arpa", "203.0.113.7", "10.1", "[2001:db8::7]", "a\\.example.com", "a b.example.com"),
        *("169.254.169.254", "192.168.1.1", "-x.example.com", "x" * 64 + ".example.com"),
    ],
)
@pytest.mark.parametrize("protocol", ["tcp", "udp", "dns"])
def test_no_address_and_no_name_that_no_rule_can_have_is_advised(protocol: str, host: str) -> None:
    assert hint(protocol, 443, host) == ""


def test_what_was_learned_of_an_address_is_a_rule_too() -> None:
    for address, protocol, rule in (
        (V4, "tcp", "203.0.113.7:80"),
        (V4, "udp", "203.0.113.7:80/udp"),
        (V6, "tcp", "[2001:db8::7]:80"),
    ):
        assert learned_rule(Flow(1, "cell", protocol, address, 80), "") == rule
        parse_rule(rule)
