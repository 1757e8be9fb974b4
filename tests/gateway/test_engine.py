"""The embedded gateway as a process, on loopback, with a WireGuard peer made of bytes.

::

    this test: IPv4 packets, sealed by hand          python -m wgcell.gateway
    10.99.0.2 ------------------ UDP on 127.0.0.1 ------------------ 10.99.0.1 (DNS)
                                                                     10.99.0.5:80 -> 127.0.0.1
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dns.message
import dns.rcode
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from wgcell.cell import consent
from wgcell.cell.endpoint import connect
from wgcell.errors import ConsentError, PolicyError
from wgcell.gateway.engine import answer_query, parse_config
from wgcell.gateway.keys import decode_key, generate_private_key, public_key

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SERVER, CLIENT = generate_private_key(), generate_private_key()
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


class Gateway:
    """The process, and its lines."""

    def __init__(self, **config: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wgcell.gateway"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = {"private_key": SERVER, "peers": [public_key(CLIENT)], **config}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        self.first = self.event()

    def event(self) -> dict[str, Any]:
        assert self.process.stdout
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event


@contextmanager
def running(**config: Any) -> Iterator[Gateway]:
    gateway = Gateway(**config)
    try:
        yield gateway
    finally:
        assert gateway.process.stdin
        assert gateway.process.stdout
        gateway.process.stdin.close()
        try:
            gateway.process.wait(5)
        finally:
            gateway.process.kill()
            gateway.process.stdout.close()
            gateway.process.wait()


def checksum(raw: bytes) -> int:
    total = sum(
        struct.unpack(f">{len(raw + bytes(len(raw) % 2)) // 2}H", raw + bytes(len(raw) % 2))
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class Peer:
    """10.99.0.2: one WireGuard session, IPv4, and just enough UDP and TCP."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(4)
        keys = consent.HandshakeKeys(decode_key(CLIENT), decode_key(public_key(SERVER)))
        message, state = consent.build_initiation(keys, time.time_ns())
        sock.send(message)
        answer = sock.recv(2048)
        assert consent.verify_response(state, answer)
        ephemeral = answer[12:44]
        (chain,) = consent._kdf(state.chaining_key, ephemeral, 1)
        (chain,) = consent._kdf(chain, consent._dh(state.ephemeral_private, ephemeral), 1)
        (chain,) = consent._kdf(chain, consent._dh(keys.private_key, ephemeral), 1)
        chain = consent._kdf(chain, keys.preshared_key, 3)[0]
        self.seal, self.open = map(ChaCha20Poly1305, consent._kdf(chain, b"", 2))
        self.index = answer[4:8]
        self.counter = 0

    def send(self, protocol: int, destination: str, payload: bytes) -> None:
        source, target = socket.inet_aton("10.99.0.2"), socket.inet_aton(destination)
        if protocol == 6:
            pseudo = source + target + struct.pack(">HH", 6, len(payload)) + payload
            payload = payload[:16] + struct.pack(">H", checksum(pseudo)) + payload[18:]
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
        total = checksum(header + source + target)
        packet = header[:10] + struct.pack(">H", total) + source + target + payload
        packet += bytes(-len(packet) % 16)
        nonce = bytes(4) + struct.pack("<Q", self.counter)
        sealed = self.seal.encrypt(nonce, packet, b"")
        self.sock.send(struct.pack("<I", 4) + self.index + nonce[4:] + sealed)
        self.counter += 1

    def receive(self, protocol: int) -> bytes:
        while True:
            raw = self.sock.recv(2048)
            packet = self.open.decrypt(bytes(4) + raw[8:16], raw[16:], b"")
            if packet and packet[9] == protocol:
                return packet[20 : struct.unpack_from(">H", packet, 2)[0]]

    def ask(self, name: str, kind: str) -> dns.message.Message:
        query = dns.message.make_query(name, kind).to_wire()
        self.send(17, "10.99.0.1", struct.pack(">HHHH", 5353, 53, 8 + len(query), 0) + query)
        return dns.message.from_wire(self.receive(17)[8:])

    def tcp(self, address: str, port: int, data: bytes = b"", slow: float = 0) -> tuple[bytes, int]:
        """Connect, send ``data``, and return what came until the other side ended, and how."""
        seq, ack, got = 1000, 0, b""

        def segment(flags: int, payload: bytes = b"") -> None:
            header = struct.pack(">HHIIBBHHH", 4000, port, seq, ack, 0x50, flags, 65535, 0, 0)
            self.send(6, address, header + payload)

        segment(SYN)
        seq += 1
        while True:
            raw = self.receive(6)
            number, flags = struct.unpack_from(">I", raw, 4)[0], raw[13]
            payload = raw[(raw[12] >> 4) * 4 :]
            if flags & RST:
                return got, RST
            if flags & SYN:
                ack = number + 1
                time.sleep(slow)
                segment(ACK)
                if data:
                    segment(PSH | ACK, data)
                    seq += len(data)
            elif number == ack:
                got += payload
                ack += len(payload)
                if flags & FIN:
                    ack += 1
                    segment(FIN | ACK)
                    return got, FIN
                if payload:
                    segment(ACK)


@contextmanager
def peer_of(gateway: Gateway) -> Iterator[Peer]:
    with connect(LOOPBACK, gateway.first["port"]) as sock:
        yield Peer(sock)


def test_it_consents_to_its_peer_and_to_no_other_key() -> None:
    with running() as gateway:
        assert gateway.first["event"] == "ready"
        with connect(LOOPBACK, gateway.first["port"]) as sock:
            mine, theirs = decode_key(CLIENT), decode_key(public_key(SERVER))
            asyncio.run(consent.obtain(sock, mine, theirs, timeout=4))
            wrong = decode_key(public_key(generate_private_key()))
            with pytest.raises(ConsentError, match="no consent"):
                asyncio.run(consent.obtain(sock, mine, wrong, timeout=0.4))


@pytest.mark.parametrize("slow", [0, 0.3])
def test_refused_tcp_ends_soon_and_is_logged(slow: float) -> None:
    """Neither side sends a byte, and the workload's ACK may come late: it must not hang."""
    with running(allow=["192.0.2.7:80"]) as gateway, peer_of(gateway) as peer:
        begun = time.monotonic()
        got, how = peer.tcp("192.0.2.7", 443, slow=slow)
        assert (got, how in (FIN, RST)) == (b"", True)
        assert time.monotonic() - begun < 2
        flow = gateway.event()
        flow.pop("time")
        assert flow == {
            "event": "flow",
            "peer": "10.99.0.2",
            "protocol": "tcp",
            "address": "192.0.2.7",
            "port": 443,
            "name": "",
            "verdict": "refuse",
            "rule": "",
            "reason": "no rule allows it",
        }


def test_a_service_is_joined_and_its_bytes_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"hello " + client.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        services = {"10.99.0.5:80": f"127.0.0.1:{server.getsockname()[1]}"}
        with running(services=services) as gateway, peer_of(gateway) as peer:
            assert peer.tcp("10.99.0.5", 80, b"cell") == (b"hello cell", FIN)
            assert gateway.event()["verdict"] == "allow"
            end = gateway.event()
            assert (end["event"], end["bytes_out"], end["bytes_in"]) == ("flow_end", 4, 10)
        thread.join()


def test_an_allowed_target_that_is_not_there_ends_too() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        services = {"10.99.0.5:80": f"127.0.0.1:{port}"}
        with running(services=services) as gateway, peer_of(gateway) as peer:
            assert peer.tcp("10.99.0.5", 80)[0] == b""
            assert gateway.event()["verdict"] == "allow"
            assert "not reached" in gateway.event()["reason"]


def test_udp_to_an_allowed_address_goes_and_comes() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(4)
        port = target.getsockname()[1]
        with running(allow=[f"127.0.0.1:{port}"]) as gateway, peer_of(gateway) as peer:
            peer.send(17, "127.0.0.1", struct.pack(">HHHH", 5000, port, 12, 0) + b"ping")
            data, source = target.recvfrom(100)
            assert data == b"ping"
            target.sendto(b"pong", source)
            assert peer.receive(17)[8:] == b"pong"


def test_the_resolver_answers_allowed_names_only_and_logs_the_rest() -> None:
    with running(allow=["localhost:80"]) as gateway, peer_of(gateway) as peer:
        answer = peer.ask("localhost", "A")
        assert "127.0.0.1" in answer.answer[0].to_text()
        empty = peer.ask("localhost", "AAAA")
        assert (empty.rcode(), empty.answer) == (dns.rcode.NOERROR, [])
        assert peer.ask("attacker.example", "A").rcode() == dns.rcode.REFUSED
        flow = gateway.event()
        assert (flow["verdict"], flow["name"]) == ("refuse", "attacker.example")
        assert flow["reason"] == "no rule names it"


def test_a_name_that_does_not_resolve_is_told_after_ready_and_stays_refused() -> None:
    with running(allow=["xn--a.invalid:80"]) as gateway, peer_of(gateway) as peer:
        assert gateway.first["event"] == "ready"
        assert gateway.event()["event"] == "unresolved"
        assert peer.ask("xn--a.invalid", "A").rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize(
    "line",
    ["", "x", "[]", "{}", '{"private_key": "x", "peers": []}', '{"colour": 1}'],
)
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


@pytest.mark.parametrize(
    "change",
    [
        {"listen": 5},
        {"peers": ["x"]},
        {"allow": ["x"]},
        {"allow": 5},
        {"services": ["x"]},
        {"address": "x"},
        {"protected": ["x"]},
        {"peers": None},
    ],
    ids=str,
)
def test_config_errors_are_policy_errors(change: dict[str, object]) -> None:
    with pytest.raises(PolicyError):
        parse_config({"private_key": SERVER, "peers": [public_key(CLIENT)], **change})


def test_it_dies_with_its_parent() -> None:
    """Killed outright. Its stdin is held open here, so only the kernel's signal ends it."""
    config = json.dumps({"private_key": SERVER, "peers": []})
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
    os.write(writer, config.encode() + b"\n")
    assert parent.stdout
    assert json.loads(parent.stdout.readline())["event"] == "ready"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    # The child holds the other end of this pipe: its end is the child's death.
    begun = time.monotonic()
    assert parent.stdout.read() == ""
    assert time.monotonic() - begun < 2
    parent.stdout.close()
    os.close(writer)


NAMES = {"a.example": (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1"))}
QUERY = dns.message.make_query("a.example", "A").to_wire()


def test_answers_keep_the_id_and_only_ipv4() -> None:
    answer, name, allowed = answer_query(QUERY, NAMES)
    message = dns.message.from_wire(answer)
    assert (message.id, name, allowed) == (struct.unpack(">H", QUERY[:2])[0], "a.example", True)
    assert [item.to_text() for item in message.answer[0]] == ["192.0.2.1"]


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80)
    | st.lists(st.tuples(st.integers(0, len(QUERY) - 1), st.integers(0, 255)), max_size=6).map(
        lambda changes: bytes(dict(changes).get(i, byte) for i, byte in enumerate(QUERY))
    )
)
def test_no_datagram_raises(raw: bytes) -> None:
    answer, _, allowed = answer_query(raw, NAMES)
    assert answer or not allowed
