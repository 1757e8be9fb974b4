from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, wrpcap

from wgcell.errors import InputFileError
from wgcell.prove.battery import pcap
from wgcell.relay.evidence import CapturedFrame, pcapng

PACKETS = [Ether() / IP(dst="192.0.2.1") / UDP(dport=n) / bytes(n) for n in (1, 50, 1000)]


def test_pcap_pcapng_and_our_own_evidence_are_read(tmp_path: Path) -> None:
    wanted = [bytes(packet) for packet in PACKETS]
    wrpcap(str(tmp_path / "a.pcap"), PACKETS)
    with PcapNgWriter(str(tmp_path / "b.pcapng")) as writer:
        for packet in PACKETS:
            writer.write(packet)
    evidence = pcapng([CapturedFrame(data, 1.0, "why") for data in wanted])
    (tmp_path / "c.pcapng").write_bytes(evidence)
    for name in ("a.pcap", "b.pcapng", "c.pcapng"):
        assert [frame.data for frame in pcap.load(tmp_path / name)] == wanted


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a pcap"),
        (b"hello, world, this is text", "not a pcap"),
        (b"\xd4\xc3\xb2\xa1" + bytes(16) + (101).to_bytes(4, "little"), "not Ethernet"),
        (b"\xd4\xc3\xb2\xa1" + bytes(16) + (1).to_bytes(4, "little"), "holds no frames"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_reason(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(InputFileError, match=words):
        pcap.load(tmp_path / "f")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "whole"), PACKETS)
    data = (tmp_path / "whole").read_bytes()
    for size in (30, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(InputFileError, match="cut off"):
            pcap.load(tmp_path / "cut")


heads = st.sampled_from([b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x0a\x0d\x0d\x0a"])


@given(heads, st.binary(max_size=200))
def test_no_bytes_raise_anything_but_value_error(head: bytes, data: bytes) -> None:
    with contextlib.suppress(ValueError):
        list(pcap.parse(head + data))
