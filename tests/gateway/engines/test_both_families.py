"""A gateway with an address of IPv4 and one of IPv6 in the tunnel, as a cell's own has, in each
engine: one peer with both, to a world of both.

The topology is drawn in networks.py. The gateway's way to IPv6 leads to 2001:db8::7 and no further.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest
from tests.support.gateways import ENGINES, SERVER, Gateway, Tunnel
from tests.support.networks import NO_DAD, RESOLVER, Topology, serving
from tests.support.waiting import until

from wgcell.gateway.model.keys import generate_private_key, public_key

pytestmark = pytest.mark.namespaces

ALICE = generate_private_key()
FOUR, SIX = "203.0.113.7", "2001:db8::7"
RULES = [
    f"allow [{SIX}]:8080",
    f"allow {FOUR}:8080",
    "allow 203.0.113.0/24:8082",
    "allow [2001:db8::/48]:8082",
    "allow api.example.com:8443",
    # No test asks for this name, so that none opens what it must not open, whatever their order.
    "allow www.example.com:8444",
    "allow far.example.com:8443",
    "allow farther.example.com:8443",
]
PEER = {
    "public_key": public_key(ALICE),
    "address": "10.99.0.2",
    "address6": "fd99::2",
    "port": 53100,
}
CONFIG = {
    "listen": "192.0.2.1:53100",
    "private_key": SERVER,
    "address": "10.99.0.1",
    "address6": "fd99::1",
    "rules": RULES,
    "services": {"[fd99::5]:80": "198.51.100.2:9100", "10.99.0.5:80": "198.51.100.2:9100"},
    "resolver": [RESOLVER],
    "peers": {"alice": PEER},
}


def echo(stream: socket.socket) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


@pytest.fixture(scope="module", params=ENGINES)
def around(request: pytest.FixtureRequest, topology: Topology) -> Iterator[tuple[Gateway, Tunnel]]:
    places = [(address, port) for address in (FOUR, SIX) for port in (8080, 8081, 8082, 8443, 8444)]
    with contextlib.ExitStack() as ending:
        ending.enter_context(serving(topology.world, (*places, ("198.51.100.2", 9100)), echo))
        gateway = Gateway(CONFIG, topology.gateway.enter, [request.param, "wgc53100"])
        ending.enter_context(contextlib.closing(gateway))
        assert gateway.first["event"] == "ready", gateway.first
        key = public_key(SERVER)
        tunnel = Tunnel(topology.client, "both", ALICE, "10.99.0.2", key, 53100, also="fd99::2")
        ending.enter_context(contextlib.closing(tunnel))
        yield gateway, tunnel


@pytest.mark.parametrize(
    ("address", "port", "passes"),
    [
        (FOUR, 8080, True),
        (SIX, 8080, True),
        (FOUR, 8081, False),
        (SIX, 8081, False),
        (FOUR, 8082, True),
        (SIX, 8082, True),
        # A name's address without its name.
        (SIX, 8444, False),
        ("10.99.0.5", 80, True),
        ("fd99::5", 80, True),
        ("fd99::1", 8080, False),
        ("fd99::2", 8080, False),
        ("fd00::7", 8080, False),
        # No rule, and a rule without a way.
        ("2001:db8:f::1", 8080, False),
        ("2001:db8:0:1::1", 8082, False),
    ],
)
def test_what_passes_and_what_is_refused(
    around: tuple[Gateway, Tunnel], address: str, port: int, passes: bool
) -> None:
    if address == "fd99::2":
        return  # its own: the peer's kernel keeps it
    assert around[1].talk(address, port, b"hello") == (b"hello" if passes else None)


@pytest.mark.parametrize(("address", "port"), [(FOUR, 8082), (SIX, 8082)])
def test_datagrams_pass(
    around: tuple[Gateway, Tunnel], topology: Topology, address: str, port: int
) -> None:
    family, own = around[1].own(address)
    with topology.world.socket(socket.SOCK_DGRAM, family) as target:
        target.bind((address, port))
        with topology.client.socket(socket.SOCK_DGRAM, family) as sock:
            sock.bind((own, 0))
            sock.sendto(b"ping", (address, port))
            data, source = target.recvfrom(100)
            target.sendto(data + b"pong", source)
            assert sock.recv(100) == b"pingpong"


@pytest.mark.parametrize("resolver", ["10.99.0.1", "fd99::1"])
def test_the_resolver_answers_at_both(around: tuple[Gateway, Tunnel], resolver: str) -> None:
    tunnel = around[1]
    raw = dns.message.make_query("api.example.com", "AAAA").to_wire()
    answer = tunnel.datagram(resolver, 53, raw)
    assert answer is not None
    assert SIX in dns.message.from_wire(answer).answer[-1].to_text()
    with tunnel.connect(resolver, 53) as stream:
        stream.sendall(len(raw).to_bytes(2, "big") + raw)
        assert SIX in dns.message.from_wire(stream.recv(65536)[2:]).answer[-1].to_text()


def test_a_name_leads_to_both_and_is_compared_in_both(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    for kind, address in (("A", FOUR), ("AAAA", SIX)):
        assert address in tunnel.ask("api.example.com", kind).answer[-1].to_text()
        assert tunnel.talk(address, 8443, b"hello") == b"hello"
        context = ssl.create_default_context()
        with (
            tunnel.connect(address, 8443) as stream,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(stream, server_hostname="evil.example")
        until(lambda: gateway.event("flow").get("host") == "evil.example")


def test_an_address_without_a_way_is_not_told(around: tuple[Gateway, Tunnel]) -> None:
    """Whoever is told one tries it first, and waits. One of IPv4 is told, be there a way or not."""
    tunnel = around[1]
    assert FOUR in tunnel.ask("far.example.com", "A").answer[-1].to_text()
    for name in ("far.example.com", "farther.example.com"):
        answer = tunnel.ask(name, "AAAA", use_edns=0)
        assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
        assert "no way" in str(answer.options[0])


def test_another_source_of_either_family_is_refused(
    around: tuple[Gateway, Tunnel], topology: Topology
) -> None:
    tunnel = around[1]
    for own, target in (("fd99::3", SIX), ("10.99.0.3", FOUR)):
        family, length = (socket.AF_INET6, 128) if ":" in own else (socket.AF_INET, 32)
        ip = "-6" if ":" in own else "-4"
        topology.client.run(
            "ip", "addr", "add", f"{own}/{length}", "dev", "both", *NO_DAD[":" in own]
        )
        topology.client.run("ip", ip, "rule", "add", "from", own, "table", tunnel.table)
        try:
            with topology.client.socket(family=family) as sock:
                sock.settimeout(2)
                sock.bind((own, 0))
                with pytest.raises(OSError, match=r"timed out|reset|ended"):
                    sock.connect((target, 8080))
                    sock.sendall(b"hello")
                    raise ConnectionError("ended" if not sock.recv(100) else "answered")
        finally:
            topology.client.run("ip", ip, "rule", "del", "from", own, "table", tunnel.table)
            topology.client.run("ip", "addr", "del", f"{own}/{length}", "dev", "both")


def test_a_second_address_that_is_taken_back_leads_nowhere(
    around: tuple[Gateway, Tunnel],
) -> None:
    gateway, tunnel = around
    without = {key: value for key, value in PEER.items() if key != "address6"}
    assert tunnel.talk(SIX, 8080, b"hello") == b"hello"
    try:
        gateway.tell({**CONFIG, "peers": {"alice": without}})
        gateway.event("applied")
        # The embedded engine's own server is started anew, and the session with it.
        until(lambda: tunnel.datagram("10.99.0.1", 53, b"", 0.1) is None)
        until(lambda: _answers(tunnel, FOUR))
        assert not _answers(tunnel, SIX)
    finally:
        gateway.tell(CONFIG)
        gateway.event("applied")
    until(lambda: _answers(tunnel, SIX))


def _answers(tunnel: Tunnel, address: str) -> bool:
    try:
        return tunnel.talk(address, 8080, b"hello") == b"hello"
    except OSError:
        return False
