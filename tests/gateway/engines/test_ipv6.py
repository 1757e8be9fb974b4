"""Both engines for a peer whose address in the tunnel is IPv6, to an IPv6 world.

The topology is drawn in networks.py; the outer tunnel is IPv4, as there.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

import dns.rcode
import pytest
from tests.support.gateways import ENGINES, SERVER, Gateway, Tunnel
from tests.support.networks import RESOLVER, Topology, serving

from wgcell.gateway.model.keys import generate_private_key, public_key

pytestmark = pytest.mark.namespaces

ALICE = generate_private_key()
WORLD = "2001:db8::7"
RULES = [
    "deny [2001:db8::7]:8081",
    "allow [2001:db8::/32]:8080-8082",
    "allow api.example.com:8443",
    "allow [2001:db8:1::2]:9000",
]


def echo(stream: socket.socket) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


@pytest.fixture(scope="module", params=ENGINES)
def around(request: pytest.FixtureRequest, topology: Topology) -> Iterator[tuple[Gateway, Tunnel]]:
    peer = {"public_key": public_key(ALICE), "address": "fd99::2", "port": 53000}
    config = {
        "listen": "192.0.2.1:53000",
        "private_key": SERVER,
        "address": "fd99::1",
        "rules": RULES,
        "resolver": [RESOLVER],
        "protected": ["2001:db8:1::/64"],
        "peers": {"alice": peer},
    }
    places = [(WORLD, port) for port in (8080, 8081, 8082, 8083, 8443)]
    places += [("2001:db8:1::2", port) for port in (8080, 9000)]
    argv = [request.param, "wgc53000"]
    with (
        serving(topology.world, places, echo),
        contextlib.closing(Gateway(config, topology.gateway.enter, argv)) as gateway,
    ):
        assert gateway.first["event"] == "ready", gateway.first
        tunnel = Tunnel(topology.client, "six", ALICE, "fd99::2", public_key(SERVER), 53000)
        with contextlib.closing(tunnel):
            yield gateway, tunnel


@pytest.mark.parametrize(
    ("address", "port", "passes"),
    [
        (WORLD, 8080, True),
        (WORLD, 8081, False),
        (WORLD, 8082, True),
        (WORLD, 8083, False),
        # A name's address without its name.
        (WORLD, 8443, False),
        # On this side: a network opens nothing, the very address does.
        ("2001:db8:1::2", 8080, False),
        ("2001:db8:1::2", 9000, True),
        ("fd99::1", 8080, False),
        ("fd00::7", 8080, False),
    ],
)
@pytest.mark.alone
def test_what_passes_and_what_is_refused_fast(
    around: tuple[Gateway, Tunnel], address: str, port: int, passes: bool
) -> None:
    begun = time.monotonic()
    answer = around[1].talk(address, port, b"hello")
    assert answer == (b"hello" if passes else None)
    assert time.monotonic() - begun < 2


def test_a_name_leads_to_its_ipv6_address_and_is_compared(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    assert tunnel.ask("attacker.example", "AAAA").rcode() == dns.rcode.NXDOMAIN
    assert WORLD in tunnel.ask("api.example.com", "AAAA").answer[-1].to_text()
    gateway.drain()
    assert tunnel.talk(WORLD, 8443, b"hello") == b"hello"
    event = gateway.event("flow")
    assert (event["address"], event["name"]) == (WORLD, "api.example.com")
    context = ssl.create_default_context()
    with tunnel.connect(WORLD, 8443) as stream, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(stream, server_hostname="evil.example")
    assert gateway.event("flow")["verdict"] == "allow"
    refused = gateway.event("flow")
    assert (refused["verdict"], refused["host"]) == ("refuse", "evil.example")


def test_a_kernel_answers_a_ping(around: tuple[Gateway, Tunnel]) -> None:
    """The embedded one's TCP/IP answers those of IPv4 only."""
    gateway, tunnel = around
    if gateway.engine == "embedded":
        return
    raw = tunnel.net.socket(socket.SOCK_RAW, socket.AF_INET6, socket.IPPROTO_ICMPV6)
    with raw:
        raw.bind((tunnel.address, 0))
        raw.sendto(b"\x80\0\0\0\0\1\0\1hello", ("fd99::1", 0))  # RFC 4443, section 4.1
        while (answer := raw.recv(100))[0] != 129:
            pass
    assert answer.endswith(b"hello")


def test_udp_passes_and_is_refused(around: tuple[Gateway, Tunnel], topology: Topology) -> None:
    gateway, tunnel = around
    with topology.world.socket(socket.SOCK_DGRAM, socket.AF_INET6) as target:
        target.bind((WORLD, 8082))
        target.settimeout(4)
        with tunnel.net.socket(socket.SOCK_DGRAM, socket.AF_INET6) as sock:
            sock.bind((tunnel.address, 0))
            sock.sendto(b"ping", (WORLD, 8082))
            data, source = target.recvfrom(100)
            target.sendto(data + b"pong", source)
            assert sock.recv(100) == b"pingpong"
            sock.sendto(b"ping", (WORLD, 8083))
            target.settimeout(0.3)
            with pytest.raises(TimeoutError):
                target.recv(100)
    if gateway.engine == "embedded":
        return
    # RFC 4443, section 3.1: administratively prohibited, which Linux calls EACCES; no such port.
    for port, error in ((8083, PermissionError), (8082, ConnectionRefusedError)):
        with tunnel.net.socket(socket.SOCK_DGRAM, socket.AF_INET6) as sock:
            sock.bind((tunnel.address, 0))
            sock.connect((WORLD, port))
            sock.send(b"ping")
            with pytest.raises(error):
                sock.recv(100)
