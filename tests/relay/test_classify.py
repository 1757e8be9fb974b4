from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from tests.support.messages import ADDRESSES, MAC, PAYLOAD, PORTS, frame

from wgcell.relay.classify import classify
from wgcell.relay.verdict import Reason, Refusal


def other(layer: Packet) -> bytes:
    return bytes(Ether(**MAC) / layer)


def test_an_honest_frame_passes_as_its_payload() -> None:
    assert classify(frame()) == PAYLOAD
    assert classify(frame(ip={"tos": 0x88, "id": 77, "ttl": 1})) == PAYLOAD
    assert classify(frame(udp={"chksum": 0})) == classify(frame(udp={"chksum": 1})) == PAYLOAD
    assert classify(frame(ip={"flags": 0})) == PAYLOAD
    assert classify(frame(payload=b"")) == b""
    assert classify(frame(payload=bytes(1472))) == bytes(1472)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", Reason.LENGTH),
        (frame()[:13], Reason.LENGTH),
        (frame()[:30], Reason.LENGTH),
        (frame(payload=bytes(1473)), Reason.LENGTH),
        (frame(eth={"dst": "ff:ff:ff:ff:ff:ff"}), Reason.DESTINATION_MAC),
        (frame(eth={"dst": "01:80:c2:00:00:00"}), Reason.DESTINATION_MAC),
        (frame(eth={"src": "02:77:67:00:00:03"}), Reason.SOURCE_MAC),
        (other(ARP(pdst="192.168.64.1")), Reason.ETHERTYPE),
        (other(IPv6(dst="ff02::1")), Reason.ETHERTYPE),
        (other(Dot1Q(vlan=1) / IP(**ADDRESSES) / UDP(**PORTS)), Reason.ETHERTYPE),
        (frame(ip={"options": [IPOption_NOP()] * 4}), Reason.IP_VERSION),
        (frame(ip={"version": 6}), Reason.IP_VERSION),
        (frame() + b"\0", Reason.IP_LENGTH),
        (frame(ip={"len": 40}), Reason.IP_LENGTH),
        (frame(ip={"flags": "MF"}), Reason.FRAGMENT),
        (frame(ip={"frag": 3}), Reason.FRAGMENT),
        (frame(ip={"flags": "evil"}), Reason.FRAGMENT),
        (frame(ip={"ttl": 0}), Reason.TIME_TO_LIVE),
        (frame(ip={"dst": "192.168.1.1"}), Reason.DESTINATION_ADDRESS),
        (frame(ip={"dst": "127.0.0.1"}), Reason.DESTINATION_ADDRESS),
        (frame(ip={"dst": "169.254.169.254"}), Reason.DESTINATION_ADDRESS),
        (frame(ip={"src": "192.168.64.1"}), Reason.SOURCE_ADDRESS),
        (other(IP(**ADDRESSES) / TCP(dport=51820)), Reason.PROTOCOL),
        (other(IP(**ADDRESSES) / ICMP()), Reason.PROTOCOL),
        (other(IP(**ADDRESSES, proto=47) / Raw(PAYLOAD)), Reason.PROTOCOL),
        (frame(ip={"chksum": 1}), Reason.IP_CHECKSUM),
        (other(IP(**ADDRESSES, proto=17) / Raw(b"\xcal\xcal" + bytes(3))), Reason.LENGTH),
        (frame(udp={"len": 20}), Reason.UDP_LENGTH),
        (frame(udp={"dport": 53}), Reason.DESTINATION_PORT),
        (frame(udp={"sport": 51821}), Reason.SOURCE_PORT),
    ],
)
def test_a_frame_outside_the_link_is_rogue(bad: bytes, reason: Reason) -> None:
    refusal = classify(bad)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is reason
    assert refusal.rogue


@given(data=st.binary(max_size=1600))
def test_no_frame_raises_and_noise_never_passes(data: bytes) -> None:
    assert isinstance(classify(data), Refusal)


@given(at=st.integers(0, 39), value=st.integers(0, 255))
def test_one_changed_header_byte_is_refused(at: int, value: int) -> None:
    """The free ones of IPv4 too, by its checksum; only UDP's own checksum is nobody's concern."""
    honest = frame()
    changed = honest[:at] + bytes([value]) + honest[at + 1 :]
    if changed == honest:
        return
    assert isinstance(classify(changed), Refusal)


def word(*usual: int) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from(usual), st.integers(0, 0xFFFF))


@st.composite
def nearly_honest(draw: st.DrawFn) -> bytes:
    """Scapy builds it, fields now and then other than the link's; then perhaps bytes change."""
    made = Ether(**MAC) / IP(**ADDRESSES) / UDP(**PORTS) / Raw(draw(st.binary(max_size=1500)))
    changes = {
        "tos": st.integers(0, 255),
        "id": st.integers(0, 0xFFFF),
        "flags": st.integers(0, 7),
        "frag": st.integers(0, 0x1FFF),
        "ttl": st.integers(0, 255),
        "proto": st.integers(0, 255),
        "len": st.integers(0, 0xFFFF),
        "chksum": st.integers(0, 0xFFFF),
        "dst": st.sampled_from(["192.168.64.2", "192.168.65.1", "255.255.255.255"]),
        "src": st.sampled_from(["192.168.64.1", "0.0.0.0"]),
    }
    for field in draw(st.sets(st.sampled_from(sorted(changes)), max_size=2)):
        setattr(made[IP], field, draw(changes[field]))
    for field in draw(st.sets(st.sampled_from(["sport", "dport", "len", "chksum"]), max_size=1)):
        setattr(made[UDP], field, draw(st.integers(0, 0xFFFF)))
    raw = bytearray(bytes(made))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 41), st.integers(0, 255)), max_size=1)):
        raw[at] = value
    return bytes(raw[: draw(st.one_of(st.none(), st.integers(0, 80)))])


def by_scapy(raw: bytes) -> bytes | None:
    """The payload of an honest frame, as an independent parser sees it."""
    if not 42 <= len(raw) <= 1514:
        return None
    eth = Ether(raw)
    if not isinstance(eth, Ether):
        return None  # a type below 1536 is a length (IEEE 802.3)
    if (eth.dst, eth.src, eth.type) != (MAC["dst"], MAC["src"], 0x0800) or IP not in eth:
        return None
    ip = eth[IP]
    if (ip.version, ip.ihl, ip.len, ip.frag) != (4, 5, len(raw) - 14, 0):
        return None
    if str(ip.flags) not in ("", "DF") or ip.ttl == 0 or UDP not in ip or ip.proto != 17:
        return None
    rebuilt = IP(raw[14:34])
    del rebuilt.chksum
    if (ip.src, ip.dst) != (ADDRESSES["src"], ADDRESSES["dst"]):
        return None
    if IP(bytes(rebuilt)).chksum != ip.chksum:
        return None
    udp = ip[UDP]
    if (udp.sport, udp.dport, udp.len) != (51820, 51820, len(raw) - 34):
        return None
    return raw[42:]


@given(raw=nearly_honest())
def test_an_independent_parser_agrees(raw: bytes) -> None:
    found = classify(raw)
    assert (None if isinstance(found, Refusal) else found) == by_scapy(raw)


def test_the_table_above_names_every_reason_of_the_link() -> None:
    marks = test_a_frame_outside_the_link_is_rogue.pytestmark
    tried = {reason for _, reason in marks[0].args[1]}
    before_wireguard = list(Reason)[1 : list(Reason).index(Reason.NOT_WIREGUARD)]
    assert tried == set(before_wireguard)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (frame(ip={"dst": "192.168.1.1"}), "to 192.168.1.1"),
        (frame(eth={"dst": "ff:ff:ff:ff:ff:ff"}), "to ff:ff:ff:ff:ff:ff"),
        (frame(udp={"dport": 53}), "to port 53"),
        (other(IP(**ADDRESSES) / TCP(dport=51820)), "IP protocol 6"),
        (other(ARP(pdst="192.168.64.1")), "0x0806"),
    ],
)
def test_a_refusal_says_what_was_found(bad: bytes, words: str) -> None:
    refusal = classify(bad)
    assert isinstance(refusal, Refusal)
    assert refusal.detail == words
