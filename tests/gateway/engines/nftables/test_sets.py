"""Thousands of answers at once: each is open when told, and stays so through a changed policy.

A process that is not root may send the kernel only so many bytes in one message (net.core.wmem_max,
212,992 by default), and a transaction is one message. The kernel engine runs here as root of a user
namespace, who is held to the same.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import pytest
from tests.support.gateways import SERVER, Gateway, Tunnel
from tests.support.networks import Net, Topology, serving
from tests.support.waiting import until

from wgcell.gateway.engines.nftables import forwarding, tproxy, transactions
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.parsing import parse_config

pytestmark = pytest.mark.namespaces

ALICE = generate_private_key()
NAMES, EACH = 50, 60
PORT = 53200


def address(name: int, number: int) -> str:
    return f"203.0.{128 + name}.{1 + number}"


def echo(stream: socket.socket) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


def config_of(*rules: str) -> dict[str, object]:
    return {
        "listen": f"192.0.2.1:{PORT}",
        "private_key": SERVER,
        "rules": [*rules, "allow *.many.example.com:8080-8081"],
        "resolver": ["198.51.100.2:5354"],
        "peers": {"alice": {"public_key": public_key(ALICE), "address": "10.99.0.2", "port": PORT}},
    }


@pytest.fixture(params=["namespace", "kernel"])
def around(
    request: pytest.FixtureRequest, topology: Topology, tmp_path: Path
) -> Iterator[tuple[Gateway, Tunnel]]:
    hosts = tmp_path / "hosts"
    places = ((name, number) for name in range(NAMES) for number in range(EACH))
    hosts.write_text(
        "".join(f"{address(*place)} n{place[0]}.many.example.com\n" for place in places)
    )
    world, gate = topology.world, topology.gateway
    world.run("ip", "route", "replace", "local", "203.0.128.0/17", "dev", "lo")
    gate.run("ip", "route", "replace", "203.0.128.0/17", "via", "198.51.100.2")
    with contextlib.ExitStack() as ending:
        resolver = world.start(
            *("dnsmasq", "-k", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root"),
            *("--group=", "--pid-file=", "--log-facility=-", "--listen-address=198.51.100.2"),
            *(
                "--port=5354",
                "--bind-interfaces",
                "--edns-packet-max=4096",
                "--local=/example.com/",
            ),
            # Without it each answer is for 0 s, and closed while a busy machine still asks.
            "--local-ttl=3600",
            f"--addn-hosts={hosts}",
            stderr=subprocess.DEVNULL,
        )
        ending.callback(resolver.wait)
        ending.callback(resolver.terminate)
        ending.enter_context(serving(world, [("0.0.0.0", 8080)], echo))
        gateway = Gateway(config_of(), gate.enter, [request.param, "wgc53200"])  # type: ignore[arg-type]
        ending.enter_context(contextlib.closing(gateway))
        assert gateway.first["event"] == "ready", gateway.first
        tunnel = Tunnel(topology.client, "many", ALICE, "10.99.0.2", public_key(SERVER), PORT)
        ending.enter_context(contextlib.closing(tunnel))
        yield gateway, tunnel


def ask_all(tunnel: Tunnel) -> None:
    """All names in one go, and again whatever UDP has lost."""
    left = {f"n{name}.many.example.com" for name in range(NAMES)}

    def answered() -> bool:
        with tunnel.net.socket(socket.SOCK_DGRAM) as sock:
            sock.bind((tunnel.address, 0))
            sock.settimeout(5)
            for name in left:
                query = dns.message.make_query(name, "A", use_edns=0, payload=1232)
                sock.sendto(query.to_wire(), (tunnel.resolver, 53))
            with contextlib.suppress(TimeoutError):
                while left:
                    answer = dns.message.from_wire(sock.recv(4096))
                    if answer.answer:
                        assert len(answer.answer[-1]) == EACH
                        left.discard(str(answer.question[0].name).rstrip("."))
        return not left

    until(answered)


def all_open(tunnel: Tunnel) -> None:
    for name in range(NAMES):
        for number in (0, EACH - 1):
            assert tunnel.talk(address(name, number), 8080, b"x") == b"x", (name, number)


def test_fifty_names_at_once_are_open_and_stay_so(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    ask_all(tunnel)
    all_open(tunnel)
    # Gateway.event fails at a fault, which a transaction that was not taken is.
    gateway.tell(config_of("allow 203.0.113.7:80"))
    gateway.event("applied", timeout=60)
    all_open(tunnel)
    assert tunnel.talk("203.0.113.7", 8081) is None


def test_what_a_name_denies_is_denied_throughout(around: tuple[Gateway, Tunnel]) -> None:
    """While the sets are filled anew no flow passes that the whole policy denies."""
    gateway, tunnel = around
    wide = ("deny n49.many.example.com:8080", "allow 203.0.128.0/17:8080")
    gateway.tell(config_of(*wide))
    gateway.event("applied", timeout=60)
    ask_all(tunnel)
    assert tunnel.talk(address(49, 7), 8080, b"x") is None
    for number in range(5):
        gateway.tell(config_of(*wide, f"allow 203.0.113.7:{80 + number}"))
        told: list[str] = []
        while "applied" not in told:
            with contextlib.suppress(OSError):
                assert tunnel.talk(address(49, number), 8080, b"x") is None
            told += [event["event"] for event in gateway.drain()]
    all_but = address(48, 7)
    until(lambda: tunnel.talk(all_but, 8080, b"x") == b"x")


def test_a_policy_of_any_length_is_taken(around: tuple[Gateway, Tunnel]) -> None:
    gateway, tunnel = around
    many = [f"allow h{number}.example.com:443" for number in range(400)]
    gateway.tell(config_of(*many, "deny 203.0.113.7:8080", "allow 203.0.113.0/24:8080"))
    gateway.event("applied", timeout=60)
    assert tunnel.talk("203.0.113.7", 8080, b"x") is None
    assert tunnel.talk("203.0.113.8", 8080, b"x") == b"x"
    assert tunnel.talk("203.0.113.8", 8081, b"x") is None


@pytest.mark.parametrize("make", [forwarding.ruleset, tproxy.ruleset], ids=["forwarding", "tproxy"])
@pytest.mark.parametrize("rules", [1, 40, 300])
def test_portions_hold_the_whole_ruleset(make: Callable[..., str], rules: int) -> None:
    """As one and in portions, the kernel lists the same table."""
    raw = config_of(*(f"allow h{number}.example.com:443" for number in range(rules)))
    text = make(parse_config(raw), "wgc0")
    parts = transactions.portions(text)
    assert (len(parts) > 1) is (rules > 1 and len(text) > transactions.MOST_TEXT)
    listed = []
    for texts in (parts, [text]) if rules < 100 else (parts, parts):
        with contextlib.closing(Net()) as net:
            for transaction in texts:
                net.run("nft", "-f", "-", stdin=transaction)
            listed.append(net.run("nft", "list", "ruleset"))
    assert listed[0] == listed[1]
    assert sum(line.startswith("\tset name_alice") for line in listed[0].splitlines()) == 2 * (
        rules + 1
    )
