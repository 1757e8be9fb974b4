"""The gateways without root, against wireguard-go and plain forwarding: throughput, as a ratio.

::

    client ns ---- veth ---- gateway ns ---- veth ---- world ns
    wireguard-go             embedded, namespace,      sends or receives
                             or kernel engine

The same client (wireguard-go), links and bytes, alternating in one run; a whole TCP transfer each
time, seconds by the client's clock; medians of the rates, and of each round's ratios. Needs the
packages that the tests need, and no root. Run by ``make bench``.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.gateways import ENGINES, SERVER, Gateway, Tunnel
from tests.support.networks import RESOLVER, Server, Topology

from wgcell.gateway.model.keys import generate_private_key, public_key

ROUNDS = 5
BYTES = 64 << 20
PORTS = {"download": 7001, "upload": 7002}
_CHUNK = bytes(65536)


def send(stream: socket.socket) -> None:
    for _ in range(BYTES // len(_CHUNK)):
        stream.sendall(_CHUNK)
    stream.shutdown(socket.SHUT_WR)


def receive(stream: socket.socket) -> None:
    left = BYTES
    while left > 0:
        left -= len(stream.recv(1 << 18))
    stream.sendall(b"k")


def rate(tunnel: Tunnel, way: str) -> float:
    """Megabits a second of one transfer."""
    with tunnel.connect("203.0.113.7", PORTS[way], timeout=120) as stream:
        begun = time.monotonic()
        if way == "download":
            left = BYTES
            while left > 0:
                left -= len(stream.recv(1 << 18))
        else:
            send(stream)
            stream.recv(1)
        return BYTES * 8 / 1e6 / (time.monotonic() - begun)


def main() -> int:
    key = generate_private_key()
    topology = Topology()
    servers = [
        Server(topology.world, "203.0.113.7", PORTS["download"], send),
        Server(topology.world, "203.0.113.7", PORTS["upload"], receive),
    ]
    gateways, tunnels = {}, {}
    try:
        for number, engine in enumerate(ENGINES):
            port, address = 52000 + number, f"10.99.{number}.2"
            peer = {"public_key": public_key(key), "address": address, "port": port}
            config = {
                "listen": f"0.0.0.0:{port}",
                "private_key": SERVER,
                "address": f"10.99.{number}.1",
                "rules": ["allow 203.0.113.7:7001-7002"],
                "resolver": [RESOLVER],
                "peers": {"bench": peer},
            }
            gateways[engine] = Gateway(config, topology.gateway.enter, [engine, "bench0"])
            tunnels[engine] = Tunnel(
                topology.client, f"b{number}", key, address, public_key(SERVER), port
            )
        figures: dict[str, object] = {"bytes": BYTES, "rounds": ROUNDS}
        for way in PORTS:
            rounds = [
                {engine: rate(tunnels[engine], way) for engine in ENGINES} for _ in range(ROUNDS)
            ]
            found = {}
            for engine in ENGINES:
                found[engine] = statistics.median(one[engine] for one in rounds)
                print(f"gateway, {way:<9} {engine:<10} {found[engine]:7.0f} Mbit/s")
            for engine in ENGINES[:-1]:
                ratio = statistics.median(one[engine] / one["kernel"] for one in rounds)
                print(f"gateway, {way:<9} {engine:<10} to kernel {ratio:5.2f}")
                found[f"{engine}_ratio"] = ratio
            figures[way] = found
        print(json.dumps(figures))
    finally:
        for closing in (*tunnels.values(), *gateways.values(), *servers, topology):
            closing.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
