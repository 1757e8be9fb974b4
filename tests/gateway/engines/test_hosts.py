"""Either engine between a real peer and real TLS and HTTP servers: which host is asked for.

The topology is drawn in networks.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.bytepeer import Peer
from tests.support.gateways import ALICE, ENGINES, Gateway, Tunnel, between, changed
from tests.support.networks import RESOLVER, Server, Topology, serving
from tests.support.waiting import GENEROUS, forever, lull, pace, paced, until

from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.proxy.splice import FlowRefused
from wgcell.gateway.proxy.tcp import Splice

pytestmark = pytest.mark.namespaces


def certificate(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example.com")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("*.example.com")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / "server.pem"
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, *form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def world(topology: Topology, trust: Path) -> Iterator[None]:
    context = certificate(trust)

    def tls(stream: socket.socket) -> None:
        with (
            contextlib.suppress(ssl.SSLError),
            context.wrap_socket(stream, server_side=True) as safe,
        ):
            safe.sendall(b"over tls")

    def http(stream: socket.socket) -> None:
        stream.recv(4096)
        stream.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")

    def first(stream: socket.socket) -> None:
        stream.sendall(b"220 ready\r\n")
        stream.sendall(b"250 " + stream.recv(100))

    with contextlib.ExitStack() as ending:
        for port, talk in ((443, tls), (8443, tls), (80, http), (25, first)):
            ending.enter_context(serving(topology.world, [("203.0.113.7", port)], talk))
        yield


@pytest.fixture(scope="module", params=ENGINES)
def around(
    request: pytest.FixtureRequest, topology: Topology, world: None
) -> Iterator[tuple[Gateway, Tunnel]]:
    with between(topology, 51000, request.param) as made:
        yield made


def over_tls(
    tunnel: Tunnel,
    trust: Path,
    name: str | None,
    port: int = 443,
    meanwhile: contextlib.AbstractContextManager[None] | None = None,
) -> bytes | None:
    """What a client that looked up api.example.com, and says ``name``, gets.

    ``meanwhile`` begins once it is connected, before it says a word.
    """
    context = ssl.create_default_context(cafile=str(trust / "server.pem"))
    context.check_hostname = name is not None
    try:
        with (
            tunnel.connect("203.0.113.7", port) as stream,
            meanwhile or contextlib.nullcontext(),
            context.wrap_socket(stream, server_hostname=name) as safe,
        ):
            return safe.recv(100) or None
    except (ssl.SSLError, ConnectionError):
        return None


@pytest.mark.parametrize(
    ("name", "port", "passes"),
    [
        ("api.example.com", 443, True),
        ("api.example.com", 8443, True),
        # Allowed, and on the same address; but it was not asked for.
        ("shared.example.com", 443, False),
        ("evil.example", 443, False),
        ("evil.example", 8443, False),
        (None, 443, False),
    ],
)
@pytest.mark.alone
def test_tls_asks_for_the_name_that_was_looked_up(
    around: tuple[Gateway, Tunnel], trust: Path, name: str | None, port: int, passes: bool
) -> None:
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    gateway.drain()
    begun = time.monotonic()
    assert over_tls(tunnel, trust, name, port) == (b"over tls" if passes else None)
    assert time.monotonic() - begun < 2
    assert gateway.event("flow")["verdict"] == "allow"
    end = gateway.event()
    if not passes:
        assert (end["event"], end["verdict"], end["host"]) == ("flow", "refuse", name or "")
        unchecked = f"api.example.com:{port}/tcp/unchecked"
        assert end["hint"] == (f"{name}:{port}" if name else unchecked)
        end = gateway.event()
    assert (end["event"], end["verdict"]) == ("flow_end", "allow" if passes else "refuse")
    # Of what was refused, not a byte went out.
    assert (end["bytes_out"] > 0) is passes


@pytest.mark.parametrize(("host", "passes"), [("api.example.com", True), ("evil.example", False)])
def test_http_asks_for_the_name_that_was_looked_up(
    around: tuple[Gateway, Tunnel], host: str, passes: bool
) -> None:
    _, tunnel = around
    tunnel.ask("api.example.com")
    answer = tunnel.talk("203.0.113.7", 80, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert bool(answer) is passes


def test_a_server_that_speaks_first_is_heard(around: tuple[Gateway, Tunnel]) -> None:
    _, tunnel = around
    tunnel.ask("api.example.com")
    with tunnel.connect("203.0.113.7", 25) as stream:
        assert stream.recv(100) == b"220 ready\r\n"
        stream.sendall(b"EHLO x\r\n")
        assert stream.recv(100) == b"250 EHLO x\r\n"


def test_a_name_that_was_asked_later_is_as_good(
    around: tuple[Gateway, Tunnel], trust: Path
) -> None:
    _, tunnel = around
    for name in ("shared.example.com", "api.example.com"):
        tunnel.ask(name)
        assert over_tls(tunnel, trust, name) == b"over tls"


def test_what_is_learned_is_what_would_have_sufficed(
    around: tuple[Gateway, Tunnel], trust: Path
) -> None:
    gateway, tunnel = around

    def use() -> list[Any]:
        found = [tunnel.ask("api.example.com").rcode(), bool(tunnel.talk("203.0.113.7", 25))]
        found.append(over_tls(tunnel, trust, "api.example.com"))
        # No address either way: what it leads to is on this side, and then no rule has it.
        return [*found, tunnel.ask("rebind.example.com").answer, tunnel.talk(RESOLVER, 53)]

    def said(events: list[dict[str, Any]], verdict: str) -> list[str]:
        flows = [event for event in events if event["event"] == "flow"]
        return [str(flow["hint"]) for flow in flows if flow["verdict"] == verdict]

    def enough(events: list[dict[str, Any]]) -> bool:
        return len(set(said(events, "allow"))) >= 2 and len(said(events, "refuse")) >= 2

    with changed(gateway, rules=[], learn=True):
        gateway.drain()
        learned = use()
        events = gateway.told(enough)
    rules = set(said(events, "allow"))
    assert rules == {"api.example.com:25", "api.example.com:443"}
    # What is on this side stays closed.
    assert len(said(events, "refuse")) == 2
    rules = {f"allow {rule}" for rule in rules}
    with changed(gateway, rules=sorted(rules)):
        assert use() == learned


_ECHO = """
import asyncio
async def one(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(one, "203.0.113.7", 7777, backlog=1024)
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def pumping(streams: list[socket.socket], ended: threading.Event) -> Callable[[], None]:
    def pump() -> None:
        waiting = {stream.fileno(): stream for stream in streams}
        poll = select.poll()
        for stream in streams:
            stream.setblocking(False)
            poll.register(stream, select.POLLIN | select.POLLOUT)
        while not ended.is_set():
            for number, events in poll.poll(100):
                with contextlib.suppress(BlockingIOError):
                    if events & select.POLLOUT:
                        waiting[number].send(bytes(2048))
                    if events & select.POLLIN:
                        waiting[number].recv(65536)
            pace(0.01)  # the peer shares this machine with the gateway it means to starve

    return pump


@pytest.mark.parametrize("engine", ["embedded", "namespace"])
@pytest.mark.alone
def test_a_greedy_peer_does_not_starve_forty_nine_others(
    topology: Topology, world: None, engine: str
) -> None:
    """One peer pumps through 500 flows at once; each other fetches through a flow of its own."""
    keys = [generate_private_key() for _ in range(49)]
    peers = {"greedy": {"public_key": public_key(ALICE), "address": "10.99.0.2", "port": 52000}}
    for number, key in enumerate(keys):
        address, port = f"10.99.0.{number + 3}", 52001 + number
        peers[f"peer-{number}"] = {"public_key": public_key(key), "address": address, "port": port}
    echo = topology.world.start(sys.executable, "-c", _ECHO, stdout=-1)
    assert echo.stdout is not None
    assert echo.stdout.readline() == b"up\n"
    changes = {"rules": ["allow 203.0.113.7:7777"], "peers": peers}
    with between(topology, 52000, engine, **changes) as (gateway, tunnel):
        ended = threading.Event()
        with contextlib.ExitStack() as opened:
            streams = [
                opened.enter_context(tunnel.connect("203.0.113.7", 7777)) for _ in range(500)
            ]
            for stream in streams:  # reset at the end: nothing of it comes to the next gateway
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            thread = threading.Thread(target=pumping(streams, ended), daemon=True)
            thread.start()
            slowest = 0.0
            try:
                for number, key in enumerate(keys):
                    begun = time.monotonic()
                    with topology.client.socket(socket.SOCK_DGRAM) as sock:
                        sock.connect(("192.0.2.1", gateway.first["peers"][f"peer-{number}"]))
                        peer = Peer(sock, key)
                        peer.source = f"10.99.0.{number + 3}"
                        assert peer.tcp("203.0.113.7", 7777, b"hello", until=5) == (b"hello", 0)
                    slowest = max(slowest, time.monotonic() - begun)
            finally:
                ended.set()
                thread.join()
                echo.terminate()
                echo.wait(GENEROUS)
    assert slowest < 2, slowest


@pytest.mark.alone
def test_a_head_in_many_pieces_is_read_ever_more_slowly() -> None:
    """Each piece has all of it read again."""

    class Pieces:
        reads = 0

        async def read(self, count: int) -> bytes:
            self.reads += 1
            return b"a"

    pieces = Pieces()
    flow = Flow(1, "cell", "tcp", ipaddress.ip_address("203.0.113.7"), 80)
    waiting = Splice(pieces, flow, head_timeout=0.6)  # type: ignore[arg-type]
    with pytest.raises(FlowRefused, match="no whole TLS hello or HTTP head within"):
        asyncio.run(waiting.checked_head(b"GET /"))
    assert 16 <= pieces.reads <= 20


@pytest.mark.alone
def test_a_head_that_does_not_end_is_refused_in_time() -> None:
    """Slow loris: a byte now and then, and never a whole head."""

    class Slow:
        async def read(self, count: int) -> bytes:
            await paced(0.05)
            return b"a"

    flow = Flow(1, "cell", "tcp", ipaddress.ip_address("203.0.113.7"), 80)
    waiting = Splice(Slow(), flow, head_timeout=0.3)  # type: ignore[arg-type]
    begun = time.monotonic()
    with pytest.raises(FlowRefused, match="no whole TLS hello or HTTP head within"):
        asyncio.run(waiting.checked_head(b"GET /"))
    assert time.monotonic() - begun < 1


def _rude(stream: socket.socket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("half", [True, False])
def test_a_reset_after_an_end_is_no_break(half: bool) -> None:
    """TLS's farewell often comes to who has closed already. The control: a reset before an end."""

    class Peers:
        """Sends a byte, and then ends, or does not."""

        def __init__(self) -> None:
            self._left = [b"x", b""] if half else [b"x"]

        async def read(self, _: int, /) -> bytes:
            if not self._left:
                await forever()
            return self._left.pop(0)

        def write(self, data: bytes, /) -> None:
            pass

        async def drain(self) -> None:
            pass

        def write_eof(self) -> None:
            pass

    async def ended() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await (reader.read() if half else reader.readexactly(1))
            _rude(writer.get_extra_info("socket"))
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            target = await asyncio.open_connection(*server.sockets[0].getsockname())
            flow = Flow(1, "cell", "tcp", ipaddress.ip_address("127.0.0.1"), 80)
            return await Splice(Peers(), flow).run(target)

    if half:
        assert asyncio.run(ended()) == "closed"
    else:
        with pytest.raises(ConnectionResetError):
            asyncio.run(ended())


def test_a_flow_that_the_policy_does_not_allow_any_more_ends(
    around: tuple[Gateway, Tunnel],
) -> None:
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    with tunnel.connect("203.0.113.7", 25) as stream:
        assert stream.recv(100) == b"220 ready\r\n"
        with (
            changed(gateway, rules=["allow shared.example.com:443"]),
            contextlib.suppress(ConnectionError),
        ):
            assert stream.recv(100) == b""
        with changed(gateway, rules=["allow api.example.com:25"]):
            # What was answered before leads on.
            assert (tunnel.talk("203.0.113.7", 25) or b"").startswith(b"220 ready\r\n")


def test_an_open_flow_does_not_outlive_the_name_it_was_for(
    around: tuple[Gateway, Tunnel], trust: Path
) -> None:
    """Two names share an address. The flow may stay, but not ask for the one that is closed."""
    gateway, tunnel = around
    for name in ("shared.example.com", "api.example.com"):
        tunnel.ask(name)
    for name, answer in (("api.example.com", None), ("shared.example.com", b"over tls")):
        change = changed(gateway, rules=["allow shared.example.com:443"])
        assert over_tls(tunnel, trust, name, meanwhile=change) == answer


def test_a_name_that_is_denied_now_closes_the_address_it_led_to(
    around: tuple[Gateway, Tunnel],
) -> None:
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    for first, passes in (("deny b.example.com:*", True), ("deny api.example.com:*", False)):
        with changed(gateway, rules=[first, "allow 203.0.113.0/24:25"]):
            assert bool(tunnel.talk("203.0.113.7", 25)) is passes


def test_limits_change_in_place(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    with changed(gateway, limits={"queries_per_second": 1}):
        codes = [tunnel.ask("api.example.com").rcode() for _ in range(8)]
    assert codes[:4] == [dns.rcode.NOERROR] * 4 and dns.rcode.REFUSED in codes[4:]
    assert tunnel.ask("api.example.com").rcode() == dns.rcode.NOERROR


def test_a_name_does_not_lead_to_the_gateways_own_machine(
    around: tuple[Gateway, Tunnel], topology: Topology
) -> None:
    """By an address that it has got since: nothing says of it that it is protected."""
    gateway, tunnel = around
    heard: list[bytes] = []

    def secret(stream: socket.socket) -> None:
        stream.sendall(b"the gateway's own")
        heard.append(stream.recv(100))

    with changed(gateway, rules=["allow many.example.com:2222"]):
        tunnel.ask("many.example.com")
        topology.gateway.run("ip", "addr", "add", "203.0.113.10/32", "dev", "lo")
        server = Server(topology.gateway, "203.0.113.10", 2222, secret)
        try:
            gateway.drain()
            assert tunnel.talk("203.0.113.10", 2222) is None
            if gateway.engine == "kernel":
                flows = gateway.told(lambda found: any(e["event"] == "flow" for e in found))
                flows = [event for event in flows if event["event"] == "flow"]
                # Not turned: it was refused before anyone accepted it.
                assert [flow["verdict"] for flow in flows] == ["refuse"]
            # The control: it is there, and heard where nothing is in the way.
            with topology.gateway.socket() as beside:
                beside.connect(("203.0.113.10", 2222))
                assert beside.recv(100) == b"the gateway's own"
            assert b"x" not in heard
        finally:
            server.close()
            topology.gateway.run("ip", "addr", "del", "203.0.113.10/32", "dev", "lo")


def test_a_peer_that_resets_its_flows_is_no_trouble(around: tuple[Gateway, Tunnel]) -> None:
    """A stumble would be told: what no code of the gateway's has caught."""
    gateway, tunnel = around
    tunnel.ask("api.example.com")
    for _ in range(20):
        with tunnel.connect("203.0.113.7", 25) as stream:
            assert stream.recv(10)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with tunnel.connect("10.99.0.1", 53) as stream:
        stream.sendall(b"\0")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    lull(0.3)
    assert not [event for event in gateway.drain() if event["event"] == "stumble"]
    assert tunnel.talk("203.0.113.7", 25)


def test_idle_connections_to_the_resolver_count_as_flows(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    query = dns.message.make_query("api.example.com", "A").to_wire()
    framed = len(query).to_bytes(2, "big") + query
    with changed(gateway, limits={"flows": 2}), contextlib.ExitStack() as opened:
        assert tunnel.talk("10.99.0.1", 53, framed)

        def stays() -> bool:
            """One more, answered once, and then idle: one that has ended may count for a moment."""
            with contextlib.suppress(ConnectionError):
                stream = opened.enter_context(tunnel.connect("10.99.0.1", 53))
                stream.sendall(framed)
                if stream.recv(1):
                    stream.sendall(b"\0")
                    return True
            return False

        for _ in range(2):
            until(stays)
        assert tunnel.talk("10.99.0.1", 53, framed) is None


def test_unfinished_heads_take_no_more_than_the_peers_own_flows(
    around: tuple[Gateway, Tunnel],
) -> None:
    gateway, tunnel = around
    with changed(gateway, limits={"flows": 2}):
        tunnel.ask("api.example.com")

        def third_of_two_unfinished() -> bool:
            """Whether it was refused; False if an earlier test's flow was not over yet."""
            gateway.drain()
            with contextlib.ExitStack() as opened, contextlib.suppress(ConnectionError):
                for _ in range(2):
                    stream = opened.enter_context(tunnel.connect("203.0.113.7", 80))
                    stream.sendall(b"GET / HT")
                told = gateway.told(lambda found: sum(e["event"] == "flow" for e in found) >= 2)
                if all(event["verdict"] == "allow" for event in told if event["event"] == "flow"):
                    assert tunnel.talk("203.0.113.7", 80, b"GET / HTTP/1.1") is None
                    return True
            return False

        until(third_of_two_unfinished)
        head = b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n"
        until(lambda: tunnel.talk("203.0.113.7", 80, head))
