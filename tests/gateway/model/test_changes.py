"""The rules of a running gateway as a script: orders and time in, decisions out."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.gateways import config_of

from wgcell.errors import PolicyError
from wgcell.gateway.model.changes import MOST_CHANGES, Change, Changes
from wgcell.gateway.model.parsing import parse_config
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.rules import Action, parse_line

BASE = ["allow api.example.com:443", "allow 203.0.113.0/24:8000"]
LEADS = {"203.0.113.7": ("api.example.com",), "203.0.113.8": ("b.example.com",)}


@dataclass
class Script:
    """``do("allow b.example.com:443", 600)``, ``at(601)``, ``opens("203.0.113.8:443")``."""

    base: list[str] = field(default_factory=lambda: list(BASE))
    services: dict[str, str] = field(default_factory=dict)
    learn: bool = False
    changes: Changes = field(default_factory=Changes)
    now: float = 1000.0
    over: list[str] = field(default_factory=list)

    def do(self, line: str, seconds: float | None = None) -> Script:
        until = None if seconds is None else self.now + seconds
        self.changes = self.changes.added(Change(parse_line(line), until))
        return self

    def at(self, later: float) -> Script:
        self.now += later
        self.changes, ended = self.changes.without_ended(self.now)
        self.over += [one.rule.text for one in ended]
        return self

    @property
    def policy(self) -> Policy:
        raw = config_of(rules=self.base, services=self.services, learn=self.learn)
        return self.changes.over(parse_config(raw)).peers[0].policy

    def opens(self, where: str, protocol: str = "tcp") -> bool:
        host, _, port = where.rpartition(":")
        address, names = ipaddress.ip_address(host), LEADS.get(host, ())
        return self.policy.evaluate(address, int(port), protocol, names).action is Action.ALLOW

    def asks(self, name: str) -> bool:
        return bool(self.policy.rule_for_name(name))


def test_an_allow_opens_and_its_end_closes_again() -> None:
    script = Script()
    assert not script.opens("203.0.113.8:443") and not script.asks("b.example.com")
    script.do("allow b.example.com:443", 600)
    assert script.opens("203.0.113.8:443") and script.asks("b.example.com")
    assert script.changes.next_end == 1600.0
    assert script.at(599.9).opens("203.0.113.8:443") and not script.over
    assert not script.at(0.1).opens("203.0.113.8:443") and not script.asks("b.example.com")
    assert script.over == ["allow b.example.com:443"] and script.changes == Changes()
    # What the gateway was started with is as before.
    assert script.opens("203.0.113.7:443") and script.opens("203.0.113.9:8000")


def test_a_clock_that_stood_still_while_the_machine_slept_is_no_reprieve() -> None:
    script = Script().do("allow b.example.com:443", 600)
    assert not script.at(8 * 3600).opens("203.0.113.8:443")


def test_a_deny_closes_what_a_rule_of_the_start_has_opened() -> None:
    script = Script().do("deny api.example.com:443")
    assert not script.opens("203.0.113.7:443") and not script.asks("api.example.com")
    assert not Script().do("deny 203.0.113.9:*").opens("203.0.113.9:8000")
    assert Script().do("deny 203.0.113.9:*").opens("203.0.113.10:8000")
    everything = Script(services={"10.99.0.5:80": "127.0.0.1:8000"}).do("deny *:*")
    for where in ("203.0.113.7:443", "203.0.113.9:8000", "10.99.0.5:80"):
        assert not everything.opens(where)


def test_the_latest_word_holds() -> None:
    script = Script().do("deny api.example.com:443").do("allow api.example.com:443")
    assert script.opens("203.0.113.7:443") and len(script.changes.latest_first) == 2
    script.do("deny api.example.com:443")
    assert not script.opens("203.0.113.7:443") and len(script.changes.latest_first) == 1


def test_an_allow_that_ends_leaves_an_earlier_deny_in_place() -> None:
    script = Script().do("deny api.example.com:443/tcp").do("allow api.example.com:443", 60)
    assert script.opens("203.0.113.7:443")
    assert not script.at(60).opens("203.0.113.7:443")


def test_the_latest_allow_of_the_same_says_until_when() -> None:
    longer = Script().do("allow b.example.com:443", 60).do("allow b.example.com:443", 600)
    assert longer.at(61).opens("203.0.113.8:443") and not longer.over
    shorter = Script().do("allow b.example.com:443", 600).do("allow b.example.com:443", 60)
    assert not shorter.at(60).opens("203.0.113.8:443")
    for_good = Script().do("allow b.example.com:443", 60).do("allow b.example.com:443")
    assert for_good.at(61).opens("203.0.113.8:443") and for_good.changes.next_end is None
    no_more = Script().do("allow b.example.com:443").do("allow b.example.com:443", 60)
    assert not no_more.at(60).opens("203.0.113.8:443")


def test_one_that_differs_in_port_or_protocol_replaces_nothing() -> None:
    script = Script().do("allow 203.0.113.8:1").do("deny 203.0.113.8:1/udp").do("deny 192.0.2.1:1")
    assert len(script.changes.latest_first) == 3
    assert script.opens("203.0.113.8:1") and not script.opens("203.0.113.8:1", "udp")


def test_a_deny_holds_while_a_policy_is_learned() -> None:
    script = Script(base=[], learn=True)
    assert script.opens("203.0.113.8:443") and script.asks("b.example.com")
    script.do("deny b.example.com:*")
    assert not script.opens("203.0.113.8:443") and not script.asks("b.example.com")


@pytest.mark.parametrize(
    ("deny", "closed"),
    [
        ("deny 10.99.0.5:80", True),
        ("deny 10.99.0.0/24:*", True),
        ("deny db.internal:*", True),
        ("deny *.internal:5432", True),
        ("deny *:*", True),
        ("deny 10.99.0.5:81", False),
        ("deny 10.99.0.5:80/udp", False),
        ("deny api.example.com:*", False),
    ],
)
def test_a_service_is_closed_by_its_address_and_by_its_name(deny: str, closed: bool) -> None:
    services = {"10.99.0.5:80": "127.0.0.1:8000", "db": "127.0.0.1:5432"}
    script = Script(services=services)
    assert script.opens("10.99.0.5:80") and script.opens("10.99.0.6:5432")
    script.do(deny)
    assert closed is not (script.opens("10.99.0.5:80") and script.opens("10.99.0.6:5432"))
    # It is on this side of the tunnel's end whether it is open or not.
    assert script.policy.protected_kind(ipaddress.ip_address("10.99.0.5"))
    script.do("allow 10.99.0.5:80").do("allow db.internal:5432")
    assert script.opens("10.99.0.5:80") and script.opens("10.99.0.6:5432")


def test_a_closed_service_has_no_name() -> None:
    script = Script(services={"db": "127.0.0.1:5432"})
    assert script.policy.services_named("db.internal")
    assert not script.do("deny db.internal:5432").policy.services_named("db.internal")


def test_there_is_a_bound_and_what_ends_makes_room() -> None:
    script = Script()
    for number in range(MOST_CHANGES):
        script.do(f"allow 203.0.113.8:{number + 1}", 60)
    with pytest.raises(PolicyError, match="256 changes are in force already"):
        script.do("allow 203.0.113.8:9999")
    script.do("deny 203.0.113.8:1")  # in the place of the allow
    script.at(60).do("allow 203.0.113.8:9999")
    assert script.opens("203.0.113.8:9999") and len(script.changes.latest_first) == 2


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["allow", "deny"]),
            st.sampled_from(["api.example.com:443", "b.example.com:443", "203.0.113.0/24:*"]),
            st.none() | st.integers(1, 20),
            st.integers(0, 10),
        ),
        max_size=8,
    )
)
def test_nothing_but_the_last_word_that_still_holds_decides(
    orders: list[tuple[str, str, int | None, int]],
) -> None:
    """The oracle: every order there was, those that are over left out, the latest first."""
    script, said = Script(), []
    for verb, rule, seconds, wait in orders:
        seconds = seconds if verb == "allow" else None
        script.do(f"{verb} {rule}", seconds)
        until = None if seconds is None else script.now + seconds
        # The same allow said again is the latest word about how long.
        said = [one for one in said if verb != "allow" or one[0] != f"allow {rule}"]
        said.append((f"{verb} {rule}", until))
        script.at(wait)
    in_force = [line for line, until in reversed(said) if until is None or until > script.now]
    oracle = Script(base=[*in_force, *BASE])
    for where in ("203.0.113.7:443", "203.0.113.8:443", "203.0.113.9:8000", "203.0.113.9:1"):
        assert script.opens(where) is oracle.opens(where), (where, in_force)
