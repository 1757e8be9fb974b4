"""One suite against every engine: real WireGuard peers, a real DNS server, real packets.

The topology is drawn in networks.py. ``embedded`` is mitmproxy_rs (boringtun) without root,
``kernel`` is WireGuard of the kernel's or wireguard-go, and nftables.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
from tests.support.gateways import ENGINES, SERVER, Gateway, Tunnel
from tests.support.networks import RESOLVER, Topology, serving
from tests.support.waiting import GENEROUS, alive, lull, pace, until

from wgcell.gateway.model.keys import generate_private_key, public_key

pytestmark = pytest.mark.namespaces

ALICE, BOB, CAROL, DAVE = (generate_private_key() for _ in range(4))
PRESHARED = generate_private_key()
PACE = 400_000
"""Bytes a second, both ways together."""
RULES = [
    "deny 203.0.113.7:8081",
    "allow 203.0.113.7:8080-8082/tcp",
    "allow 203.0.113.8:9000/udp",
    "allow 203.0.113.8:51820/udp",
    "allow api.example.com:8443",
    "allow *.example.com:9443",
    "deny b.example.com:8444",
    "allow b.example.com:*",
    "allow 0.0.0.0/0:7000",
    "allow 198.51.100.2:7001",
]
PEERS = {
    "alice": {"public_key": public_key(ALICE), "address": "10.99.0.2", "port": 51821},
    "bob": {
        "public_key": public_key(BOB),
        "address": "10.99.0.3",
        "port": 51822,
        "rules": ["allow 203.0.113.8:5000", "deny 203.0.113.7:8080"],
        "limits": {"flows": 3},
    },
    "carol": {
        "public_key": public_key(CAROL),
        "address": "10.99.0.4",
        "port": 51823,
        "limits": {"bytes_per_second": PACE},
    },
}
PORTS = (5000, 7000, 8080, 8081, 8082, 8083, 8443, 8444, 9443)


class Around:
    """An engine between two peers and the world."""

    def __init__(self, engine: str, topology: Topology) -> None:
        self.engine, self.topology = engine, topology
        self.config: dict[str, Any] = {
            "listen": "0.0.0.0:51820",
            "private_key": SERVER,
            "rules": RULES,
            # The latter's port is also one of the engines' own, at another address.
            "services": {
                "10.99.0.5:80": "198.51.100.2:7002",
                "10.99.0.5:5183": "198.51.100.2:7002",
            },
            "resolver": [RESOLVER],
            "protected": ["198.51.100.0/24"],
            "peers": PEERS,
        }
        argv = [engine, "wgcell0"]
        if engine != "embedded":
            dave = {"public_key": public_key(DAVE), "address": "10.99.0.6", "port": 51824}
            dave |= {"preshared_key": PRESHARED}
            self.config |= {"peers": PEERS | {"dave": dave}}
        for name in ("time_wait", "close", "last_ack", "fin_wait", "close_wait"):
            setting = f"/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}"
            topology.gateway.run("sh", "-c", f"echo 1 > {setting}")
        # To one place Linux says six of them at once, then one a second: the server's own setting.
        topology.gateway.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit")
        with contextlib.ExitStack() as ending:
            gateway = Gateway(self.config, topology.gateway.enter, argv)
            self.gateway = ending.enter_context(contextlib.closing(gateway))
            assert self.gateway.first["event"] == "ready", self.gateway.first
            self.ports = self.gateway.first["peers"]
            self.alice, self.bob = (
                ending.enter_context(
                    contextlib.closing(
                        Tunnel(
                            *(topology.client, name, private_key, address),
                            *(public_key(SERVER), self.ports[name]),
                        )
                    )
                )
                for name, private_key, address in (
                    ("alice", ALICE, "10.99.0.2"),
                    ("bob", BOB, "10.99.0.3"),
                )
            )
            self._ending = ending.pop_all()

    def run(self, *argv: str) -> str:
        """A tool, in the network where the tunnel ends; the embedded engine has none."""
        return self.topology.gateway.run(*self.gateway.inside(), *argv)

    def flows(self, least: int = 0, **fields: object) -> list[dict[str, Any]]:
        """The events since the last time, once there are ``least`` flows with these fields."""

        def enough(found: list[dict[str, Any]]) -> bool:
            alike = [e for e in found if e["event"] == "flow" and fields.items() <= e.items()]
            return len(alike) >= least

        return self.gateway.told(enough)

    def close(self) -> None:
        self._ending.close()


def wireguard_go(gateway: Gateway) -> int:
    """Its process."""
    found: list[int] = []
    for thread in Path(f"/proc/{gateway.process.pid}/task").iterdir():
        found += map(int, (thread / "children").read_text().split())
    if not found:
        pytest.skip("this kernel has WireGuard of its own")
    return found[0]


def echo(stream: socket.socket) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


@pytest.fixture(scope="module")
def world(topology: Topology) -> Iterator[None]:
    places = [(address, port) for address in ("203.0.113.7", "203.0.113.8") for port in PORTS]
    places += [(RESOLVER, port) for port in (7000, 7001, 7002)]
    with serving(topology.world, places, echo):
        yield


@pytest.fixture(scope="module", params=ENGINES)
def around(request: pytest.FixtureRequest, topology: Topology, world: None) -> Iterator[Around]:
    made = Around(request.param, topology)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("peer", "address", "port", "passes"),
    [
        ("alice", "203.0.113.7", 8080, True),
        ("alice", "203.0.113.7", 8081, False),
        ("alice", "203.0.113.7", 8082, True),
        ("alice", "203.0.113.7", 8083, False),
        ("alice", "203.0.113.8", 8080, False),
        ("alice", "203.0.113.8", 5000, False),
        ("alice", "203.0.113.7", 7000, True),
        # On this side: a CIDR opens nothing, the very address does.
        ("alice", RESOLVER, 7000, False),
        ("alice", RESOLVER, 7001, True),
        ("alice", "192.168.1.1", 7000, False),
        ("alice", "198.51.100.1", 7000, False),
        ("alice", "10.99.0.1", 7000, False),
        ("alice", "10.99.0.3", 7000, False),
        # Where the kernel engine has hosts compared: open to what it turns there alone.
        ("alice", "10.99.0.1", 5183, False),
        # A name's address without its name.
        ("alice", "203.0.113.7", 8443, False),
        ("alice", "203.0.113.7", 9443, False),
        ("alice", "10.99.0.5", 80, True),
        ("alice", "10.99.0.5", 81, False),
        ("alice", "10.99.0.5", 5183, True),
        ("alice", "10.99.0.1", 5183, False),
        ("bob", "203.0.113.8", 5000, True),
        ("bob", "203.0.113.7", 8080, False),
        ("bob", "203.0.113.7", 8082, True),
    ],
)
@pytest.mark.alone
def test_what_passes_and_what_is_refused_fast(
    around: Around, peer: str, address: str, port: int, passes: bool
) -> None:
    begun = time.monotonic()
    answer = getattr(around, peer).talk(address, port, b"hello")
    assert answer == (b"hello" if passes else None)
    assert time.monotonic() - begun < 2


@pytest.mark.alone
def test_a_refused_flow_is_told_so_in_the_networks_own_words(around: Around) -> None:
    """A reset, "administratively prohibited", NXDOMAIN; of the embedded engine see test_door.py."""
    assert around.alice.ask("attacker.example").rcode() == dns.rcode.NXDOMAIN
    if around.engine == "embedded":
        return
    begun = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        around.alice.connect("203.0.113.7", 8083)
    with around.alice.net.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((around.alice.address, 0))
        for place in 4 * (("203.0.113.8", 9001), ("10.99.0.1", 9001), (RESOLVER, 53)):
            sock.connect(place)
            sock.send(b"ping")
            with pytest.raises(OSError, match="No route to host"):
                sock.recv(100)
    with around.alice.net.socket(socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP) as raw:
        raw.bind((around.alice.address, 0))
        around.flows()
        raw.sendto(b"\x08\0\xf7\xfd\0\1\0\1", ("203.0.113.7", 0))  # an echo request, RFC 792
        while raw.recv(100)[20:22] != b"\x03\x0d":  # type and code, behind the IP header
            pass
        (told,) = [
            flow for flow in around.flows(1, protocol="icmp") if flow.get("protocol") == "icmp"
        ]
        assert (told["verdict"], told["hint"]) == ("refuse", "")
    assert time.monotonic() - begun < 2


def test_an_allowed_datagram_to_a_dead_port_is_told_so(around: Around) -> None:
    if around.engine == "embedded":  # it can't
        return
    with around.alice.net.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((around.alice.address, 0))
        sock.connect(("203.0.113.8", 9000))
        for _ in range(2):
            sock.send(b"ping")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)


def test_an_address_is_reached_by_the_name_that_led_to_it(around: Around) -> None:
    assert around.bob.talk("203.0.113.7", 8443) is None
    answer = around.bob.ask("api.example.com")
    assert "203.0.113.7" in answer.answer[-1].to_text()
    assert around.bob.talk("203.0.113.7", 8443, b"hello") == b"hello"
    # Only on the rule's port, only for who asked.
    assert around.bob.talk("203.0.113.7", 8083) is None
    assert around.alice.talk("203.0.113.7", 8443) is None


def test_a_chain_of_names_leads_too_and_a_suffix_names_all_below(around: Around) -> None:
    answer = around.alice.ask("deep.example.com")
    assert [rrset.rdtype.name for rrset in answer.answer] == ["CNAME", "CNAME", "A"]
    assert around.alice.talk("203.0.113.7", 9443, b"hello") == b"hello"


def test_a_denied_port_of_an_allowed_name_stays_closed(around: Around) -> None:
    assert around.alice.ask("b.example.com").rcode() == dns.rcode.NOERROR
    assert around.alice.talk("203.0.113.8", 8444) is None
    assert around.alice.talk("203.0.113.8", 8083, b"hello") == b"hello"


@pytest.mark.parametrize(
    ("name", "kind", "code", "records"),
    [
        ("api.example.com", "AAAA", dns.rcode.NOERROR, 1),
        ("b.example.com", "AAAA", dns.rcode.NOERROR, 0),
        ("api.example.com", "TXT", dns.rcode.NOERROR, 0),
        ("api.example.com", "HTTPS", dns.rcode.NOERROR, 0),
        ("absent.example.com", "A", dns.rcode.NXDOMAIN, 0),
        # Not allowed, but above a name that is: NXDOMAIN would say that this one does not exist.
        ("example.com", "A", dns.rcode.NOERROR, 0),
        ("com", "NS", dns.rcode.NOERROR, 0),
        ("attacker.example", "A", dns.rcode.NXDOMAIN, 0),
        ("attacker.example", "AAAA", dns.rcode.NXDOMAIN, 0),
        ("attacker.example", "TXT", dns.rcode.NXDOMAIN, 0),
        ("7.113.0.203.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN, 0),
        # Rebinding: a private address, and one of the gateway's own LAN.
        ("rebind.example.com", "A", dns.rcode.NOERROR, 0),
        ("API.EXAMPLE.COM", "A", dns.rcode.NOERROR, 1),
    ],
)
def test_the_resolver(around: Around, name: str, kind: str, code: int, records: int) -> None:
    answer = around.alice.ask(name, kind)
    assert (answer.rcode(), len(answer.answer)) == (code, records)


def test_a_long_answer_is_truncated_and_comes_over_tcp(around: Around) -> None:
    small = around.alice.ask("many.example.com")
    assert small.flags & dns.flags.TC
    query = dns.message.make_query("many.example.com", "A").to_wire()
    with around.alice.connect("10.99.0.1", 53) as stream:
        stream.sendall(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(stream.recv(2), "big")
        raw = b""
        while len(raw) < size:
            raw += stream.recv(size - len(raw))
    assert len(dns.message.from_wire(raw).answer[0]) == 80


@pytest.mark.alone
def test_names_by_the_hundred_hold_up_nobody(around: Around) -> None:
    """Each answer opens eighty addresses, and in nftables a transaction takes some 15 ms."""
    query = dns.message.make_query("many.example.com", "A").to_wire()
    taken, answers = [], 0
    with (
        around.bob.connect("203.0.113.7", 8082) as stream,
        around.alice.net.socket(socket.SOCK_DGRAM) as sock,
    ):
        sock.bind((around.alice.address, 0))
        sock.connect(("10.99.0.1", 53))
        for _ in range(20):
            for _ in range(5):
                sock.send(query)
            begun = time.monotonic()
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
            taken.append(time.monotonic() - begun)
            pace(0.03)
        sock.settimeout(2)
        with contextlib.suppress(TimeoutError):
            while answers < 100:
                sock.recv(4096)
                answers += 1
    assert answers == 100
    # One may meet whatever else the machine does; a loop that is held up delays every one.
    assert statistics.median(taken) < 0.25, taken


def test_udp_passes_and_is_refused(around: Around, topology: Topology) -> None:
    with topology.world.socket(socket.SOCK_DGRAM) as target:
        target.bind(("203.0.113.8", 9000))
        with around.alice.net.socket(socket.SOCK_DGRAM) as sock:
            sock.bind((around.alice.address, 0))
            sock.sendto(b"ping", ("203.0.113.8", 9000))
            data, source = target.recvfrom(100)
            assert data == b"ping"
            target.sendto(b"pong", source)
            assert sock.recv(100) == b"pong"
            sock.sendto(b"ping", ("203.0.113.8", 9001))
            target.settimeout(0.3)
            with pytest.raises(TimeoutError):
                target.recv(100)


def test_wireguards_own_port_of_a_target_is_one_like_any(
    around: Around, topology: Topology
) -> None:
    with topology.world.socket(socket.SOCK_DGRAM) as target:
        target.bind(("203.0.113.8", 51820))
        with around.alice.net.socket(socket.SOCK_DGRAM) as sock:
            sock.bind((around.alice.address, 0))
            sock.sendto(b"ping", ("203.0.113.8", 51820))
            data, source = target.recvfrom(100)
            target.sendto(data, source)
            assert sock.recv(100) == b"ping"


def test_a_datagram_without_a_source_port_goes_nowhere(around: Around, topology: Topology) -> None:
    """A socket of the namespace engine's that is connected to port 0 would stand for any."""
    with topology.world.socket(socket.SOCK_DGRAM) as target:
        target.bind(("203.0.113.8", 9000))
        target.settimeout(0.5)
        with around.alice.net.socket(socket.SOCK_RAW, protocol=socket.IPPROTO_UDP) as raw:
            raw.bind((around.alice.address, 0))
            for port, passes in ((0, around.engine != "namespace"), (4000, True)):
                header = struct.pack(">HHHH", port, 9000, 12, 0)  # without a checksum, RFC 768
                raw.sendto(header + b"ping", ("203.0.113.8", 9000))
                with contextlib.nullcontext() if passes else pytest.raises(TimeoutError):
                    assert target.recv(100) == b"ping"


def test_an_empty_datagram_is_one(around: Around, topology: Topology) -> None:
    if around.engine == "embedded":  # its library takes it for the flow's end
        return
    sent = [b"one", b"", b"two", b""]
    with topology.world.socket(socket.SOCK_DGRAM) as target:
        target.bind(("203.0.113.8", 9000))
        with around.alice.net.socket(socket.SOCK_DGRAM) as sock:
            sock.bind((around.alice.address, 0))
            for data in sent:
                sock.sendto(data, ("203.0.113.8", 9000))
            came = [target.recvfrom(100) for _ in sent]
            assert [data for data, _ in came] == sent
            for data in sent:
                target.sendto(data, came[0][1])
            assert [sock.recv(100) for _ in sent] == sent


def test_a_namespace_has_none_of_the_machines_settings(around: Around) -> None:
    """It begins with them. With src_valid_mark, as wg-quick sets it, nothing turned would come."""
    if around.engine != "namespace":
        return
    conf = "/proc/sys/net/ipv4/conf"
    names = ("src_valid_mark", "rp_filter", "route_localnet", "forwarding")
    paths = [f"{conf}/{of}/{name}" for of in ("all", "default", "wgcell0") for name in names]
    assert around.run("cat", *paths).split() == ["0"] * len(paths)


def test_a_source_that_is_not_the_peers_reaches_nothing(around: Around, topology: Topology) -> None:
    net = around.alice.net
    if around.engine != "embedded":
        # WireGuard's own wall taken down, and the way back laid: nftables must hold alone.
        allowed = ("peer", public_key(ALICE), "allowed-ips", "10.99.0.2/32,10.99.0.77/32")
        around.run("wg", "set", "wgcell0", *allowed)
        around.run("ip", "route", "add", "10.99.0.77/32", "dev", "wgcell0")
    net.run("ip", "addr", "add", "10.99.0.77/32", "dev", "alice")
    net.run("ip", "rule", "add", "from", "10.99.0.77", "table", around.alice.table)
    try:
        with topology.world.socket(socket.SOCK_DGRAM) as target:
            target.bind(("203.0.113.8", 9000))
            target.settimeout(0.5)
            for source, passes in (("10.99.0.2", True), ("10.99.0.77", False)):
                with net.socket(socket.SOCK_DGRAM) as sock:
                    sock.bind((source, 0))
                    sock.sendto(b"ping", ("203.0.113.8", 9000))
                    with contextlib.nullcontext() if passes else pytest.raises(TimeoutError):
                        assert target.recv(10) == b"ping"
    finally:
        net.run("ip", "rule", "del", "from", "10.99.0.77")
        net.run("ip", "addr", "del", "10.99.0.77/32", "dev", "alice")


def test_a_peer_has_its_limit_of_open_flows(around: Around) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(3):
            stream = opened.enter_context(around.bob.connect("203.0.113.7", 8082))
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
        lull(0.2)  # so that it is not the rate of new ones that refuses
        assert around.bob.talk("203.0.113.7", 8082) is None
        assert around.alice.talk("203.0.113.7", 8082, b"hello") == b"hello"
    # The kernel keeps a connection that has ended for a second.
    until(lambda: around.bob.talk("203.0.113.7", 8082, b"hello") == b"hello", every=0.3)


@pytest.mark.alone
def test_a_peer_has_its_pace_and_the_others_theirs(around: Around, topology: Topology) -> None:
    key, port = public_key(SERVER), around.ports["carol"]
    taken = {}
    with contextlib.closing(
        Tunnel(topology.client, "carol", CAROL, "10.99.0.4", key, port)
    ) as carol:
        for name, peer in (("carol", carol), ("alice", around.alice)):
            with peer.connect("203.0.113.7", 8080) as stream:
                stream.settimeout(30)
                begun, left = time.monotonic(), 2 * PACE
                while left:
                    stream.sendall(bytes(min(left, 20_000)))
                    got = 0
                    while got < min(left, 20_000):
                        got += len(stream.recv(65536))
                    left -= min(left, 20_000)
                taken[name] = time.monotonic() - begun
    # There and back, less what it may take at once, at its pace; dropped packets cost more.
    assert (4 * PACE - PACE) / PACE * 0.9 < taken["carol"] < 20
    assert taken["alice"] < taken["carol"] / 2


def test_a_preshared_key_is_asked_of_its_peer(around: Around, topology: Topology) -> None:
    if around.engine == "embedded":  # it refuses a configuration with one: test_config.py
        return
    key, port = public_key(SERVER), around.ports["dave"]
    for preshared, answer in (("", None), (PRESHARED, b"hello")):
        with (
            contextlib.closing(
                Tunnel(topology.client, "dave", DAVE, "10.99.0.6", key, port, preshared)
            ) as dave,
            contextlib.suppress(TimeoutError),
        ):
            assert (
                dave.talk("203.0.113.7", 8080, b"hello", timeout=5 if answer is None else 20)
                == answer
            )
            assert answer is not None
            return
    raise AssertionError("with its key it was not let in")


def test_every_flow_is_told(around: Around) -> None:
    around.flows()
    around.alice.ask("api.example.com")
    assert around.alice.talk("203.0.113.7", 8443, b"hello") == b"hello"
    assert around.alice.talk("203.0.113.7", 8083) is None
    assert around.alice.ask("cdn.example.net").rcode() == dns.rcode.NXDOMAIN
    found = around.flows(3)
    allowed, refused, asked = [event for event in found if event["event"] == "flow"]
    del allowed["time"]
    number = allowed.pop("flow")
    assert {**allowed, "hint": ""} == {
        "event": "flow",
        "peer": "alice",
        "protocol": "tcp",
        "address": "203.0.113.7",
        "port": 8443,
        "name": "api.example.com",
        "verdict": "allow",
        "rule": "allow api.example.com:8443",
        "reason": "a rule allows it",
        "hint": "",
    }
    assert (refused["verdict"], refused["hint"]) == ("refuse", "api.example.com:8083")
    assert (asked["protocol"], asked["name"]) == ("dns", "cdn.example.net")
    assert asked["hint"] == "cdn.example.net:443"
    ends = (event for event in found if event["event"] == "flow_end")
    end = next(ends, None) or around.gateway.event("flow_end")
    while end["flow"] != number:
        end = next(ends, None) or around.gateway.event("flow_end")
    assert (end["port"], end["verdict"], end["name"]) == (8443, "allow", "api.example.com")
    # The kernel counts headers too.
    assert end["bytes_out"] >= 5 <= end["bytes_in"]
    assert 0 <= end["duration"] < 5


def test_a_peer_that_is_taken_out_is_cut_off_at_once(around: Around) -> None:
    with around.bob.connect("203.0.113.7", 8082) as stream:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        around.gateway.tell({**around.config, "peers": {"alice": PEERS["alice"]}})
        around.gateway.event("applied")
        stream.settimeout(0.7)
        with contextlib.suppress(OSError):
            stream.sendall(b"x")
            assert stream.recv(1) == b""
    with pytest.raises(OSError):
        around.bob.connect("203.0.113.7", 8082, timeout=0.7)
    assert around.alice.talk("203.0.113.7", 8082, b"hello") == b"hello"
    # And back again, with the same key: the peer's own next handshake mends it.
    around.gateway.tell(around.config)
    around.gateway.event("applied")


def test_two_gateways_on_one_place_is_an_error_that_says_so(around: Around) -> None:
    argv = [around.engine, "wgcell0"]
    second = Gateway(around.config, around.topology.gateway.enter, argv)
    assert second.first["event"] == "fault"
    words = {
        "embedded": "UDP port 51821: Address already in use",
        "namespace": "UDP port 51820: Address already in use",
        "kernel": "another gateway runs on wgcell0",
    }
    assert words[around.engine] in second.first["detail"]
    assert second.close() == 125
    assert around.alice.talk("203.0.113.7", 8082, b"hello") == b"hello"


@pytest.mark.parametrize("engine", ["namespace", "kernel"])
def test_the_end_of_wireguard_is_the_engines(engine: str, topology: Topology) -> None:
    config = {"private_key": SERVER, "listen": "0.0.0.0:53000"}
    gateway = Gateway(config, topology.client.enter, [engine, "wgcell9"])
    assert gateway.first["event"] == "ready", gateway.first
    pid = wireguard_go(gateway)
    os.kill(pid, signal.SIGKILL)
    assert "wireguard-go died" in gateway.event("fault")["detail"]
    gateway.process.wait(GENEROUS)
    assert gateway.close() == 125


def test_nothing_outlives_a_namespace_engine_that_is_killed(topology: Topology) -> None:
    config = {"private_key": SERVER, "listen": "0.0.0.0:53000"}
    gateway = Gateway(config, topology.client.enter, ["namespace"])
    pid = wireguard_go(gateway)
    gateway.kill()
    until(lambda: not alive(pid), "wireguard-go lives on")
    again = Gateway(config, topology.client.enter, ["namespace"])
    assert again.first["event"] == "ready", again.first
    assert again.close() == 0


def test_the_kernel_engine_leaves_nothing_behind_even_after_one_that_was_killed(
    topology: Topology,
) -> None:
    net, config = topology.client, {"private_key": SERVER, "listen": "0.0.0.0:53000"}
    assert net.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
    killed = Gateway(config, net.enter, ["kernel", "wgcell9"])
    assert killed.first["event"] == "ready"
    killed.kill()
    # Killed, its table still stands: the policy outlives the gateway, not the other way round.
    assert "wgcell_wgcell9" in net.run("nft", "list", "tables")
    second = Gateway(config, net.enter, ["kernel", "wgcell9"])
    assert second.first["event"] == "ready", second.first
    others = 'iifname != "wgcell9" oifname != "wgcell9" accept'
    assert others not in net.run("nft", "list", "table", "inet", "wgcell_wgcell9")
    assert second.close() == 0
    assert "wgcell" not in net.run("nft", "list", "tables") + net.run("ip", "-br", "link")
    assert net.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
