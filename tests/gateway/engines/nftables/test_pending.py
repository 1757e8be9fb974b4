"""``connect()`` succeeds only after the target's did: by every engine that can.

The embedded engine can not: mitmproxy_rs accepts before it asks. It is the control, which shows
that a connection that succeeds too early would be seen. The topology is drawn in networks.py.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from tests.support.bytepeer import checksum
from tests.support.gateways import Gateway, Tunnel, between, changed
from tests.support.networks import RESOLVER, Server, Topology, serving
from tests.support.waiting import lull, pace

pytestmark = pytest.mark.namespaces

HOLDING = ("namespace", "kernel")
DEAD, CLOSED, OPEN = 7777, 7778, 7779
"""Ports: packets to it are lost; nothing listens; something does."""
RULES = [
    *(f"allow api.example.com:{port}" for port in (DEAD, CLOSED, OPEN)),
    f"allow b.example.com:{OPEN}",
    f"allow nowhere.example.com:{OPEN}",
]
SERVICES = {"10.99.0.5:80": f"{RESOLVER}:{OPEN}", "10.99.0.5:81": f"{RESOLVER}:{CLOSED}"}
LOST = "add table inet lost; add chain inet lost in { type filter hook input priority 0; }; "
LOST += f"add rule inet lost in tcp dport {DEAD} drop"


def _echo(stream: socket.socket) -> None:
    stream.sendall(stream.recv(100))


@contextlib.contextmanager
def lost(topology: Topology) -> Iterator[None]:
    topology.world.run("nft", LOST)
    try:
        yield
    finally:
        topology.world.run("nft", "delete table inet lost", check=False)


@pytest.fixture(scope="module")
def world(topology: Topology) -> Iterator[None]:
    places = [(address, OPEN) for address in ("203.0.113.7", RESOLVER)]
    with serving(topology.world, places, _echo), lost(topology):
        yield


Started = tuple[Gateway, Tunnel]


@pytest.fixture(scope="module", params=HOLDING)
def around(request: pytest.FixtureRequest, topology: Topology, world: None) -> Iterator[Started]:
    with between(topology, 53000, request.param, rules=RULES, services=SERVICES) as made:
        yield made


def connected(tunnel: Tunnel, address: str, port: int, within: float) -> int | None:
    """The errno of a connect(); None if it has neither failed nor succeeded by then."""
    with tunnel.net.socket() as sock:
        sock.setblocking(False)
        sock.bind((tunnel.address, 0))
        assert sock.connect_ex((address, port)) == errno.EINPROGRESS
        if not select.select([], [sock], [], within)[1]:
            return None
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_a_connection_that_comes_too_early_is_seen(topology: Topology, world: None) -> None:
    """The control: the engine that can't, and the same probes."""
    with between(topology, 53010, "embedded", rules=RULES) as (_, tunnel):
        tunnel.ask("api.example.com")
        assert connected(tunnel, "203.0.113.7", DEAD, 4) == 0
        assert connected(tunnel, "203.0.113.7", CLOSED, 4) == 0


def test_it_succeeds_when_the_targets_does(around: Started) -> None:
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    assert connected(tunnel, "203.0.113.7", CLOSED, 4) == errno.ECONNREFUSED
    assert connected(tunnel, "203.0.113.7", DEAD, 0.5) is None
    assert connected(tunnel, "203.0.113.7", OPEN, 4) == 0
    assert tunnel.talk("203.0.113.7", OPEN, b"hello") == b"hello"
    ends = [gateway.event("flow_end") for _ in range(2)]
    assert f"target 203.0.113.7:{CLOSED}: Connection refused" in [end["reason"] for end in ends]


def test_a_target_to_which_no_way_leads(topology: Topology, around: Started) -> None:
    _, tunnel = around
    tunnel.ask("b.example.com")
    topology.gateway.run("ip", "route", "add", "unreachable", "203.0.113.8")
    try:
        assert connected(tunnel, "203.0.113.8", OPEN, 4) == errno.EHOSTUNREACH
    finally:
        topology.gateway.run("ip", "route", "del", "unreachable", "203.0.113.8")


def test_a_target_that_comes_up_meanwhile(topology: Topology, around: Started) -> None:
    """The peer sends its SYN again meanwhile: it is one flow, and told once."""

    def come_up() -> None:
        pace(1.5)
        topology.world.run("nft", "delete table inet lost")

    gateway, tunnel = around
    tunnel.ask("api.example.com")
    late = Server(topology.world, "203.0.113.7", DEAD, lambda stream: stream.sendall(b"late"))
    try:
        gateway.drain()
        up = threading.Thread(target=come_up, daemon=True)
        up.start()
        with tunnel.connect("203.0.113.7", DEAD, timeout=9) as stream:
            assert stream.recv(10) == b"late"
        up.join()
        gateway.event("flow_end")
        assert [event for event in gateway.drain() if event["event"] == "flow"] == []
    finally:
        late.close()
        topology.world.run("nft", LOST, check=False)


def test_a_service_that_is_dead_is_refused_and_told_as_not_reached(around: Started) -> None:
    gateway, tunnel = around
    assert tunnel.talk("10.99.0.5", 80, b"hello") == b"hello"
    gateway.event("flow_end")
    assert connected(tunnel, "10.99.0.5", 81, 4) == errno.ECONNREFUSED
    assert gateway.event("flow")["verdict"] == "allow"
    told = gateway.event("flow_end")
    why = f"service {RESOLVER}:{CLOSED}: Connection refused"
    assert (told["verdict"], told["reason"]) == ("fail", why)
    assert [event for event in gateway.drain() if event["event"] == "flow"] == []


def test_a_flow_that_waits_ends_with_another_policy(around: Started) -> None:
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    with tunnel.net.socket() as sock:
        sock.setblocking(False)
        sock.bind((tunnel.address, 0))
        sock.connect_ex(("203.0.113.7", DEAD))
        gateway.event("flow")
        with changed(gateway, rules=["deny api.example.com:*"]):
            assert select.select([], [sock], [], 4)[1]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


_SOURCES = itertools.count(20000)


def _segment(tunnel: Tunnel, flags: int, port: int, data: bytes = b"") -> bytes:
    head = struct.pack(">HHIIBBHHH", next(_SOURCES), port, 1, 0, 0x50, flags, 65535, 0, 0) + data
    ends = socket.inet_aton(tunnel.address) + socket.inet_aton("203.0.113.7")
    total = checksum(ends + struct.pack(">HH", 6, len(head)) + head)
    return head[:16] + struct.pack(">H", total) + head[18:]


@pytest.mark.parametrize("flags", [0x03, 0x06, 0x10, 0x00, 0x29], ids=hex)
def test_what_is_no_syn_is_not_held(around: Started, flags: int) -> None:
    """SYN with FIN, SYN with RST, a stray ACK, no flag, all of them: nothing comes of it."""
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    gateway.drain()
    with tunnel.net.socket(socket.SOCK_RAW, protocol=socket.IPPROTO_TCP) as raw:
        raw.bind((tunnel.address, 0))
        raw.sendto(_segment(tunnel, flags, OPEN), ("203.0.113.7", 0))
        # The control: the same with SYN alone is a flow, even with data in it.
        raw.sendto(_segment(tunnel, 0x02, OPEN, b"early"), ("203.0.113.7", 0))
        assert gateway.event("flow")["port"] == OPEN
        lull(0.1)
        assert [event for event in gateway.drain() if event["event"] == "flow"] == []


def test_a_machine_that_drops_what_its_routes_expect_elsewhere() -> None:
    """rp_filter of 1 everywhere: the kernel engine's SYN comes back by the loopback interface."""
    strict = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done"
    with contextlib.closing(Topology()) as topology, contextlib.ExitStack() as ending:
        places = [(address, OPEN) for address in ("203.0.113.7", RESOLVER)]
        ending.enter_context(serving(topology.world, places, _echo))
        topology.gateway.run("sh", "-c", strict)
        with between(topology, 53020, "kernel", rules=RULES, services=SERVICES) as (_, tunnel):
            tunnel.ask("api.example.com")
            assert tunnel.talk("203.0.113.7", OPEN, b"hello") == b"hello"
            assert tunnel.talk("10.99.0.5", 80, b"hello") == b"hello"
            assert "fwmark" in topology.gateway.run("ip", "rule")
        assert "fwmark" not in topology.gateway.run("ip", "rule")
        mark = "/proc/sys/net/ipv4/conf/lo/src_valid_mark"
        assert topology.gateway.run("cat", mark).strip() == "0"
