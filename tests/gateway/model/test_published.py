"""Published ports: how they are written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.errors import PolicyError
from wgcell.gateway.model.published import Published, parse_published
from wgcell.net.addresses import address


@pytest.mark.parametrize(
    ("text", "place", "inside"),
    [
        ("8080:80", ("127.0.0.1", 8080), 80),
        ("0:80", ("127.0.0.1", 0), 80),
        ("192.0.2.1:8080:80", ("192.0.2.1", 8080), 80),
        ("0.0.0.0:8080:80", ("0.0.0.0", 8080), 80),
        ("[::1]:8080:80", ("::1", 8080), 80),
        (" 8080:80 ", ("127.0.0.1", 8080), 80),
    ],
)
def test_how_it_is_written(text: str, place: tuple[str, int], inside: int) -> None:
    found = parse_published(text)
    assert (found.place, found.inside) == (place, inside)
    assert parse_published(found.text) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "allowed:"),
        ("80", "allowed:"),
        ("a:80", "allowed:"),
        ("8080:", "allowed:"),
        ("8080:80/udp", "a published port is TCP's"),
        ("8080:0", "a port is 1-65535"),
        ("65536:80", "a port is 1-65535"),
        ("8080:65536", "a port is 1-65535"),
        ("localhost:8080:80", "is not an IP address"),
        ("::1:8080:80", "in brackets"),
        ("[127.0.0.1]:8080:80", "in brackets"),
        ("127.0.0.1:8080:80:80", "allowed:"),
    ],
)
def test_bad_ones_are_refused(text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse_published(text)


@settings(max_examples=examples(300), deadline=None)
@given(st.text() | st.from_regex(r"[0-9a-f.:\[\]]{0,30}:[0-9]{0,6}:[0-9]{0,6}"))
def test_the_parser_raises_nothing_but_policy_errors(text: str) -> None:
    try:
        found = parse_published(text)
    except PolicyError:
        return
    assert found == Published(address(found.place[0]), found.port, found.inside)
