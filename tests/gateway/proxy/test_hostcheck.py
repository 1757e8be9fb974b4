"""The host that first bytes ask for: real TLS hellos, HTTP heads, and everything else."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.gateway.proxy.hostcheck import LONGEST_HEAD, check

NAMES = ("cdn.example.com", "api.example.com")


def client_hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


HELLO = client_hello("api.example.com")
LONG = b"\x16\x03\x01\0\0" + b"\x01\x00\xf0\x00" + bytes(60_000)
"""Begins as a handshake of 61,440 bytes, which would take some time to be read byte by byte."""


SSL2 = b"\x80\x2e\x01\x03\x01" + bytes(43)


def with_extension(extension: bytes) -> bytes:
    """`HELLO` with one more, which is first."""
    body = HELLO[9:]
    at = 2 + 32
    for width in (1, 2, 1):
        at += width + int.from_bytes(body[at : at + width], "big")
    size = int.from_bytes(body[at : at + 2], "big") + len(extension)
    body = body[:at] + size.to_bytes(2, "big") + extension + body[at + 2 :]
    hello = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello


def http(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def records(hello: bytes, size: int) -> bytes:
    """The same handshake in records of ``size`` bytes."""
    body = hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


@pytest.mark.parametrize(
    ("data", "port", "kind", "host", "refusal"),
    [
        (HELLO, 443, "tls", "api.example.com", ""),
        (HELLO, 8443, "tls", "api.example.com", ""),
        (records(HELLO, 16), 443, "tls", "api.example.com", ""),
        (records(LONG, 1)[: 6 * 129], 443, "tls", "", "in more than 128 records"),
        (client_hello("CDN.example.com"), 443, "tls", "cdn.example.com", ""),
        (client_hello("other.example.com"), 443, "tls", "other.example.com", "asks for other.exam"),
        (client_hello(None), 443, "tls", "", "asks for no host"),
        (HELLO[:5] + b"\x02" + HELLO[6:], 443, "tls", "", "malformed"),
        (b"\x16\x03\x01\x00\x00", 443, "tls", "", "malformed"),
        (http("GET / HTTP/1.1", "Host: api.example.com"), 80, "http", "api.example.com", ""),
        (http("GET / HTTP/1.1", "host:API.example.com:80"), 80, "http", "api.example.com", ""),
        (http("\r\nGET / HTTP/1.1", "Host: api.example.com"), 80, "http", "api.example.com", ""),
        (http("GET / HTTP/1.1", "Host: evil.example"), 80, "http", "evil.example", "asks for evil"),
        (http("GET / HTTP/1.1", "Host: evil.example"), 9, "http", "evil.example", "asks for evil"),
        (http("GET / HTTP/1.0"), 80, "http", "", "asks for no host"),
        (http("GET / HTTP/1.1", *["Host: api.example.com"] * 2), 80, "http", "", "two Host"),
        (http("GET / HTTP/1.1", "Host : api.example.com"), 80, "http", "", "malformed"),
        (http("GET / HTTP/1.1", "Host: a", " b"), 80, "http", "", "malformed"),
        (
            http("GET http://evil.example/ HTTP/1.1", "Host: api.example.com"),
            *(80, "http", "", "its target is not its Host"),
        ),
        (
            http("GET http://api.example.com/ HTTP/1.1", "Host: api.example.com"),
            *(80, "http", "api.example.com", ""),
        ),
        (
            http("CONNECT evil.example:443 HTTP/1.1", "Host: api.example.com"),
            *(80, "http", "", "its target is not its Host"),
        ),
        (http("PRI * HTTP/2.0", "", "SM"), 80, "http", "", "HTTP/2 without TLS"),
        (
            http("BREW / HTTP/1.1", "Host: evil.example"),
            80,
            "http",
            "evil.example",
            "asks for evil",
        ),
        (http("hello"), 80, "http", "", "malformed"),
        (b"SSH-2.0-x\r\n", 443, "other", "", "not TLS, on port 443"),
        (b"SSH-2.0-x\r\n", 22, "other", "", ""),
        (b"\x00\x01", 9000, "other", "", ""),
        # Another method, on another port: also such as are not registered, and in lower case.
        *(
            (
                http(f"{method} / HTTP/1.1", "Host: evil.example"),
                9000,
                "http",
                "evil.example",
                "asks",
            )
            for method in ("PROPFIND", "M-SEARCH", "BREW", "get", "x!y")
        ),
        (http("PROPFIND / HTTP/1.1", "Host: api.example.com"), 9000, "http", "api.example.com", ""),
        (b"EHLO example.com\r\n", 9000, "other", "", ""),
        (b"hello", 9000, "other", "", ""),
        (b"JDWP-Handshake", 9000, "other", "", ""),
        # The forms of a hello that name no host, or name it where nobody can see it.
        (SSL2, 9000, "tls", "", "SSL 2"),
        (SSL2[:3] + b"\x00\x02" + SSL2[5:], 9000, "tls", "", "SSL 2"),
        (b"\x80\x2e\x04\x03\x01", 9000, "other", "", ""),
        (with_extension(b"\xfe\x0d\x00\x01\x01"), 8443, "tls", "", "inner hello"),
        (with_extension(b"\xfe\x0d\x00\x01\x00"), 8443, "tls", "api.example.com", ""),
        (b"GET " + b"a" * LONGEST_HEAD, 80, "http", "", "no end"),
        (b"\x16\x03\x01\x40\x00\x01\x0f\xff\xff" + b"a" * LONGEST_HEAD, 443, "tls", "", "too long"),
    ],
)
def test_table(data: bytes, port: int, kind: str, host: str, refusal: str) -> None:
    seen = check(data, NAMES, port)
    assert seen is not None
    assert (seen.kind, seen.host) == (kind, host)
    assert refusal in seen.refusal if refusal else not seen.refusal


@pytest.mark.parametrize(
    ("data", "port", "unchecked"),
    [
        (HELLO, 443, False),
        (client_hello("other.example.com"), 443, False),
        (http("GET / HTTP/1.1", "Host: evil.example"), 80, False),
        (client_hello(None), 8443, True),
        (b"SSH-2.0-x\r\n", 443, True),
        (b"\x10\x0e\x00\x04MQTT", 443, True),
        (http("PRI * HTTP/2.0", "", "SM"), 8080, True),
        (http("CONNECT evil.example:443 HTTP/1.1", "Host: evil.example:443"), 3128, True),
        (http("GET http://evil.example/ HTTP/1.1", "Host: evil.example"), 3128, True),
        (SSL2, 9000, True),
    ],
)
def test_what_can_not_be_compared_needs_the_word_that_says_so(
    data: bytes, port: int, unchecked: bool
) -> None:
    seen = check(data, NAMES, port)
    assert seen is not None and seen.unchecked is unchecked
    assert seen.refusal or not unchecked


@pytest.mark.parametrize("data", [HELLO, http("GET / HTTP/1.1", "Host: api.example.com")])
def test_no_prefix_is_judged_before_it_is_whole(data: bytes) -> None:
    for port in (80, 443, 9000):
        for length in range(len(data)):
            seen = check(data[:length], NAMES, port)
            # On the other's port nothing but the whole is either.
            assert seen is None or (port == 80 and data is HELLO), (port, length)


@settings(max_examples=examples(400), deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.tuples(st.integers(0, len(HELLO) - 1), st.integers(0, 255)), max_size=6).map(
        lambda changes: bytes(dict(changes).get(i, byte) for i, byte in enumerate(HELLO))
    )
    | st.binary(max_size=100).map(lambda tail: b"GET / HTTP/1.1\r\nHost: " + tail),
    st.sampled_from([80, 443, 9000]),
)
def test_no_bytes_raise_and_what_passes_asks_for_a_name(data: bytes, port: int) -> None:
    seen = check(data, NAMES, port)
    if seen is not None and not seen.refusal:
        assert seen.host in NAMES or (seen.kind == "other" and port == 9000)


LINES = [
    b"GET / HTTP/1.1",
    b"GET  /  HTTP/1.1",
    b"GET\t/ HTTP/1.1",
    b"GET /a b HTTP/1.1",
    b"GET\x0b/\x0cHTTP/1.1",
    b" GET / HTTP/1.1",
    b"PROPFIND  * HTTP/1.1",
    b"GET http://evil.example.com/ HTTP/1.1",
    b"OPTIONS evil.example.com:443 HTTP/1.1",
    b"GET /caf\xc3\xa9 HTTP/1.0",
    b"GET http://evil.example.com/",  # HTTP/0.9, of which nginx still takes the host
    b"GET /",
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_what_is_refused_as_a_whole_does_not_pass_in_pieces(line: bytes, end: bytes) -> None:
    """What was let go is never looked at again, so where a client cuts must change nothing."""
    whole = line + end + b"Host: evil.example.com" + end + end
    for cut in range(1, len(whole)):
        seen = check(whole[:cut], NAMES, 9000)
        assert seen is None or seen.refusal, whole[:cut]


@pytest.mark.parametrize("method", ["get", "x!y", "Get"])
def test_a_method_of_small_letters_is_held_from_its_space_on(method: str) -> None:
    whole = http(f"{method}  / HTTP/1.1", "Host: evil.example.com")
    for cut in range(len(method) + 1, len(whole)):
        seen = check(whole[:cut], NAMES, 9000)
        assert seen is None or seen.refusal, whole[:cut]


@given(
    method=st.sampled_from(["GET", "POST", "PROPFIND", "X-Y"]),
    spaces=st.lists(st.text(" \t", min_size=1, max_size=3), min_size=2, max_size=2),
    target=st.text("/:.aZ%?é ", min_size=1, max_size=12).map(str.strip).filter(bool),
    cut=st.integers(1, 40),
)
def test_no_piece_of_a_request_passes(
    method: str, spaces: list[str], target: str, cut: int
) -> None:
    first = f"{method}{spaces[0]}{target}{spaces[1]}HTTP/1.1\r\n"
    whole = f"{first}Host: evil.example.com\r\n\r\n".encode()
    seen = check(whole[:cut], NAMES, 9000)
    assert seen is None or seen.refusal
    seen = check(whole, NAMES, 9000)
    assert seen is not None and seen.refusal
