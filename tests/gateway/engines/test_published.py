"""Published ports: from the machine's own network, through the tunnel, to a server of the peer's.

The client is in the network where the gateway listens; the peer's server is at its address in the
tunnel, which nothing else than the gateway can reach.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.gateways import CLIENT, SERVER, Gateway, Tunnel, config_of
from tests.support.networks import RESOLVER, Server, Topology
from tests.support.waiting import GENEROUS, until

from wgcell.gateway.engines.nftables.publishing import MOST_JOINED
from wgcell.gateway.model.keys import public_key

pytestmark = pytest.mark.namespaces

PEER = "10.99.0.2"
ECHO, SILENT, LATE, CLOSED, COUNTER = 80, 81, 82, 83, 84


def echo(stream: socket.socket) -> None:
    """All that comes, and an end for an end."""
    stream.settimeout(GENEROUS)
    while data := stream.recv(1 << 16):
        stream.sendall(data)


def silent(stream: socket.socket) -> None:
    """Takes nothing and says nothing."""
    stream.settimeout(GENEROUS)
    stream.recv(1)
    threading.Event().wait(0.2)


def after_the_end(stream: socket.socket) -> None:
    """Counts what comes, and says so once it has ended."""
    stream.settimeout(GENEROUS)
    count = 0
    while data := stream.recv(1 << 16):
        count += len(data)
    stream.sendall(b"%d" % count)


class Around:
    """A gateway with published ports between a client and a peer."""

    def __init__(self, engine: str, topology: Topology) -> None:
        self.topology = topology
        peer = config_of()["peers"]["cell"]
        publish = [f"0:{port}" for port in (ECHO, SILENT, CLOSED, COUNTER)]
        config = {
            "listen": "192.0.2.1:54200",
            "private_key": SERVER,
            "resolver": [RESOLVER],
            "peers": {"cell": {**peer, "publish": publish}},
        }
        with contextlib.ExitStack() as ending:
            self.gateway = Gateway(config, topology.gateway.enter, [engine, "wgpub"])
            ending.callback(self.gateway.close)
            assert self.gateway.first["event"] == "ready", self.gateway.first
            told = self.gateway.told(lambda found: len(found) == len(publish))
            assert {(one["event"], one["peer"], one["address"]) for one in told} == {
                ("published", "cell", "127.0.0.1")
            }
            self.ports = {one["inside"]: one["port"] for one in told}
            port = self.gateway.first["port"]
            tunnel = Tunnel(topology.client, "pub", CLIENT, PEER, public_key(SERVER), port)
            ending.callback(tunnel.close)
            self.table = tunnel.table
            for number, talk in ((ECHO, echo), (SILENT, silent), (COUNTER, after_the_end)):
                server = Server(topology.client, PEER, number, talk)
                ending.enter_context(contextlib.closing(server))
            # WireGuard learns where its peer is from a message of the peer's.
            assert tunnel.ask("api.example.com").rcode() == 3
            self._ending = ending.pop_all()

    def connect(self, inside: int) -> socket.socket:
        made = self.topology.gateway.socket()
        made.settimeout(GENEROUS)
        try:
            made.connect(("127.0.0.1", self.ports[inside]))
        except BaseException:
            made.close()
            raise
        return made

    def answers(self) -> bool:
        """Whether the peer's echo answers."""
        with contextlib.suppress(ConnectionError), self.connect(ECHO) as stream:
            stream.sendall(b"x")
            return stream.recv(1) == b"x"
        return False

    def flows(self, count: int, kind: str = "flow_end") -> list[dict[str, Any]]:
        """The next events of that kind, so many of them."""
        return [self.gateway.event(kind) for _ in range(count)]

    def close(self) -> None:
        self._ending.close()


@pytest.fixture(scope="module", params=["namespace", "kernel"])
def around(request: pytest.FixtureRequest, topology: Topology) -> Iterator[Around]:
    made = Around(request.param, topology)
    yield made
    made.close()


def whole(stream: socket.socket) -> bytes:
    found = bytearray()
    while data := stream.recv(1 << 16):
        found += data
    return bytes(found)


def test_bytes_go_both_ways_and_the_flow_is_told(around: Around) -> None:
    around.gateway.drain()
    with around.connect(ECHO) as stream:
        stream.sendall(b"hello")
        assert stream.recv(100) == b"hello"
        (begun,) = around.flows(1, "flow")
        assert (begun["verdict"], begun["protocol"], begun["address"]) == ("allow", "tcp", PEER)
        assert (begun["port"], begun["rule"]) == (ECHO, f"publish 127.0.0.1:0:{ECHO}")
        here = stream.getsockname()
        assert begun["reason"] == f"a published port, from {here[0]}:{here[1]}"
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(100) == b""
    (end,) = around.flows(1)
    assert (end["flow"], end["reason"], end["verdict"]) == (begun["flow"], "closed", "allow")
    assert (end["bytes_in"], end["bytes_out"]) == (5, 5)


def test_the_peer_is_reached_by_the_published_port_alone(around: Around) -> None:
    """The control: the client's own network has no way to the peer with the namespace engine."""
    if around.gateway.engine == "kernel":
        pytest.skip("the tunnel's end is in the machine's own network, as its owner wants it")
    with around.topology.gateway.socket() as stream:
        stream.settimeout(1)
        with pytest.raises(OSError):
            stream.connect((PEER, ECHO))


def test_a_closed_port_is_a_reset_and_told_as_not_reached(around: Around) -> None:
    around.gateway.drain()
    # The reset may be there before this side's connect() has returned.
    with pytest.raises(ConnectionResetError), around.connect(CLOSED) as stream:
        stream.recv(1)
    (end,) = around.flows(1)
    assert (end["verdict"], end["port"]) == ("fail", CLOSED)
    assert end["reason"] == f"the cell's port {PEER}:{CLOSED}: Connection refused"


def test_a_peer_that_does_not_answer_is_given_up(around: Around) -> None:
    """Its interface is down: whatever the gateway sends there is lost."""
    around.gateway.drain()
    client = around.topology.client
    client.run("ip", "link", "set", "pub", "down")
    try:
        with pytest.raises(ConnectionResetError), around.connect(ECHO) as stream:
            stream.recv(1)
        (end,) = around.flows(1)
        assert end["verdict"] == "fail" and end["reason"].endswith(": timed out"), end
    finally:
        client.run("ip", "link", "set", "pub", "up")
        client.run("ip", "route", "replace", "default", "dev", "pub", "table", around.table)
    until(lambda: around.answers())


def test_an_end_of_one_direction_leaves_the_other_open(around: Around) -> None:
    with around.connect(COUNTER) as stream:
        stream.sendall(bytes(3_000_000))
        stream.shutdown(socket.SHUT_WR)
        assert whole(stream) == b"3000000"


def test_a_reader_that_does_not_read_is_no_matter_of_others(around: Around) -> None:
    """The echo's bytes are not taken: so the client may send no more than the buffers hold."""
    with around.connect(ECHO) as slow:
        slow.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 28:
                sent += slow.send(bytes(1 << 16))
        before = memory(around.gateway)

        def no_more() -> bool:
            with contextlib.suppress(BlockingIOError):
                slow.send(bytes(1 << 16))
                return False
            return True

        until(no_more, every=0.1)
        with around.connect(ECHO) as other:
            other.sendall(b"x")
            assert other.recv(1) == b"x"
        assert memory(around.gateway) - before < 16 << 20
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    around.gateway.event("flow_end")


def memory(gateway: Gateway) -> int:
    """Resident bytes of its process."""
    with open(f"/proc/{gateway.process.pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def test_two_hundred_at_once(around: Around) -> None:
    around.gateway.drain()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(around.connect(ECHO)) for _ in range(200)]
        for number, stream in enumerate(streams):
            stream.sendall(b"%03d" % number)
        for number, stream in enumerate(streams):
            assert stream.recv(3) == b"%03d" % number


def test_there_is_a_bound_and_an_error_beyond_it(around: Around) -> None:
    around.gateway.drain()
    with contextlib.ExitStack() as stack:
        taken = 0
        # What an earlier test has opened may be ending still.
        while taken <= MOST_JOINED and _answers(around, stack):
            taken += 1
        assert MOST_JOINED - 8 <= taken <= MOST_JOINED
        assert not any(_answers(around, stack) for _ in range(3))
        around.gateway.told(lambda found: any(map(_refusal, found)))

    def works_again() -> bool:
        with contextlib.ExitStack() as one:
            return _answers(around, one)

    until(works_again)


def _refusal(event: dict[str, Any]) -> bool:
    full = f"{MOST_JOINED} connections to published ports are open already"
    return event.get("reason") == full or bool(event.get("refuse"))


def _answers(around: Around, stack: contextlib.ExitStack) -> bool:
    """Whether another connection works; it stays open."""
    try:
        stream = stack.enter_context(around.connect(ECHO))
        stream.sendall(b"x")
        return stream.recv(1) == b"x"
    except ConnectionError:
        return False


def test_ports_are_published_from_the_start(around: Around) -> None:
    peer = around.gateway.config["peers"]["cell"]
    more = {**peer, "publish": [*peer["publish"], "0:1"]}
    around.gateway.tell({**around.gateway.config, "peers": {"cell": more}})
    assert "published from the start" in around.gateway.event("fault")["detail"]


def test_another_policy_leaves_them_alone(around: Around) -> None:
    with around.connect(ECHO) as stream:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        around.gateway.tell({**around.gateway.config, "rules": ["deny *:*"]})
        around.gateway.event("applied")
        stream.sendall(b"y")
        assert stream.recv(1) == b"y"
        around.gateway.tell(around.gateway.config)
        around.gateway.event("applied")


@pytest.mark.parametrize("engine", ["namespace", "auto"])
def test_a_port_in_use_is_named(engine: str) -> None:
    peer = config_of()["peers"]["cell"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = config_of(peers={"cell": {**peer, "publish": ["0:81", f"{port}:80"]}})
        gateway = Gateway(config, argv=[engine])
        try:
            detail = gateway.first["detail"]
            assert f"can't publish 127.0.0.1:{port}:80: 127.0.0.1:{port}: Address already" in detail
            assert "choose another port" in detail
        finally:
            assert gateway.close() == 125


def test_the_embedded_engine_names_what_is_needed() -> None:
    peer = config_of()["peers"]["cell"]
    gateway = Gateway(config_of(peers={"cell": {**peer, "publish": ["0:80"]}}))
    try:
        detail = gateway.first["detail"]
        assert "the embedded engine can't open connections into the tunnel" in detail
        assert '"namespace" and "kernel" can' in detail
    finally:
        gateway.close()
