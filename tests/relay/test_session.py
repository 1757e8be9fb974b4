"""Two peers' messages, as scripts: who sends what when, and what the table says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.relay import session
from wgcell.relay.session import Handshake, SessionTable, Side
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import wireguard

GUEST, ENDPOINT = bytes([1]) * 32, bytes([2]) * 32
MTU = 1420


def handshake_message(head: bytes, size: int, key: bytes, mac2: bytes = bytes(16)) -> bytes:
    covered = head + bytes(size - 32 - len(head))
    return covered + wireguard.mac1(key, covered) + mac2


def initiation(sender: int, to: bytes = ENDPOINT, mac2: bytes = bytes(16)) -> bytes:
    return handshake_message(struct.pack("<BxxxI", 1, sender), 148, to, mac2)


def response(sender: int, receiver: int, to: bytes = GUEST) -> bytes:
    return handshake_message(struct.pack("<BxxxII", 2, sender, receiver), 92, to)


def cookie_reply(receiver: int) -> bytes:
    return struct.pack("<BxxxI", 3, receiver) + bytes(56)


def transport(receiver: int, counter: int, size: int = 32) -> bytes:
    return struct.pack("<BxxxIQ", 4, receiver, counter) + bytes(size - 16)


def table() -> SessionTable:
    return SessionTable(GUEST, ENDPOINT, MTU)


def established(now: float = 0.0, guest: int = 10, endpoint: int = 20) -> SessionTable:
    made = table()
    assert made.outbound(initiation(guest), now) is None
    assert made.inbound(response(endpoint, guest), now) is None
    return made


def reason(refusal: Refusal | None) -> Reason | None:
    return None if refusal is None else refusal.reason


def test_handshake_and_transport_both_ways() -> None:
    made = established()
    assert made.handshakes() == [Handshake(Side.GUEST)]
    assert made.handshakes() == []
    assert made.outbound(transport(20, 0), 1) is None
    assert made.inbound(transport(10, 0), 1) is None
    assert made.valid == {Side.GUEST: 1, Side.ENDPOINT: 1}


def test_the_endpoint_may_initiate_but_that_verifies_nothing() -> None:
    made = established()
    assert made.inbound(initiation(21, to=GUEST), 1) is None
    assert made.outbound(response(11, 21, to=ENDPOINT), 1) is None
    assert made.outbound(transport(21, 0), 1) is None
    assert made.inbound(transport(11, 0), 1) is None
    assert made.valid == {Side.GUEST: 0, Side.ENDPOINT: 0}


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (b"GET / HTTP/1.0\r\n\r\n" + bytes(40), Reason.NOT_WIREGUARD),
        (transport(20, 0, 33), Reason.TRANSPORT_LENGTH),
        (transport(20, 0, MTU + 36), Reason.TRANSPORT_LENGTH),
        (initiation(11, to=GUEST), Reason.MAC1),
        (initiation(11, mac2=b"m" * 16), Reason.MAC2),
        (transport(20, 1 << 40), Reason.COUNTER_ABSURD),
    ],
)
def test_what_no_honest_guest_sends_is_rogue(message: bytes, found: Reason) -> None:
    refusal = established().outbound(message, 1)
    assert reason(refusal) is found
    assert refusal is not None and refusal.rogue


def test_transport_before_any_handshake_is_rogue() -> None:
    refusal = table().outbound(transport(20, 0), 0)
    assert reason(refusal) is Reason.BEFORE_HANDSHAKE and refusal is not None and refusal.rogue


def test_until_the_endpoint_answers_initiations_come_at_wireguards_own_rate() -> None:
    made = table()
    found = [reason(made.outbound(initiation(n), float(n))) for n in range(11)]
    passed = [n for n, refused in enumerate(found) if refused is None]
    assert passed == [0, 1, 6]
    assert found[2] is Reason.INITIATION_RATE


@pytest.mark.parametrize(
    ("message", "now", "found"),
    [
        (response(11, 99, to=ENDPOINT), 1.0, Reason.UNSOLICITED),
        (cookie_reply(99), 1.0, Reason.UNSOLICITED),
        (transport(99, 0), 1.0, Reason.UNKNOWN_INDEX),
        (transport(20, 5), 1.0, Reason.COUNTER_REPEATED),
        (transport(20, 9000), 191.0, Reason.SESSION_DEAD),
    ],
)
def test_what_bad_luck_explains_is_out_of_step(message: bytes, now: float, found: Reason) -> None:
    made = established()
    assert made.outbound(transport(20, 5), 1) is None
    refusal = made.outbound(message, now)
    assert reason(refusal) is found
    assert refusal is not None and not refusal.rogue


def test_out_of_step_past_its_rate_is_rogue() -> None:
    made = established()
    found = [made.outbound(transport(99, n), 1 + n / 100) for n in range(300)]
    first = next(n for n, refusal in enumerate(found) if refusal is not None and refusal.rogue)
    assert first == session.OUT_OF_STEP_MOST
    assert reason(found[first]) is Reason.RATE
    slow = established()
    late = [slow.outbound(transport(99, n), 1.0 + n / 10) for n in range(1000)]
    assert not any(refusal is not None and refusal.rogue for refusal in late)


def test_the_counters_window() -> None:
    made = established()
    assert made.outbound(transport(20, 10_000), 1) is None
    assert made.outbound(transport(20, 10_000 - session.WINDOW + 1), 1) is None
    assert reason(made.outbound(transport(20, 10_000 - session.WINDOW), 1)) is Reason.COUNTER_OLD
    assert made.outbound(transport(20, 9_999), 1) is None
    assert reason(made.outbound(transport(20, 9_999), 1)) is Reason.COUNTER_REPEATED


def test_a_full_packet_is_not_padded_and_boringtun_pads_nothing() -> None:
    made = established()
    assert made.outbound(transport(20, 0, MTU + 32), 1) is None
    assert made.inbound(transport(10, 0, 116), 1) is None
    assert made.inbound(transport(10, 1, 117), 1) is None
    assert reason(made.inbound(transport(10, 2, 1473), 1)) is Reason.TRANSPORT_LENGTH


def test_previous_current_and_next_are_live_in_a_rekey_and_no_more() -> None:
    made = established()
    for n in range(1, 4):
        assert made.outbound(initiation(10 + n), 120.0 + n) is None
        assert made.inbound(response(20 + n, 10 + n), 120.0 + n) is None
    assert reason(made.outbound(transport(20, 0), 124)) is Reason.UNKNOWN_INDEX
    for n in range(1, 4):
        assert made.outbound(transport(20 + n, 0), 124) is None
        assert made.inbound(transport(10 + n, 0), 124) is None


def test_a_retransmitted_initiation_may_be_answered_late_but_once() -> None:
    made = table()
    made.outbound(initiation(1), 0)
    made.outbound(initiation(2), 5)
    assert made.inbound(response(50, 2), 5.1) is None
    assert reason(made.inbound(response(51, 2), 5.2)) is Reason.UNSOLICITED
    assert reason(made.inbound(response(52, 1), 5.2)) is Reason.UNSOLICITED


def test_a_cookie_explains_a_mac2_for_two_minutes() -> None:
    made = established()
    assert made.outbound(initiation(11), 1) is None
    assert made.inbound(cookie_reply(11), 1) is None
    assert made.outbound(initiation(12, mac2=b"m" * 16), 6) is None
    assert reason(made.outbound(initiation(13, mac2=b"m" * 16), 122)) is Reason.MAC2


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_raise_and_nothing_inbound_but_wireguard_passes(messages: list[bytes]) -> None:
    made = established()
    for now, message in enumerate(messages):
        for refusal in (made.outbound(message, now), made.inbound(message, now)):
            assert refusal is None or isinstance(refusal, Refusal)


def test_every_reason_of_a_message_is_exercised_here() -> None:
    text = Path(__file__).read_text()
    for one in list(Reason)[list(Reason).index(Reason.NOT_WIREGUARD) :]:
        assert f"Reason.{one.name}" in text
