"""The policy as a table: rules, flow, verdict; and a parser that only ever raises PolicyError."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.gateway.model import remarks
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.rules import Action, parse_line
from wgcell.gateway.model.services import Service
from wgcell.net.addresses import Address

A, R = Action.ALLOW, Action.REFUSE
LEADS = {
    "203.0.113.7": ("api.example.com",),
    "203.0.113.8": ("b.example.com", "shared.example.com"),
    "192.168.1.5": ("inside.example.com",),
}


def policy_of(rules: list[str]) -> Policy:
    own = (ipaddress.ip_network("198.51.100.0/24"),)
    return Policy(rules=tuple(map(parse_line, rules)), protected=own)


@pytest.mark.parametrize(
    ("rules", "address", "port", "protocol", "verdict"),
    [
        ([], "203.0.113.7", 443, "tcp", R),
        (["allow 203.0.113.7:443"], "203.0.113.7", 443, "tcp", A),
        (["allow 203.0.113.7:443"], "203.0.113.7", 443, "udp", A),
        (["allow 203.0.113.7:443/tcp"], "203.0.113.7", 443, "udp", R),
        (["allow 203.0.113.7:443/udp"], "203.0.113.7", 443, "udp", A),
        (["allow 203.0.113.7:443"], "203.0.113.7", 444, "tcp", R),
        (["allow 203.0.113.7:443"], "203.0.113.8", 443, "tcp", R),
        (["allow 203.0.113.0/24:8000-8010"], "203.0.113.9", 8010, "tcp", A),
        (["allow 203.0.113.0/24:8000-8010"], "203.0.113.9", 8011, "tcp", R),
        (["allow 203.0.113.0/24:*"], "203.0.113.9", 65535, "tcp", A),
        (["allow [2001:db8::1]:443"], "2001:db8::1", 443, "tcp", A),
        (["allow [2001:db8::/32]:443"], "2001:db8:1::1", 443, "tcp", A),
        # The first that matches decides.
        (["deny 203.0.113.7:443", "allow 203.0.113.0/24:*"], "203.0.113.7", 443, "tcp", R),
        (["deny 203.0.113.7:443", "allow 203.0.113.0/24:*"], "203.0.113.7", 444, "tcp", A),
        (["allow 203.0.113.0/24:*", "deny 203.0.113.7:443"], "203.0.113.7", 443, "tcp", A),
        (["deny 203.0.113.7:443/udp", "allow 203.0.113.7:443"], "203.0.113.7", 443, "tcp", A),
        # Names, of the addresses that LEADS has.
        (["allow api.example.com:443"], "203.0.113.7", 443, "tcp", A),
        (["allow API.Example.com.:443"], "203.0.113.7", 443, "tcp", A),
        (["allow api.example.com:443"], "203.0.113.7", 80, "tcp", R),
        (["allow api.example.com:443"], "203.0.113.9", 443, "tcp", R),
        (["allow api.example.com:443"], "203.0.113.7", 443, "udp", R),
        (["allow api.example.com:443/udp"], "203.0.113.7", 443, "udp", A),
        (["allow *.example.com:443"], "203.0.113.7", 443, "tcp", A),
        (["allow *.api.example.com:443"], "203.0.113.7", 443, "tcp", R),
        (["allow *.ple.com:443"], "203.0.113.7", 443, "tcp", R),
        (["deny api.example.com:443", "allow *.example.com:*"], "203.0.113.7", 443, "tcp", R),
        (["deny api.example.com:443", "allow *.example.com:*"], "203.0.113.7", 80, "tcp", A),
        (["allow shared.example.com:443"], "203.0.113.8", 443, "tcp", A),
        (["allow api.example.com:22/tcp/unchecked"], "203.0.113.7", 22, "tcp", A),
        (["allow api.example.com:22/unchecked"], "203.0.113.7", 22, "udp", R),
        # Any public host, by whatever name, or none.
        (["allow *:443"], "203.0.113.7", 443, "tcp", A),
        (["allow *:443"], "203.0.113.9", 443, "tcp", A),
        (["allow *:443"], "203.0.113.9", 443, "udp", R),
        (["allow *:443"], "203.0.113.9", 80, "tcp", R),
        (["allow *:443"], "192.168.1.5", 443, "tcp", R),
        (["allow *:443"], "169.254.169.254", 443, "tcp", R),
        (["allow *:443"], "198.51.100.4", 443, "tcp", R),
        (["allow *:443"], "::1", 443, "tcp", R),
        (["allow *:443"], "2001:db8::1", 443, "tcp", A),
        (["deny *:25", "allow api.example.com:*"], "203.0.113.7", 25, "tcp", R),
        (["deny *:25", "allow api.example.com:*"], "203.0.113.7", 26, "tcp", A),
        # This side of the tunnel's end: only the very address.
        (["allow 0.0.0.0/0:*"], "203.0.113.7", 80, "tcp", A),
        (["allow 0.0.0.0/0:*"], "192.168.1.1", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "10.0.0.1", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "172.16.0.1", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "100.64.0.1", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "127.0.0.1", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "0.0.0.0", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "169.254.169.254", 80, "tcp", R),
        (["allow 0.0.0.0/0:*"], "224.0.0.1", 80, "udp", R),
        (["allow 0.0.0.0/0:*"], "255.255.255.255", 80, "udp", R),
        (["allow 0.0.0.0/0:*"], "198.51.100.4", 80, "tcp", R),
        (["allow 192.168.1.1:80"], "192.168.1.1", 80, "tcp", A),
        (["allow 192.168.1.0/24:80"], "192.168.1.1", 80, "tcp", R),
        (["allow 127.0.0.1:80"], "127.0.0.1", 80, "tcp", A),
        (["allow 127.0.0.0/8:80"], "127.0.0.1", 80, "tcp", R),
        (["allow 169.254.169.254:80"], "169.254.169.254", 80, "tcp", A),
        (["allow 198.51.100.0/25:80"], "198.51.100.4", 80, "tcp", R),
        (["allow 198.51.100.4:80"], "198.51.100.4", 80, "tcp", A),
        (["allow inside.example.com:80"], "192.168.1.5", 80, "tcp", R),
        (["allow [::/0]:*"], "fd00::1", 80, "tcp", R),
        (["allow [::/0]:*"], "fe80::1", 80, "tcp", R),
        (["allow [::/0]:*"], "::1", 80, "tcp", R),
        (["allow [::/0]:*"], "::ffff:192.168.1.1", 80, "tcp", R),
        (["allow [::/0]:*"], "::ffff:203.0.113.7", 80, "tcp", R),
        (["allow [::/0]:*"], "64:ff9b::c0a8:101", 80, "tcp", R),
        (["allow [::/0]:*"], "2002:c0a8:101::", 80, "tcp", R),
        # A later rule may be the address that an earlier one only covers.
        (["allow 0.0.0.0/0:80", "allow 192.168.1.1:80"], "192.168.1.1", 80, "tcp", A),
    ],
)
def test_table(rules: list[str], address: str, port: int, protocol: str, verdict: Action) -> None:
    policy = policy_of(rules)
    names = LEADS.get(address, ())
    decision = policy.evaluate(ipaddress.ip_address(address), port, protocol, names)
    assert decision.action is verdict
    assert decision.reason
    if verdict is A:
        assert decision.rule in {
            f"allow {rule.text.removeprefix('allow ')}" for rule in policy.rules
        }
    # Learning changes only what no rule speaks of.
    learned = replace(policy, learn=True)
    again = learned.evaluate(ipaddress.ip_address(address), port, protocol, names)
    if decision.rule or learned.protected_kind(ipaddress.ip_address(address)):
        assert again.action is verdict
    else:
        assert (again.action, again.rule) == (A, "learn")


def test_a_flow_is_allowed_by_the_names_that_may_be_reached_and_by_no_other() -> None:
    policy = policy_of(["allow b.example.com:443", "allow shared.example.com:80-443"])
    address, names = ipaddress.ip_address("203.0.113.8"), ("b.example.com", "shared.example.com")
    assert policy.evaluate(address, 443, "tcp", names).names == names
    assert policy.evaluate(address, 80, "tcp", names).names == ("shared.example.com",)
    # A rule about the address is about no name.
    literal = policy_of(["allow 203.0.113.8:443", "allow b.example.com:443"])
    assert literal.evaluate(address, 443, "tcp", names).names == ()


@pytest.mark.parametrize(
    ("rules", "name", "asked"),
    [
        ([], "api.example.com", False),
        (["allow api.example.com:443"], "api.example.com", True),
        (["allow api.example.com:443"], "a.api.example.com", False),
        (["allow *.example.com:443"], "a.b.example.com", True),
        (["allow *.example.com:443"], "example.com", False),
        (["deny ads.example.com:*", "allow *.example.com:443"], "ads.example.com", False),
        (["deny ads.example.com:80", "allow *.example.com:443"], "ads.example.com", True),
        (["allow 0.0.0.0/0:*"], "api.example.com", False),
        (["allow *:443"], "api.example.com", True),
        (["deny *:*", "allow *:443"], "api.example.com", False),
        # What is denied of a rule is what the rule is not: in parts, too.
        (["deny api.example.com:443", "allow api.example.com:443"], "api.example.com", False),
        (["deny api.example.com:443/udp", "allow *.example.com:443"], "api.example.com", True),
        (["deny api.example.com:443/udp", "allow *.example.com:443/udp"], "api.example.com", False),
        (
            ["deny *:50-60", "deny *:1-49", "deny *:55-99", "allow api.example.com:9-99"],
            *("api.example.com", False),
        ),
        (
            ["deny *:50-60", "deny *:1-48", "deny *:55-99", "allow api.example.com:9-99"],
            *("api.example.com", True),
        ),
        (["deny *:1-98", "deny *:99", "allow *.example.com:9-100"], "api.example.com", True),
    ],
)
def test_which_names_may_be_asked(rules: list[str], name: str, asked: bool) -> None:
    assert bool(policy_of(rules).rule_for_name(name)) is asked


def test_a_service_answers_on_its_port_only_and_goes_to_its_target() -> None:
    address = ipaddress.ip_address("10.99.0.5")
    policy = Policy(services=(Service(address, 80, "127.0.0.1", 8000),))
    assert policy.evaluate(address, 80, "tcp").target == ("127.0.0.1", 8000)
    assert policy.evaluate(address, 81, "tcp").action is R
    assert policy.evaluate(address, 80, "udp").action is R


def test_an_unchecked_rule_says_so_of_the_flows_it_allows() -> None:
    policy = policy_of(["allow api.example.com:443", "allow b.example.com:22/tcp/unchecked"])
    checked = policy.evaluate(ipaddress.ip_address("203.0.113.7"), 443, "tcp", ["api.example.com"])
    assert checked.checked and checked.names
    free = policy.evaluate(ipaddress.ip_address("203.0.113.8"), 22, "tcp", ["b.example.com"])
    assert not free.checked and free.names == ("b.example.com",)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["allow api.example.com:443", "deny b.example.com:*", "allow 192.168.1.1:80"], []),
        (["allow 0.0.0.0/0:80", "allow 192.168.1.1:80"], []),
        (["allow api.example.com:443", "allow *.example.com:443"], []),
        (["allow api.example.com:443", "allow 203.0.113.7:443"], []),
        (["allow api.example.com:443/udp", "allow api.example.com:443"], []),
        (["allow *:443"], ["OPENS EVERY PUBLIC HOST"]),
        (["allow a.example.com:22/tcp/unchecked"], ["no host is checked"]),
        (["allow 192.168.0.0/16:80"], ["opens nothing: 192.168.0.0/16 is private"]),
        (["allow 169.254.169.0/24:80"], ["link-local"]),
        (["allow 198.51.100.0/25:80"], ["this side's own"]),
        (["allow 10.99.0.2:80"], ["opens nothing: only a service"]),
        (["deny *.example.com:*", "allow api.example.com:443"], ["is never read: 'deny *.ex"]),
        (["allow *.example.com:*", "allow *.api.example.com:443"], ["is never read"]),
        (["allow *.example.com:1-500", "deny api.example.com:443/tcp"], ["is never read"]),
        (["allow 203.0.113.0/24:*", "deny 203.0.113.7:443"], ["is never read"]),
        (["deny *:443", "allow api.example.com:443"], ["is never read"]),
        (["deny *:443", "allow 192.168.1.1:443"], ["is never read"]),
        (
            ["allow a.example.com:443", "allow a.example.com:443/tcp/unchecked"],
            ["no host is checked", "is never read"],
        ),
    ],
)
def test_what_is_not_meant_is_remarked(rules: list[str], words: list[str]) -> None:
    own = (ipaddress.ip_network("198.51.100.0/24"),)
    inside = (ipaddress.ip_network("10.99.0.2"),)
    said = remarks.of_rules(tuple(map(parse_line, rules)), own, inside)
    assert len(said) == len(words), said
    for one, word in zip(said, words, strict=True):
        assert word in one


def test_a_rule_without_a_way_is_remarked() -> None:
    rules = [f"allow {what}:443" for what in ("[2001:db8::7]", "[2001:db8:f::/48]", "192.0.2.1")]
    rules += ["deny [2001:db8:e::1]:443", "allow api.example.com:443"]
    asked: list[str] = []

    def way(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        asked.append(str(address))
        return str(address) == "2001:db8::7"

    (said,) = remarks.without_way(tuple(map(parse_line, rules)), way)
    assert said.startswith("'allow [2001:db8:f::/48]:443' opens nothing: this machine has no way")
    assert asked == ["2001:db8::7", "2001:db8:f::1"]


@settings(max_examples=examples(300), deadline=None)
@example(["allow *:443", "deny *:443/tcp", "allow 192.168.1.1:443"])
@example(["allow a.example.com:443", "deny a.example.com:443/tcp", "allow 192.168.1.1:443"])
@given(
    st.lists(
        st.builds(
            lambda verb, host, port, protocol: f"{verb} {host}:{port}{protocol}",
            st.sampled_from(["allow", "deny"]),
            st.sampled_from(
                (
                    *("*", "a.example.com", "*.example.com", "*.a.example.com", "203.0.113.7"),
                    *("203.0.113.0/24", "0.0.0.0/0", "192.168.1.1", "192.168.1.0/24"),
                )
            ),
            st.sampled_from(["443", "1-500", "*"]),
            st.sampled_from(["", "/tcp", "/udp"]),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_a_rule_that_is_never_read_decides_nothing(lines: list[str]) -> None:
    """The oracle is the policy itself, without the rule."""
    rules = tuple(map(parse_line, lines))
    for text in remarks.of_rules(rules):
        if "is never read" not in text:
            continue
        number = next(n for n, r in reversed([*enumerate(rules)]) if text.startswith(repr(r.text)))
        less = Policy(rules=rules[:number] + rules[number + 1 :])
        for address in ("203.0.113.7", "203.0.113.9", "192.168.1.1", "192.0.2.1"):
            for name in ("a.example.com", "b.a.example.com", "b.example.com", "example.com"):
                for port in (443, 500, 501):
                    for protocol in ("tcp", "udp"):
                        flow = ipaddress.ip_address(address), port, protocol, (name,)
                        whole = Policy(rules=rules).evaluate(*flow)
                        assert whole.action is less.evaluate(*flow).action, (text, flow)


def _address(version: int, value: int) -> Address:
    return (ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(value)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.one_of(
        st.builds(_address, st.just(4), st.integers(0, 2**32 - 1)),
        st.builds(_address, st.just(6), st.integers(0, 2**128 - 1)),
    )
)
def test_the_widest_rules_open_nothing_that_is_not_global(address: Address) -> None:
    wide = policy_of(["allow 0.0.0.0/0:*", "allow [::/0]:*", "allow *.example.com:*"])
    if wide.evaluate(address, 443, "tcp", ("a.example.com",)).action is A:
        documentation = ("192.0.2.", "198.51.100.", "203.0.113.", "2001:", "3fff:", "5f00:", "100:")
        assert address.is_global or str(address).startswith(documentation)
