from __future__ import annotations

import base64
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import PcapNgReader
from tests.support.messages import ENDPOINT, GUEST, frame, initiation, response, transport
from tests.support.relays import Process
from tests.support.waiting import GENEROUS, lull

from wgcell.relay import link
from wgcell.relay.evidence import CapturedFrame, pcapng
from wgcell.relay.framing import LONGEST_FRAME, prefixed
from wgcell.relay.relay import Arrived, Command, Cut, Relay, Report, Send
from wgcell.relay.session import SessionTable
from wgcell.relay.verdict import Reason
from wgcell.wire import wireguard

GOOD = prefixed(frame(initiation(1)))
ROGUE = prefixed(frame(initiation(2), ip={"dst": "192.168.1.1"}))


def relay() -> Relay:
    made = Relay(SessionTable(GUEST, ENDPOINT, 1420))
    return made


def feed(made: Relay, data: bytes, now: float = 0) -> list[Command]:
    """``data`` as if read from QEMU; payloads copied, as the buffer is used again."""
    made.room()[: len(data)] = data
    commands = made.outbound(len(data), now)
    return [
        Send([memoryview(bytes(p)) for p in c.payloads]) if isinstance(c, Send) else c
        for c in commands
    ]


def sent(commands: list[Command]) -> list[bytes]:
    return [bytes(p) for command in commands if isinstance(command, Send) for p in command.payloads]


def arrived(*datagrams: bytes) -> list[Arrived]:
    """Each on its own."""
    return [Arrived(datagram, (datagram,)) for datagram in datagrams]


def test_the_payload_alone_goes_out() -> None:
    assert feed(relay(), GOOD) == [Send([memoryview(initiation(1))])]


def test_nothing_behind_a_rogue_frame_passes() -> None:
    made = relay()
    commands = feed(made, ROGUE + GOOD)
    assert [type(command) for command in commands] == [Cut, Report]
    assert feed(made, GOOD) == []
    assert made.inbound(arrived(b"\x04\0\0\0" + bytes(28)), 1) == []


def test_a_lenient_relay_drops_and_counts_a_rogue_frame() -> None:
    made = Relay(SessionTable(GUEST, ENDPOINT, 1420), lenient=True)
    assert feed(made, ROGUE + GOOD) == [Send([memoryview(initiation(1))])]
    assert made.refused == {"destination_address": 1}


@pytest.mark.parametrize("length", [0, LONGEST_FRAME + 1, 0xFFFFFFFF])
def test_a_length_that_lies_cuts_the_link(length: int) -> None:
    made = relay()
    commands = feed(made, GOOD + length.to_bytes(4, "big") + GOOD)
    assert [type(command) for command in commands] == [Send, Cut, Report]
    assert made.refused == {Reason.STREAM.value: 1}


def test_inbound_never_cuts() -> None:
    made = relay()
    assert made.inbound(arrived(*(os.urandom(n) for n in range(1, 200))), 0) == []
    assert not made.cut
    assert sum(made.dropped_in.values()) == 199


pieces = st.lists(
    st.one_of(st.just(GOOD), st.just(ROGUE), st.binary(max_size=80).map(prefixed)), max_size=8
)


@given(pieces=pieces, cuts=st.lists(st.integers(1, 300), max_size=12))
def test_whole_or_in_pieces_the_verdicts_are_the_same(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    whole, parts = relay(), relay()
    at, found = 0, []
    for size in [*cuts, len(data) or 1]:
        found += feed(parts, data[at : at + size])
        at += size
    expected = feed(whole, data)
    assert sent(found) == sent(expected)
    assert [type(c) for c in found if not isinstance(c, Send)] == [
        type(c) for c in expected if not isinstance(c, Send)
    ]
    assert whole.refused == parts.refused


@given(data=st.binary(max_size=300))
def test_no_stream_raises(data: bytes) -> None:
    feed(relay(), data)


def test_evidence_opens_with_its_time_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "rogue.pcapng"
    frames = [CapturedFrame(frame(b"x" * n), 1_700_000_000.25 + n, f"why {n}") for n in range(3)]
    file.write_bytes(pcapng(frames))
    with PcapNgReader(str(file)) as reader:
        read = list(reader)
    assert [bytes(packet) for packet in read] == [captured.data for captured in frames]
    assert float(read[1].time) == pytest.approx(1_700_000_001.25)
    assert read[2].comments == [b"why 2"]


@pytest.mark.process
def test_a_frame_through_the_real_process_and_back() -> None:
    running = Process()
    running.nic.sendall(GOOD)
    assert running.endpoint.recv(2000) == initiation(1)
    answer = response(5, 1)
    running.endpoint.sendto(answer, running.guest_port)
    assert running.nic.recv(2000) == prefixed(link.wrap(answer))
    running.nic.sendall(prefixed(frame(transport(5))))
    assert running.endpoint.recv(2000) == transport(5)
    running.endpoint.sendto(transport(1), running.guest_port)
    assert running.event("handshake")["initiator"] == "guest"
    assert running.event()["event"] == "verified"
    running.tell("quit")
    assert running.event("stats")["messages_out"] == 2
    running.close()


@pytest.mark.process
def test_the_first_rogue_frame_is_reported_with_its_bytes_and_nothing_is_forwarded() -> None:
    running = Process()
    running.nic.sendall(ROGUE + GOOD)
    event = running.event("rogue")
    assert event["reason"] == "destination_address"
    assert base64.b64decode(event["frame"]) == ROGUE[4:]
    assert running.nic.recv(100) == b""  # cut
    running.endpoint.settimeout(0.3)
    with pytest.raises(TimeoutError):
        running.endpoint.recv(2000)
    running.close()


@pytest.mark.process
def test_the_relay_ends_when_the_supervisor_is_gone() -> None:
    running = Process()
    running.lines.close()
    running.control.close()
    assert running.process.wait(GENEROUS) == 0
    running.nic.close()
    running.endpoint.close()


@pytest.mark.process
def test_strangers_can_not_reach_the_guest_nor_kill_the_cell() -> None:
    running = Process()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"\x01\0\0\0" + bytes(144), running.guest_port)
    running.endpoint.sendto(b"nonsense", running.guest_port)
    lull(0.2)
    running.nic.sendall(GOOD)
    assert running.endpoint.recv(2000) == initiation(1)
    running.close()


@pytest.mark.process
def test_a_nic_that_does_not_read_holds_the_endpoint_back_and_gets_whole_frames() -> None:
    running = Process()
    running.nic.sendall(GOOD)
    assert running.endpoint.recv(2000) == initiation(1)
    answer = response(5, 1)
    running.endpoint.sendto(answer, running.guest_port)
    running.nic.recv(2000)
    running.nic.sendall(prefixed(frame(transport(5))))
    running.endpoint.recv(2000)
    message = transport(1)[:8] + bytes(1400)
    for n in range(2000):
        running.endpoint.sendto(
            message[:8] + n.to_bytes(8, "little") + message[16:], running.guest_port
        )
    lull(0.3)
    last = transport(1)[:8] + b"\xff" * 24
    data, numbers = b"", []
    running.endpoint.sendto(last, running.guest_port)
    while last not in data[-100:]:
        data += running.nic.recv(1 << 16)
        if len(data) > 1 << 17:
            running.endpoint.sendto(last, running.guest_port)
    while data:
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 + length and numbers[-1:] == [2**64 - 1]:
            break  # the last one was sent again, and is not all here
        payload = data[4 + link.HEADERS : 4 + length]
        assert data[: 4 + length] == prefixed(link.wrap(payload))
        numbers.append(int.from_bytes(payload[8:16], "little"))
        data = data[4 + length :]
    true = [n for n in numbers if n < 2000]
    assert true == sorted(set(true)) and len(true) > 100
    running.tell("quit")
    running.close()


def test_a_fresh_socket_to_another_address_gets_initiations_alone_until_one_is_answered() -> None:
    """The real process, sealed: the endpoint's name leads elsewhere, and who is there is silent."""
    running = Process()
    running.nic.sendall(GOOD)
    assert running.endpoint.recv(2000) == initiation(1)
    answer = response(5, 1)
    running.endpoint.sendto(answer, running.guest_port)
    assert running.nic.recv(2000) == prefixed(link.wrap(answer))
    flood = [transport(5, n) for n in range(500)]
    running.nic.sendall(prefixed(frame(flood[0])))
    assert running.endpoint.recv(2000) == flood[0]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.settimeout(10)
        fresh = running.renew(stranger, met=True)
        running.nic.sendall(b"".join(prefixed(frame(message)) for message in flood[1:]))
        running.nic.sendall(b"".join(prefixed(frame(initiation(n))) for n in range(2, 40)))
        # The burst has one left.
        assert stranger.recv(2000) == initiation(2)
        told = running.event("out_of_step")
        while told["reason"] != "initiation_rate":
            assert told["reason"] == "peer_left"
            told = running.event("out_of_step")
        # He answers: from then on he is the endpoint.
        stranger.sendto(response(6, 2), fresh)
        assert running.nic.recv(2000) == prefixed(link.wrap(response(6, 2)))
        running.nic.sendall(prefixed(frame(transport(6))))
        got = stranger.recv(2000)
        while isinstance(wireguard.parse(got), wireguard.Initiation):  # one more each 4.5 s
            got = stranger.recv(2000)
        assert got == transport(6)
    running.endpoint.setblocking(False)
    with pytest.raises(BlockingIOError):
        running.endpoint.recv(2000)
    running.close()


def test_a_fresh_socket_to_the_same_address_keeps_the_sessions() -> None:
    running = Process()
    running.nic.sendall(GOOD)
    running.endpoint.recv(2000)
    running.endpoint.sendto(response(5, 1), running.guest_port)
    running.nic.recv(2000)
    running.nic.sendall(prefixed(frame(transport(5))))
    running.endpoint.recv(2000)
    running.renew(running.endpoint, met=False)
    running.nic.sendall(prefixed(frame(transport(5, 1))))
    assert running.endpoint.recv(2000) == transport(5, 1)
    running.close()
