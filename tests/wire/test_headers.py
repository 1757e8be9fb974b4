from __future__ import annotations

import contextlib
import socket
import struct
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from tests.support import messages

from wgcell.relay import link
from wgcell.wire import ethernet, ipv4, udp, wireguard

KEY = bytes(range(32))
initiation = partial(messages.initiation, to=KEY)


@given(payload=st.binary(max_size=1472))
def test_an_independent_parser_reads_what_we_build(payload: bytes) -> None:
    frame = Ether(link.wrap(payload))
    assert frame.src == link.GATEWAY_MAC_TEXT and frame.dst == link.GUEST_MAC_TEXT
    assert (frame[IP].src, frame[IP].dst) == ("192.168.64.1", "192.168.64.2")
    assert frame[IP].flags == "DF" and frame[IP].id == 0
    assert (frame[UDP].sport, frame[UDP].dport) == (51820, 51820)
    assert bytes(frame[UDP].payload) == payload
    found = frame[IP].chksum
    del frame[IP].chksum
    assert Ether(bytes(frame))[IP].chksum == found
    assert frame[UDP].len == 8 + len(payload) and frame[UDP].chksum == 0  # none


@given(payload=st.binary(max_size=1472))
def test_an_independent_parser_agrees_on_udps_checksum(payload: bytes) -> None:
    addresses = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
    carried = udp.datagram(*addresses, 7, 9, payload)
    packet = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(carried)
    found = packet[UDP].chksum
    del packet[UDP].chksum
    assert IP(bytes(packet))[UDP].chksum == found
    assert udp.checksum(*addresses, carried) == 0


@given(data=st.binary(max_size=64))
def test_a_checksum_over_itself_is_zero(data: bytes) -> None:
    even = data + bytes(len(data) % 2)
    whole = even + struct.pack(">H", ipv4.checksum(even))
    assert ipv4.checksum(whole) == 0


def test_a_mac_address() -> None:
    assert ethernet.mac("02:77:67:00:00:01") == b"\x02wg\0\0\x01"
    with pytest.raises(ValueError):
        ethernet.mac("02:77")


def test_udp_without_checksum_is_never_sent() -> None:
    zero = socket.inet_aton("0.0.0.0")
    for payload in (b"", b"\xff\xff", b"\xff\xd6"):
        assert udp.datagram(zero, zero, 1, 1, payload)[udp.CHECKSUM] != b"\0\0"


def test_each_message_type() -> None:
    assert isinstance(wireguard.parse(initiation()), wireguard.Initiation)
    response = struct.pack("<BxxxII", 2, 5, 7) + bytes(80)
    assert wireguard.parse(response) == wireguard.Response(
        5, 7, response[:60], bytes(16), bytes(16)
    )
    assert wireguard.parse(struct.pack("<BxxxI", 3, 9) + bytes(56)) == wireguard.CookieReply(9)
    transport = struct.pack("<BxxxIQ", 4, 5, 42) + bytes(16)
    assert wireguard.parse(transport) == wireguard.Transport(5, 42, 32)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01\0\0",
        b"\x04\0\0\0",
        b"\x01\0\0\x01" + bytes(144),
        initiation()[:-1],
        initiation() + b"\0",
        b"\x02\0\0\0" + bytes(89),
        b"\x03\0\0\0" + bytes(59),
        b"\x04\0\0\0" + bytes(27),
        b"\x05\0\0\0" + bytes(28),
        b"\0\0\0\0" + bytes(28),
    ],
)
def test_what_is_no_message(message: bytes) -> None:
    with pytest.raises(wireguard.MalformedMessageError):
        wireguard.parse(message)


@given(message=st.binary(max_size=200))
def test_no_input_raises_anything_else(message: bytes) -> None:
    with contextlib.suppress(wireguard.MalformedMessageError):
        wireguard.parse(message)
