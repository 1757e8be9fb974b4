"""What a rule's words open, by every engine; what is told of names. Drawn in networks.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import dns.rcode
import pytest
from tests.support.gateways import ENGINES, Gateway, Tunnel, between
from tests.support.networks import RESOLVER, Topology, serving

pytestmark = pytest.mark.namespaces

SSH = b"SSH-2.0-client\r\n"
PROXY = b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n"
RULES = [
    "allow api.example.com:443/tcp/unchecked",
    "allow api.example.com:3128/unchecked",
    "allow shared.example.com:8443",
    "allow b.example.com:443",
    "allow b.example.com:3128",
    "allow nowhere.example.com:443",
    "allow *:7000",
]


@pytest.fixture(scope="module")
def world(topology: Topology) -> Iterator[None]:
    def echo(stream: socket.socket) -> None:
        while data := stream.recv(65536):
            stream.sendall(data)

    places = [(a, p) for a in ("203.0.113.7", "203.0.113.8") for p in (443, 3128, 7000)]
    with serving(topology.world, (*places, (RESOLVER, 7000)), echo):
        yield


Started = tuple[Gateway, Tunnel]


@pytest.fixture(scope="module", params=ENGINES)
def around(request: pytest.FixtureRequest, topology: Topology, world: None) -> Iterator[Started]:
    with between(topology, 54000, request.param, rules=RULES) as made:
        yield made


@pytest.mark.parametrize(("port", "data"), [(443, SSH), (3128, PROXY), (443, b"\x10\x0eMQTT")])
def test_unchecked_lets_through_what_can_not_be_compared(
    around: Started, port: int, data: bytes
) -> None:
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    assert tunnel.talk("203.0.113.7", port, data) == data
    # The control: the same with a rule that has it compared; and its refusal names the word.
    tunnel.ask("b.example.com")
    gateway.drain()
    assert tunnel.talk("203.0.113.8", port, data) is None
    events = [gateway.event("flow") for _ in range(2)]
    assert [event["verdict"] for event in events] == ["allow", "refuse"], events
    assert events[1]["hint"] == f"b.example.com:{port}/tcp/unchecked"


def test_any_public_host_and_none_of_this_side(around: Started) -> None:
    _, tunnel = around
    assert tunnel.talk("203.0.113.8", 7000, b"hello") == b"hello"
    assert tunnel.talk(RESOLVER, 7000, b"hello") is None
    assert tunnel.ask("shared.example.com").rcode() == dns.rcode.NOERROR


def test_no_hint_advises_an_address_of_anybodys(around: Started) -> None:
    gateway, tunnel = around
    for address, port, hint in (
        ("203.0.113.9", 9, ""),
        ("169.254.169.254", 80, ""),
        ("192.168.1.1", 80, ""),
        ("10.99.0.1", 80, ""),
        ("10.99.0.9", 80, "--service 10.99.0.9:80=HOST:PORT"),
    ):
        if gateway.engine == "kernel" and address not in ("203.0.113.9", "10.99.0.1"):
            continue  # this topology has no way there, so it never comes to the rules
        gateway.drain()
        assert tunnel.talk(address, port) is None
        event = gateway.event("flow")
        assert (event["address"], event["hint"]) == (address, hint)


@pytest.mark.parametrize(
    ("name", "failure"),
    [("nowhere.example.com", "NXDOMAIN"), ("api.example.com", "")],
)
def test_a_name_that_is_not_found_is_told_once(around: Started, name: str, failure: str) -> None:
    gateway, tunnel = around
    gateway.drain()
    for kind in ("A", "AAAA", "A"):
        tunnel.ask(name, kind)
    told = gateway.told(lambda found: len(found) >= bool(failure))
    told = [event for event in told if event["event"] == "flow"]
    assert len(told) == (1 if failure else 0)
    for event in told:
        assert (event["verdict"], event["name"], event["hint"]) == ("fail", name, "")
        assert failure in event["reason"]


def test_a_dead_resolver_is_told(topology: Topology) -> None:
    dead = [f"{RESOLVER}:5999"]
    with between(topology, 54010, "namespace", rules=RULES, resolver=dead) as (gateway, tunnel):
        assert tunnel.ask("api.example.com").rcode() == dns.rcode.SERVFAIL
        event = gateway.event("flow")
        assert event["verdict"] == "fail" and event["reason"] == f"no answer from {RESOLVER}"


def test_a_dot_within_a_label_is_no_dot(topology: Topology) -> None:
    rules = ["allow *.example.com:443"]
    with between(topology, 54020, "namespace", rules=rules) as (gateway, tunnel):
        # The control: with the dot between two labels a rule names it.
        assert tunnel.ask("api.example.com").rcode() == dns.rcode.NOERROR
        gateway.drain()
        assert tunnel.ask("api\\.example.com").rcode() == dns.rcode.NXDOMAIN
        event = gateway.event("flow")
        assert (event["verdict"], event["hint"]) == ("refuse", "")
