"""The embedded gateway as a process, on loopback, with a WireGuard peer made of bytes.

::

    this test: IPv4 packets, sealed by hand          python -m wgcell.gateway
    10.99.0.2 ------------------ UDP on 127.0.0.1 ------------------ 10.99.0.1 (DNS)
                                                                     10.99.0.5:80 -> 127.0.0.1
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dns.rcode
import pytest
from tests.support.bytepeer import FIN, RST, SYN, Peer
from tests.support.gateways import CLIENT, LOOPBACK, SERVER, Gateway, config_of, order_of
from tests.support.waiting import lull, pace

from wgcell.cell import consent
from wgcell.cell.endpoint import connect
from wgcell.errors import ConsentError
from wgcell.gateway import words
from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key
from wgcell.gateway.peer.events import MOST_REPORTED

pytestmark = pytest.mark.process

Start = Callable[..., Gateway]


@contextmanager
def peer_of(gateway: Gateway) -> Iterator[Peer]:
    with connect(LOOPBACK, gateway.first["port"]) as sock:
        yield Peer(sock)


def test_it_consents_to_its_peer_and_to_no_other_key(gateway: Start) -> None:
    started = gateway()
    assert started.first["event"] == "ready"
    with connect(LOOPBACK, started.first["port"]) as sock:
        mine, theirs = decode_key(CLIENT), decode_key(public_key(SERVER))
        asyncio.run(consent.obtain(sock, mine, theirs, timeout=4))
        wrong = decode_key(public_key(generate_private_key()))
        with pytest.raises(ConsentError, match="no consent"):
            asyncio.run(consent.obtain(sock, mine, wrong, timeout=0.4))


@pytest.mark.parametrize("slow", [0, 0.3])
@pytest.mark.alone
def test_a_refused_flow_ends_at_once_and_is_told(gateway: Start, slow: float) -> None:
    started = gateway(rules=["allow 192.0.2.7:80"])
    with peer_of(started) as peer:
        begun = time.monotonic()
        got, how = peer.tcp("192.0.2.7", 443, slow=slow)
        assert (got, how in (FIN, RST)) == (b"", True)
        assert time.monotonic() - begun < 2
    flow = started.event()
    assert flow.pop("time") > 0
    assert flow.pop("flow") > 0
    assert flow == {
        "event": "flow",
        "peer": "cell",
        "protocol": "tcp",
        "address": "192.0.2.7",
        "port": 443,
        "name": "",
        "verdict": "refuse",
        "rule": "",
        "reason": "no rule allows it",
        "hint": "",
    }


def test_a_service_is_joined_and_its_bytes_counted(gateway: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"hello " + client.recv(100))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        services = {"10.99.0.5:80": f"127.0.0.1:{server.getsockname()[1]}"}
        started = gateway(services=services)
        with peer_of(started) as peer:
            assert peer.tcp("10.99.0.5", 80, b"cell") == (b"hello cell", FIN)
            assert started.event()["verdict"] == "allow"
            end = started.event()
            assert (end["event"], end["bytes_out"], end["bytes_in"]) == ("flow_end", 4, 10)
        thread.join()


def test_an_allowed_target_that_is_not_there_ends_too(gateway: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        started = gateway(services={"10.99.0.5:80": f"127.0.0.1:{port}"})
        with peer_of(started) as peer:
            assert peer.tcp("10.99.0.5", 80)[0] == b""
            assert started.event()["verdict"] == "allow"
            end = started.event()
            why = f"service 127.0.0.1:{port}: Connection refused"
            assert (end["event"], end["verdict"], end["reason"]) == ("flow_end", "fail", why)


def test_another_source_than_the_peers_is_refused(gateway: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        services = {"10.99.0.5:80": f"127.0.0.1:{server.getsockname()[1]}"}
        started = gateway(services=services)
        with peer_of(started) as peer:
            peer.source = "10.99.0.3"
            assert peer.tcp("10.99.0.5", 80, b"cell")[0] == b""
        with pytest.raises(TimeoutError):
            server.accept()
        assert started.event()["reason"] == "its source, 10.99.0.3, is not the peer's"


def test_bytes_that_are_no_query_get_no_answer_and_the_next_query_does(gateway: Start) -> None:
    started = gateway()
    with peer_of(started) as peer:
        peer.send(17, "10.99.0.1", struct.pack(">HHHH", 5353, 53, 12, 0) + b"junk")
        assert peer.ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN
    assert started.event()["reason"] == "not a DNS query"
    assert started.event()["reason"] == "no rule names it"


def test_a_flood_is_counted_and_not_told_one_by_one(gateway: Start) -> None:
    started = gateway(limits={"queries_per_second": 1000000})
    flood = MOST_REPORTED * 3
    with peer_of(started) as peer:
        for _ in range(flood):
            peer.ask("attacker.example", "A")
    started.close()
    events = started.drain()
    told = [event for event in events if event["event"] == "flow"]
    omitted = [event for event in events if event["event"] == "flows_omitted"]
    assert MOST_REPORTED <= len(told) < MOST_REPORTED * 1.5
    assert len(omitted) <= 3
    assert len(told) + sum(event["refuse"] for event in omitted) == flood


def test_a_peer_that_breaks_its_server_gets_another_one_and_breaks_no_ones_else(
    gateway: Start,
) -> None:
    """A SYN to port 0 ends mitmproxy_rs's network task."""
    other = generate_private_key()
    peers = {
        "cell": {"public_key": public_key(CLIENT), "address": "10.99.0.2"},
        "other": {"public_key": public_key(other), "address": "10.99.0.3"},
    }
    started = gateway(peers=peers)
    with (
        peer_of(started) as peer,
        connect(LOOPBACK, started.first["peers"]["other"]) as sock,
    ):
        neighbour = Peer(sock, other)
        neighbour.source = "10.99.0.3"
        peer.send(6, "192.0.2.7", struct.pack(">HHIIBBHHH", 4000, 0, 1, 0, 0x50, SYN, 9, 0, 0))
        assert started.event()["event"] == "door_broken"
        assert neighbour.ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN
    lull(1.2)  # seconds after which it may be opened again
    with peer_of(started) as peer:
        assert peer.ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("engine", ["embedded", "namespace"])
def test_a_gateway_that_was_killed_answers_the_next_handshake(gateway: Start, engine: str) -> None:
    first = gateway(engine=engine)
    port = first.first["port"]
    with connect(LOOPBACK, port) as sock:
        assert Peer(sock).ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN
        first.kill()
        gateway(engine=engine, listen=f"127.0.0.1:{port}")
        assert Peer(sock).ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("engine", ["embedded", "namespace"])
@pytest.mark.alone
def test_half_open_connections_do_not_stop_the_next(gateway: Start, engine: str) -> None:
    """A thousand SYNs whose handshake never ends, then one query."""
    started = gateway(engine=engine, rules=["allow 192.0.2.7:443"])
    with peer_of(started) as peer:
        for port in range(1024, 2024):
            peer.send(
                6, "192.0.2.7", struct.pack(">HHIIBBHHH", port, 443, 1, 0, 0x50, SYN, 9, 0, 0)
            )
            if port % 100 == 0:
                pace(0.02)  # a full queue drops, as any network does
        begun = time.monotonic()
        assert peer.ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("line", ["", "x", "[]", "{}", '{"colour": 1}'])
def test_a_bad_config_is_a_fault_and_exit_125(line: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "wgcell.gateway"],
        input=line + "\n",
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert run.returncode == 125
    assert json.loads(run.stdout)["event"] == "fault"
    assert run.stderr == ""


def test_a_bad_second_config_is_a_fault_and_changes_nothing(gateway: Start) -> None:
    started = gateway()
    for order in ({"order": "configure", "colour": 1}, {"order": "paint"}, [], {}):
        started.say(json.dumps(order).encode() + b"\n")
        assert "an order that is none" in started.event("fault")["detail"]
    started.tell(config_of(listen="nowhere"))
    assert "listen: found" in started.event("fault")["detail"]
    with peer_of(started) as peer:
        assert peer.ask("attacker.example", "A").rcode() == dns.rcode.NXDOMAIN


def test_it_dies_with_its_parent() -> None:
    """Killed outright. Its stdin is held open here, so only the kernel's signal ends it."""
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'wgcell.gateway'], stdin=0)\n"
        "time.sleep(60)\n"
    )
    reader, writer = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=reader, stdout=subprocess.PIPE, text=True
    )
    os.close(reader)
    os.write(writer, words.ORDERS.line(order_of(config_of())))
    assert parent.stdout
    assert json.loads(parent.stdout.readline())["event"] == "ready"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    # The child holds the other end of this pipe: its end is the child's death.
    assert parent.stdout.read() == ""
    parent.stdout.close()
    os.close(writer)
