"""What a guest is configured with."""

from __future__ import annotations

from dataclasses import replace

from wgcell.guest.config import GuestConfig
from wgcell.guest.walls import Wall

CONFIG = GuestConfig(
    time=1, hostname="cell", walls=frozenset(Wall), private_key=b"k" * 32,
    peer_public_key=b"p" * 32, preshared_key=None, addresses=("10.99.0.2/32",),
    allowed_ips=("0.0.0.0/0",), mtu=1420, keepalive=25, dns=(), probe="10.99.0.1",
    inputs=False, command=("true",), environment=(), outputs=(),
)  # fmt: skip

BARE = replace(
    CONFIG,
    time=0,
    hostname="h",
    walls=frozenset(),
    private_key=b"",
    peer_public_key=b"\1" * 32,
    addresses=(),
    allowed_ips=(),
    keepalive=0,
    probe="",
    command=(),
)
"""For tests that never read it."""
