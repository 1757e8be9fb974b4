"""The policy as a table: rule, flow, verdict; and a parser that only ever raises PolicyError."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgcell.errors import PolicyError
from wgcell.gateway.policy import Policy, Verdict, parse_rule, parse_service

NAMES = {
    "api.example.com": (ipaddress.ip_address("203.0.113.7"),),
    "inside.example.com": (ipaddress.ip_address("192.168.1.5"),),
}
A, R = Verdict.ALLOW, Verdict.REFUSE


@pytest.mark.parametrize(
    ("allow", "address", "port", "protocol", "verdict"),
    [
        ([], "203.0.113.7", 443, "tcp", R),
        (["203.0.113.7:443"], "203.0.113.7", 443, "tcp", A),
        (["203.0.113.7:443"], "203.0.113.7", 443, "udp", A),
        (["203.0.113.7:443/tcp"], "203.0.113.7", 443, "udp", R),
        (["203.0.113.7:443/udp"], "203.0.113.7", 443, "udp", A),
        (["203.0.113.7:443"], "203.0.113.7", 444, "tcp", R),
        (["203.0.113.7:443"], "203.0.113.8", 443, "tcp", R),
        (["203.0.113.0/24:8000-8010"], "203.0.113.9", 8010, "tcp", A),
        (["203.0.113.0/24:8000-8010"], "203.0.113.9", 8011, "tcp", R),
        (["203.0.113.0/24:*"], "203.0.113.9", 65535, "tcp", A),
        (["[2001:db8::1]:443"], "2001:db8::1", 443, "tcp", A),
        (["[2001:db8::/32]:443"], "2001:db8:1::1", 443, "tcp", A),
        (["api.example.com:443"], "203.0.113.7", 443, "tcp", A),
        (["API.Example.com.:443"], "203.0.113.7", 443, "tcp", A),
        (["api.example.com:443"], "203.0.113.7", 80, "tcp", R),
        # This side of the tunnel's end: only what is listed by address.
        (["0.0.0.0/0:*"], "203.0.113.7", 80, "tcp", A),
        (["0.0.0.0/0:*"], "192.168.1.1", 80, "tcp", R),
        (["0.0.0.0/0:*"], "10.0.0.1", 80, "tcp", R),
        (["0.0.0.0/0:*"], "127.0.0.1", 80, "tcp", R),
        (["0.0.0.0/0:*"], "169.254.169.254", 80, "tcp", R),
        (["0.0.0.0/0:*"], "224.0.0.1", 80, "udp", R),
        (["0.0.0.0/0:*"], "198.51.100.4", 80, "tcp", R),
        (["192.168.1.1:80"], "192.168.1.1", 80, "tcp", A),
        (["192.168.1.0/24:80"], "192.168.1.1", 80, "tcp", A),
        (["127.0.0.1:80"], "127.0.0.1", 80, "tcp", A),
        (["127.0.0.0/8:80"], "127.0.0.1", 80, "tcp", R),
        (["169.254.0.0/16:80"], "169.254.169.254", 80, "tcp", R),
        (["169.254.169.254:80"], "169.254.169.254", 80, "tcp", A),
        (["198.51.100.0/25:80"], "198.51.100.4", 80, "tcp", A),
        (["198.51.0.0/16:80"], "198.51.100.4", 80, "tcp", R),
        (["198.51.100.4:80"], "198.51.100.4", 80, "tcp", A),
        (["inside.example.com:80"], "192.168.1.5", 80, "tcp", R),
        (["[::/0]:*"], "fd00::1", 80, "tcp", R),
        (["[::/0]:*"], "::1", 80, "tcp", R),
        (["[::/0]:*"], "::ffff:192.168.1.1", 80, "tcp", R),
        (["[::/0]:*"], "64:ff9b::c0a8:101", 80, "tcp", R),
        (["[::/0]:*"], "2002:c0a8:101::", 80, "tcp", R),
        # A later rule may allow what an earlier one does not list.
        (["0.0.0.0/0:80", "192.168.1.1:80"], "192.168.1.1", 80, "tcp", A),
    ],
)
def test_table(allow: list[str], address: str, port: int, protocol: str, verdict: Verdict) -> None:
    policy = Policy.parse(allow, {}, names=NAMES, protected=["198.51.100.0/24"])
    decision = policy.evaluate(ipaddress.ip_address(address), port, protocol)
    assert decision.verdict is verdict
    assert decision.reason
    assert bool(decision.rule) is (verdict is A)


def test_a_service_answers_on_its_port_only_and_goes_to_its_target() -> None:
    policy = Policy.parse([], {"10.99.0.5:80": "127.0.0.1:8000"})
    address = ipaddress.ip_address("10.99.0.5")
    assert policy.evaluate(address, 80, "tcp").target == ("127.0.0.1", 8000)
    assert policy.evaluate(address, 81, "tcp").verdict is R
    assert policy.evaluate(address, 80, "udp").verdict is R


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        ":80",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:90-80",
        "example.com:http",
        "example.com:\uff180",
        "2001:db8::1:443",
        "[example.com]:443",
        "10.0.0.1/8:80",
        "300.1.1.1:80",
        "10.1:80",
        "exa mple.com:80",
        "-x.example:80",
        "*.example.com:80",
        "10.0.0.0/33:80",
    ],
)
def test_bad_rules_are_named(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("10.99.0.5", "127.0.0.1:8000"),
        ("data:80", "127.0.0.1:8000"),
        ("10.99.0.5:80", "127.0.0.1"),
        ("10.99.0.5:80-81", "127.0.0.1:8000"),
        ("10.99.0.5:80", "a b:1"),
    ],
)
def test_bad_services_are_refused(inside: str, outside: str) -> None:
    with pytest.raises(PolicyError):
        parse_service(inside, outside)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"\[?[0-9a-f.:/*-]{0,20}\]?:[0-9*-]{0,8}(/tcp)?")))
def test_the_parser_raises_nothing_but_policy_errors(text: str) -> None:
    try:
        rule = parse_rule(text)
    except PolicyError:
        return
    assert 1 <= rule.first_port <= rule.last_port <= 65535
    assert (rule.network is None) is bool(rule.name)
