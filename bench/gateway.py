"""The embedded gateway's throughput against wireguard-go and plain forwarding, as a ratio.

::

    client ns ---- veth ---- gateway ns ---- veth ---- world ns
    wireguard-go             embedded engine,          sends or receives
                             or wireguard-go + nftables

The same client (wireguard-go), links and bytes, alternating in one run; a whole TCP transfer each
time, seconds by the client's clock; medians of the rates, and of each pair's ratio. Needs the
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

from tests.gateway.conftest import RESOLVER, SERVER, Gateway, Server, Topology, Tunnel

from wgcell.gateway.keys import generate_private_key, public_key

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
        for number, (engine, argv) in enumerate((("embedded", []), ("kernel", ["bench0"]))):
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
            gateways[engine] = Gateway(config, topology.gateway.enter, argv)
            tunnels[engine] = Tunnel(
                topology.client, f"b{number}", key, address, public_key(SERVER), port
            )
        figures: dict[str, object] = {"bytes": BYTES, "rounds": ROUNDS}
        for way in PORTS:
            pairs = [
                (rate(tunnels["embedded"], way), rate(tunnels["kernel"], way))
                for _ in range(ROUNDS)
            ]
            embedded, kernel = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            print(f"gateway, {way:<9} embedded {embedded:7.0f} Mbit/s")
            print(f"gateway, {way:<9} wireguard-go and nftables {kernel:7.0f} Mbit/s")
            print(f"gateway, {way:<9} ratio {ratio:5.2f}")
            figures[way] = {"embedded": embedded, "kernel": kernel, "ratio": ratio}
        print(json.dumps(figures))
    finally:
        for closing in (*tunnels.values(), *gateways.values(), *servers, topology):
            closing.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
