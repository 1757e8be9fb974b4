"""Services: how they are written, and where in the tunnel each of them is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.errors import PolicyError
from wgcell.gateway.model.services import Service, ServiceAsked, parse_service, placed
from wgcell.net.addresses import address

OWN = address("10.99.0.1")
TAKEN = {OWN: "the gateway's own", address("10.99.0.7"): "the cell's own"}


def places(**pairs: str) -> list[tuple[str, int, str]]:
    asked = [parse_service(inside.replace("_", ":"), out) for inside, out in pairs.items()]
    return [(str(one.address), one.port, one.name) for one in placed(asked, TAKEN, OWN)]


@pytest.mark.parametrize(
    ("inside", "asked"),
    [
        ("10.99.0.5:80", ServiceAsked(address("10.99.0.5"), "", 80, "127.0.0.1", 5432)),
        ("[fd99::5]:80", ServiceAsked(address("fd99::5"), "", 80, "127.0.0.1", 5432)),
        ("db", ServiceAsked(None, "db.internal", 5432, "127.0.0.1", 5432)),
        ("DB:80", ServiceAsked(None, "db.internal", 80, "127.0.0.1", 5432)),
    ],
)
def test_how_it_is_written(inside: str, asked: ServiceAsked) -> None:
    assert parse_service(inside, "127.0.0.1:5432") == asked


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("10.99.0.5", "127.0.0.1:8000"),
        ("data.example.com:80", "127.0.0.1:8000"),
        ("db.internal", "127.0.0.1:8000"),
        ("a b", "127.0.0.1:8000"),
        ("-db", "127.0.0.1:8000"),
        ("1234", "127.0.0.1:8000"),
        ("db:0", "127.0.0.1:8000"),
        ("db:65536", "127.0.0.1:8000"),
        ("db", "127.0.0.1:0"),
        ("", "127.0.0.1:8000"),
        ("10.99.0.5:80", "127.0.0.1"),
        ("10.99.0.5:80-81", "127.0.0.1:8000"),
        ("10.99.0.5:80", "a b:1"),
    ],
)
def test_bad_ones_are_refused(inside: str, outside: str) -> None:
    with pytest.raises(PolicyError):
        parse_service(inside, outside)


@pytest.mark.parametrize(
    ("target", "instead"), [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80")]
)
def test_where_servers_listen_is_no_target_and_what_to_write_is_said(
    target: str, instead: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_service("10.99.0.5:80", target)
    assert caught.value.hint.endswith(f" write {instead}")


def test_names_get_addresses_that_nobody_has_one_each() -> None:
    asked = [
        parse_service(inside, "127.0.0.1:1")
        for inside in ("db", "10.99.0.6:80", "web:80", "web:443", "late")
    ]
    found = placed(asked, TAKEN, OWN)
    assert [(str(one.address), one.port, one.name) for one in found] == [
        # .6 is written further on, and .7 is the cell's.
        *(("10.99.0.8", 1, "db.internal"), ("10.99.0.6", 80, "")),
        *(("10.99.0.9", 80, "web.internal"), ("10.99.0.9", 443, "web.internal")),
        ("10.99.0.10", 1, "late.internal"),
    ]


def test_a_taken_address_is_refused_with_one_that_is_free() -> None:
    with pytest.raises(PolicyError, match="is the cell's own address") as caught:
        placed([parse_service("10.99.0.7:80", "127.0.0.1:8000")], TAKEN, OWN)
    assert caught.value.hint.endswith("10.99.0.6:80 = 127.0.0.1:8000")


def test_one_place_has_one_service() -> None:
    twice = [parse_service("db:80", "127.0.0.1:1"), parse_service("DB:80", "127.0.0.1:2")]
    with pytest.raises(PolicyError, match="two services are at"):
        placed(twice, TAKEN, OWN)


@settings(max_examples=examples(300), deadline=None)
@given(st.text(), st.text() | st.just("127.0.0.1:80"))
def test_the_parser_raises_nothing_but_policy_errors(inside: str, outside: str) -> None:
    try:
        asked = parse_service(inside, outside)
    except PolicyError:
        return
    (service,) = placed([asked], {}, OWN)
    assert isinstance(service, Service) and 1 <= service.port <= 65535
