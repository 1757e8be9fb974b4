"""How rules and services are written: what is taken, and that nothing but PolicyError is raised."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.errors import PolicyError
from wgcell.gateway.model import remarks
from wgcell.gateway.model.rules import parse_line, parse_rule


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
        "**:80",
        "*:80/unchecked",
        "203.0.113.7:22/unchecked",
        "example.com:22/udp/unchecked",
        "stra\u00dfe.example:443",
        "a.*.example.com:80",
        "*example.com:80",
        "10.0.0.0/33:80",
    ],
)
def test_bad_rules_are_named(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("https://api.example.com/v1/x?y=1", "api.example.com:443"),
        ("http://api.example.com", "api.example.com:80"),
        ("https://user@api.example.com:8443/", "api.example.com:8443"),
        ("HTTPS://api.example.com:443", "api.example.com:443"),
    ],
)
def test_a_url_is_refused_with_the_rule_that_is_meant(text: str, right: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_rule(text)
    assert repr(text) in caught.value.message and right in caught.value.hint
    assert parse_rule(right).covers(int(right.rpartition(":")[2]), "tcp")


def test_a_name_is_taken_in_its_ascii_form() -> None:
    rule = parse_rule("B\u00fccher.example:443")
    assert rule.names("xn--bcher-kva.example")
    assert rule.text == "allow xn--bcher-kva.example:443"
    assert parse_rule("*.b\u00fccher.example:443").names("a.xn--bcher-kva.example")
    assert remarks.of_rules((rule,)) == [
        "B\u00fccher.example is xn--bcher-kva.example in the form that is asked of resolvers"
    ]


def test_a_line_begins_with_its_verb() -> None:
    with pytest.raises(PolicyError, match="allow or deny"):
        parse_line("api.example.com:443")


@settings(max_examples=examples(300), deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"\[?[0-9a-f.:/*-]{0,20}\]?:[0-9*-]{0,8}(/tcp)?")))
def test_the_parser_raises_nothing_but_policy_errors(text: str) -> None:
    try:
        rule = parse_rule(text)
    except PolicyError:
        return
    assert 1 <= rule.first_port <= rule.last_port <= 65535
    assert (rule.network is None) is bool(rule.name)


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("example.com", "for HTTPS write example.com:443"),
        ("203.0.113.7", "for HTTPS write 203.0.113.7:443"),
        ("example.com:https", "https is port 443"),
        ("example.com:SSH", "SSH is port 22"),
        ("a b", ""),
        ("example.com:gopher", ""),
    ],
)
def test_a_rule_without_a_number_is_told_which(rule: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_rule(rule)
    assert caught.value.hint == hint
