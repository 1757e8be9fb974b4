"""Netlink's messages, as bytes: what is understood, and that nothing raises."""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.gateway.engines.nftables.netlink import FirstPacket, FlowDestroyed, parse

PACKET = (
    bytes.fromhex("4500003c000040004006")
    + bytes(2)
    + bytes([10, 99, 0, 2, 203, 0, 113, 7])
    + struct.pack(">HH", 40000, 443)
)


def attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 20 + len(body), kind, 0, 0, 0) + bytes(4) + body


LOGGED = message(4 << 8, attribute(10, b"wgcell:allow:alice:3\0") + attribute(9, PACKET))
ENDED = message(
    1 << 8 | 2,
    attribute(
        1,
        attribute(1, attribute(1, bytes([10, 99, 0, 2])) + attribute(2, bytes([203, 0, 113, 7])))
        + attribute(
            2, attribute(1, b"\x06") + attribute(2, b"\x9c\x40") + attribute(3, b"\x01\xbb")
        ),
    )
    + attribute(9, attribute(2, (700).to_bytes(8, "big")))
    + attribute(10, attribute(2, (900).to_bytes(8, "big"))),
)
PEER, TARGET = ipaddress.ip_address("10.99.0.2"), ipaddress.ip_address("203.0.113.7")


def test_a_first_packet_and_an_end() -> None:
    seen, gone = parse(LOGGED + ENDED)
    assert seen == FirstPacket("wgcell:allow:alice:3", PEER, 40000, TARGET, 443, "tcp")
    assert gone == FlowDestroyed(PEER, 40000, TARGET, 443, "tcp", 700, 900)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.binary(max_size=120)
    | st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=6).map(
        lambda changes: bytes(dict(changes).get(i, b) for i, b in enumerate(LOGGED + ENDED))
    )
)
def test_no_bytes_raise(raw: bytes) -> None:
    assert len(list(parse(raw))) <= 7
