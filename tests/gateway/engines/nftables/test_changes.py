"""With nftables: changes that fail half way, and peers that fill what they share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import pytest
from tests.support.gateways import SERVER, Gateway, Tunnel
from tests.support.networks import RESOLVER, Topology
from tests.support.waiting import GENEROUS, pace

from wgcell.gateway.engines.nftables.machine import MachineHost
from wgcell.gateway.model.keys import generate_private_key, public_key

pytestmark = pytest.mark.namespaces

ALICE, BOB = generate_private_key(), generate_private_key()
RULES = ["allow api.example.com:7000", "allow b.example.com:9000/udp"]


def config_of(**changes: Any) -> dict[str, Any]:
    return {
        "listen": "192.0.2.1:54000",
        "private_key": SERVER,
        "rules": RULES,
        "resolver": [RESOLVER],
        "protected": ["198.51.100.0/24"],
        "peers": {"alice": {"public_key": public_key(ALICE), "address": "10.99.0.2"}},
        **changes,
    }


class Breaking:
    """Tools that fail while told to: ``ip`` after the first line of a batch, ``wg`` at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for tool, at in (("ip", '[ "$1" = -batch ]'), ("wg", "true")):
            real = shutil.which(tool)
            first = f"head -n 1 | {real} -batch -; " if tool == "ip" else ""
            script = (
                f'if [ -e {folder}/{tool}.fails ] && {at}; then {first}echo "made to fail" >&2; '
            )
            path = folder / tool
            path.write_text(f'#!/bin/sh\n{script}exit 1; fi\nexec {real} "$@"\n')
            path.chmod(0o755)

    @contextlib.contextmanager
    def __call__(self, tool: str) -> Iterator[None]:
        mark = self.folder / f"{tool}.fails"
        mark.touch()
        yield
        mark.unlink()


@pytest.fixture
def breaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Breaking:
    made = Breaking(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return made


@pytest.fixture(params=["namespace", "kernel"])
def gateway(
    request: pytest.FixtureRequest, topology: Topology, breaking: Breaking
) -> Iterator[Gateway]:
    made = Gateway(config_of(), topology.gateway.enter, [request.param, "wgch"])
    assert made.first["event"] == "ready", made.first
    yield made
    made.close()


@pytest.fixture
def alice(gateway: Gateway, topology: Topology) -> Iterator[Tunnel]:
    key = public_key(SERVER)
    made = Tunnel(topology.client, "change", ALICE, "10.99.0.2", key, gateway.first["port"])
    yield made
    made.close()


def test_half_of_a_change_is_mended_by_the_next(
    gateway: Gateway, topology: Topology, alice: Tunnel, breaking: Breaking
) -> None:
    def addresses() -> set[str]:
        shown = topology.gateway.run(
            *gateway.inside(), "ip", "-4", "-br", "addr", "show", "dev", gateway_interface
        )
        return set(shown.split()[2:])

    gateway_interface = "wgch" if gateway.engine == "kernel" else "wgcell0"
    more = config_of(services={"10.99.0.9:80": "198.51.100.2:7002"})
    with breaking("ip"):
        gateway.tell(more)
        assert "made to fail" in gateway.event("fault")["detail"]
    gateway.tell(more)
    gateway.event("applied")
    assert addresses() == {"10.99.0.1/32", "10.99.0.9/32"}
    with breaking("ip"):
        gateway.tell(config_of(address="10.99.0.77"))
        gateway.event("fault")
    gateway.tell(config_of())
    gateway.event("applied")
    assert addresses() == {"10.99.0.1/32"}
    assert alice.ask("api.example.com").answer


def test_half_of_a_change_opens_nothing(
    gateway: Gateway, topology: Topology, alice: Tunnel, breaking: Breaking
) -> None:
    """The sets behind names are called by their rules' numbers, which the change has turned."""
    service = {"10.99.0.9:80": "198.51.100.2:7002"}  # so that more than the rules changes
    with topology.world.socket(socket.SOCK_DGRAM) as target:
        target.bind(("203.0.113.7", 9000))
        target.settimeout(0.5)
        with breaking("wg"):
            gateway.tell(config_of(rules=RULES[::-1], services=service))
            assert "made to fail" in gateway.event("fault")["detail"]
        assert alice.ask("api.example.com").answer
        alice.datagram("203.0.113.7", 9000, timeout=0.3)
        with pytest.raises(TimeoutError):
            target.recv(100)
    with topology.world.socket(socket.SOCK_DGRAM) as target:  # the control: where it is open
        target.bind(("203.0.113.8", 9000))
        target.settimeout(2)
        assert alice.ask("b.example.com").answer
        alice.datagram("203.0.113.8", 9000, timeout=0.1)
        assert target.recv(100) == b"x"


_NAMES = """
import random, socket, dns.message, dns.rrset
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("198.51.100.2", 5353))
print("up", flush=True)
while True:
    raw, source = server.recvfrom(4096)
    query = dns.message.from_wire(raw)
    answer, name = dns.message.make_response(query), query.question[0].name
    some = [f"203.0.{random.randrange(64, 256)}.{random.randrange(1, 255)}" for _ in range(60)]
    answer.answer.append(dns.rrset.from_text(name, 3600, "IN", "A", *some))
    server.sendto(answer.to_wire(), source)
"""


@pytest.mark.parametrize("engine", ["namespace", "kernel"])
@pytest.mark.alone
def test_a_peer_that_fills_its_sets_is_no_matter_of_anothers(
    engine: str, topology: Topology
) -> None:
    """Sixty addresses an answer, 64 answers a second: 4096 are the most that a set holds."""
    for network in ("203.0.64.0/18", "203.0.128.0/17"):  # an address without a route is not told
        topology.gateway.run("ip", "route", "replace", network, "via", "198.51.100.2")
    server = topology.world.start(sys.executable, "-c", _NAMES, stdout=-1)
    assert server.stdout is not None
    assert server.stdout.readline() == b"up\n"
    peers = {
        "alice": {"public_key": public_key(ALICE), "address": "10.99.0.2"},
        "bob": {"public_key": public_key(BOB), "address": "10.99.0.3", "port": 54001},
    }
    config = config_of(rules=["allow *.example.net:443"], resolver=["198.51.100.2:5353"])
    gateway = Gateway(config | {"peers": peers}, topology.gateway.enter, [engine, "wgch"])
    assert gateway.first["event"] == "ready", gateway.first
    key, port = public_key(SERVER), gateway.first["port"]
    ended = threading.Event()

    def fill(alice: Tunnel) -> None:
        with topology.client.socket(socket.SOCK_DGRAM) as sock:
            sock.bind((alice.address, 0))
            sock.connect(("10.99.0.1", 53))
            for number in range(1000):
                if not ended.wait(1 / 60):
                    sock.send(dns.message.make_query(f"n{number}.example.net", "A").to_wire())

    try:
        with (
            contextlib.closing(
                Tunnel(topology.client, "fills", ALICE, "10.99.0.2", key, port)
            ) as alice,
            contextlib.closing(
                Tunnel(topology.client, "other", BOB, "10.99.0.3", key, port)
            ) as bob,
        ):
            filling = threading.Thread(target=fill, args=(alice,), daemon=True)
            filling.start()
            try:
                taken = []
                for number in range(12):
                    begun = time.monotonic()
                    # Longer than UDP's answer may be: that it is one is enough.
                    assert bob.ask(f"b{number}.example.net").flags & dns.flags.TC
                    taken.append(time.monotonic() - begun)
                    pace(0.3)
            finally:
                ended.set()
                filling.join()
        faults = [event for event in gateway.drain() if event["event"] == "fault"]
        assert not faults
        # One may meet whatever else the machine does; a loop that is held up delays every one.
        assert statistics.median(taken) < 0.5, taken
    finally:
        gateway.close()
        server.terminate()
        server.wait(GENEROUS)
        server.stdout.close()


def test_what_takes_the_kernel_its_time_holds_up_nobody() -> None:
    """It waits for what this loop does meanwhile: a loop that it held would never come to it."""

    async def body() -> bool:
        meanwhile = threading.Event()
        slow = asyncio.create_task(MachineHost().run_aside(meanwhile.wait, GENEROUS))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(meanwhile.set)
        return bool(await slow)

    assert asyncio.run(body())
