"""What is open ends when the policy changes: in each engine, whoever moves its bytes.

The world serves three things on each address: an endless stream, an echo over TCP, and over UDP.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.gateways import ENGINES, SERVER, Gateway, Tunnel
from tests.support.networks import RESOLVER, Topology, serving
from tests.support.waiting import GENEROUS

from wgcell.gateway import words
from wgcell.gateway.model.keys import generate_private_key, public_key

pytestmark = pytest.mark.namespaces

ALICE = generate_private_key()
STREAM, ECHO, DATAGRAMS, LATE = 7010, 7011, 7012, 7013
RULES = [
    "allow 203.0.113.7:7010-7012",
    "allow 203.0.113.8:7010-7012",
    "allow api.example.com:7010-7012/tcp/unchecked",
    "allow b.example.com:7012/udp",
]


def endless(stream: socket.socket) -> None:
    while True:
        stream.sendall(bytes(1 << 14))


def echo(stream: socket.socket) -> None:
    stream.settimeout(None)
    while data := stream.recv(65536):
        stream.sendall(data)


@contextlib.contextmanager
def echoing(topology: Topology) -> Iterator[None]:
    """An echo of datagrams at both addresses."""
    over = threading.Event()

    def serve(sock: socket.socket) -> None:
        with sock:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    data, source = sock.recvfrom(100)
                    sock.sendto(data, source)

    threads = []
    for address in ("203.0.113.7", "203.0.113.8"):
        sock = topology.world.socket(socket.SOCK_DGRAM)
        sock.bind((address, DATAGRAMS))
        sock.settimeout(0.05)
        threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
        threads[-1].start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def config_of(**changes: Any) -> dict[str, Any]:
    return {
        "listen": "192.0.2.1:54100",
        "private_key": SERVER,
        "rules": RULES,
        "resolver": [RESOLVER],
        "protected": ["198.51.100.0/24"],
        "peers": {"alice": {"public_key": public_key(ALICE), "address": "10.99.0.2"}},
        **changes,
    }


@pytest.fixture(scope="module", params=ENGINES)
def around(request: pytest.FixtureRequest, topology: Topology) -> Iterator[tuple[Gateway, Tunnel]]:
    world = [(address, STREAM) for address in ("203.0.113.7", "203.0.113.8")]
    others = [(address, ECHO) for address in ("203.0.113.7", "203.0.113.8")]
    others.append(("203.0.113.7", LATE))
    peers = {"alice": {**config_of()["peers"]["alice"], "port": 54100}}
    with (
        serving(topology.world, world, endless),
        serving(topology.world, others, echo),
        echoing(topology),
    ):
        argv = [request.param, "wgcut"]
        gateway = Gateway(config_of(peers=peers), topology.gateway.enter, argv)
        assert gateway.first["event"] == "ready", gateway.first
        port = gateway.first["peers"]["alice"]
        key = public_key(SERVER)
        tunnel = Tunnel(topology.client, "cut", ALICE, "10.99.0.2", key, port)
        yield gateway, tunnel
        tunnel.close()
        gateway.close()


@contextlib.contextmanager
def changed(gateway: Gateway, *rules: str) -> Iterator[list[dict[str, Any]]]:
    """What is told until the rules are applied, and the rules as they were afterwards."""
    gateway.drain()
    gateway.tell({**gateway.config, "rules": list(rules)})
    try:
        yield gateway.told(lambda found: any(e["event"] == "applied" for e in found))
    finally:
        gateway.tell(gateway.config)
        gateway.event("applied")


def ended(stream: socket.socket) -> bool:
    """Whether it ends, with a reset or in order, although nothing is sent."""
    stream.settimeout(GENEROUS)
    with contextlib.suppress(ConnectionResetError):
        while stream.recv(1 << 20):
            pass
    return True


def lives(stream: socket.socket) -> bool:
    stream.settimeout(GENEROUS)
    stream.sendall(b"still")
    return stream.recv(100) == b"still"


def test_a_stream_that_is_not_allowed_any_more_ends_at_once(
    around: tuple[Gateway, Tunnel],
) -> None:
    gateway, tunnel = around
    with (
        tunnel.connect("203.0.113.7", STREAM) as cut,
        tunnel.connect("203.0.113.8", ECHO) as other,
    ):
        assert cut.recv(100) and lives(other)
        begun = time.monotonic()
        with changed(gateway, "allow 203.0.113.8:7010-7012") as told:
            assert ended(cut) and time.monotonic() - begun < 10
            # The control: another is where it was.
            assert lives(other)
            (end,) = (event for event in told if event["event"] == "flow_end")
            place = end["address"], end["port"], end["reason"]
            assert place == ("203.0.113.7", STREAM, "cut off")


def test_a_connection_that_says_nothing_hears_of_it(around: tuple[Gateway, Tunnel]) -> None:
    """Nothing is sent, by neither end: who waits for a byte must not wait for ever."""
    gateway, tunnel = around
    with tunnel.connect("203.0.113.7", ECHO) as cut, tunnel.connect("203.0.113.8", ECHO) as other:
        assert lives(cut) and lives(other)
        with changed(gateway, "allow 203.0.113.8:7010-7012"):
            assert ended(cut) and lives(other)


def test_datagrams_of_an_open_flow_are_refused(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    with contextlib.ExitStack() as stack:
        socks = []
        for address in ("203.0.113.7", "203.0.113.8"):
            sock = stack.enter_context(tunnel.net.socket(socket.SOCK_DGRAM))
            sock.bind((tunnel.address, 0))
            sock.connect((address, DATAGRAMS))
            sock.send(b"x")
            assert sock.recv(10) == b"x"
            sock.settimeout(0.5)
            socks.append(sock)
        cut, other = socks
        with changed(gateway, "allow 203.0.113.8:7010-7012"):
            # Refused by ICMP, or by silence: nothing comes back.
            with pytest.raises(OSError):
                for _ in range(3):
                    cut.send(b"y")
                    cut.recv(10)
            other.send(b"y")
            assert other.recv(10) == b"y"


def test_a_name_that_is_denied_ends_what_its_address_has_opened(
    around: tuple[Gateway, Tunnel],
) -> None:
    gateway, tunnel = around
    assert tunnel.ask("api.example.com").answer
    with tunnel.connect("203.0.113.7", ECHO) as cut, tunnel.connect("203.0.113.8", ECHO) as other:
        assert lives(cut) and lives(other)
        with changed(gateway, "deny api.example.com:*", *RULES):
            assert ended(cut) and lives(other)
            assert not tunnel.ask("api.example.com").answer


def test_what_no_rule_has_changed_for_goes_on(around: tuple[Gateway, Tunnel]) -> None:
    """By an address, by a name, over UDP by a name whose answer is over by now or not."""
    gateway, tunnel = around
    tunnel.ask("b.example.com")
    with (
        tunnel.connect("203.0.113.7", ECHO) as stream,
        tunnel.net.socket(socket.SOCK_DGRAM) as datagrams,
    ):
        assert lives(stream)
        datagrams.bind((tunnel.address, 0))
        datagrams.connect(("203.0.113.8", DATAGRAMS))
        datagrams.send(b"x")
        assert datagrams.recv(10) == b"x"
        with changed(gateway, "deny 192.0.2.7:*", *RULES):
            assert lives(stream)
            datagrams.send(b"y")
            assert datagrams.recv(10) == b"y"


def test_an_order_allows_for_a_while_and_its_end_cuts(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    gateway.drain()
    assert not tunnel.ask("www.example.com").answer
    assert tunnel.talk("203.0.113.7", LATE) is None
    told = gateway.order(words.Allow(1, f"www.example.com:{LATE}", 1000, 4.0))
    assert (told["event"], told["number"]) == ("policy_changed", 1)
    assert (told["who"], told["cut"]) == (1000, 0)
    assert 0 < told["until"] - time.time() < 5
    # It is open now: the name, and the address that it leads to.
    assert tunnel.ask("www.example.com").answer
    with (
        tunnel.connect("203.0.113.7", LATE) as stream,
        tunnel.connect("203.0.113.8", ECHO) as other,
    ):
        stream.sendall(b"GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n")
        assert stream.recv(100) and lives(other)
        # It ends while the connection is open, and idle.
        assert ended(stream) and lives(other)
        over = gateway.event("policy_changed")
        assert (over["change"], over["rule"]) == ("expired", f"allow www.example.com:{LATE}")
        assert (over["who"], over["cut"], over.get("number")) == (1000, 1, None)
    assert not tunnel.ask("www.example.com").answer
    assert tunnel.talk("203.0.113.7", LATE) is None


def test_an_order_denies_what_a_rule_has_opened(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    with tunnel.connect("203.0.113.7", STREAM) as cut, tunnel.connect("203.0.113.8", ECHO) as other:
        assert cut.recv(100) and lives(other)
        gateway.drain()
        told = gateway.order(words.Deny(2, "203.0.113.7:*", 0))
        try:
            assert (told["change"], told.get("until")) == ("deny", None)
            # The kernel may still track flows that have ended.
            assert told["cut"] == 1 or (gateway.engine == "kernel" and told["cut"])
            assert ended(cut) and lives(other)
            assert tunnel.talk("203.0.113.7", STREAM) is None
            told = gateway.order(words.ListRules(3))
            assert [one["rule"] for one in told["rules"]] == ["deny 203.0.113.7:*", *RULES]
        finally:
            gateway.order(words.Allow(4, "203.0.113.7:7010-7012", 0))
    assert tunnel.talk("203.0.113.7", ECHO) == b"x"


def test_a_bad_order_is_refused_and_changes_nothing(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    told = gateway.order(words.Allow(5, "203.0.113.7", 0))
    assert (told["event"], told["number"]) == ("order_refused", 5)
    assert told["hint"] == "for HTTPS write 203.0.113.7:443"
    assert tunnel.talk("203.0.113.8", ECHO) == b"x"
