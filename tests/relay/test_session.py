"""Two peers' messages, as scripts: who sends what when, and what the table says."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.messages import (
    ENDPOINT,
    GUEST,
    cookie_reply,
    initiation,
    response,
    transport,
)

from wgcell.relay import session, tracking
from wgcell.relay.session import Handshake, SessionTable, Side
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import wireguard

MTU = 1420
FULLEST = MTU + wireguard.SHORTEST_TRANSPORT


def table() -> SessionTable:
    return SessionTable(GUEST, ENDPOINT, MTU)


def established(now: float = 0.0, guest: int = 10, endpoint: int = 20) -> SessionTable:
    made = table()
    assert made.outbound(initiation(guest), now) is None
    assert made.inbound(response(endpoint, guest), now) is None
    assert made.outbound(transport(endpoint, 0), now) is None
    assert made.inbound(transport(guest, 0), now) is None
    assert made.handshakes() == [Handshake(Side.GUEST)]
    return made


def reason(refusal: Refusal | None) -> Reason | None:
    return None if refusal is None else refusal.reason


# Handshakes.


def test_a_handshake_is_complete_when_transport_has_passed_both_ways() -> None:
    made = table()
    assert made.outbound(initiation(10), 0) is None
    assert made.inbound(response(20, 10), 0) is None
    assert made.outbound(transport(20, 0), 1) is None
    assert made.handshakes() == []
    assert made.inbound(transport(10, 0), 1) is None
    assert made.handshakes() == [Handshake(Side.GUEST)]
    assert made.inbound(transport(10, 1), 1) is None
    assert made.handshakes() == []


def test_the_endpoint_may_initiate_and_it_is_the_first_to_send() -> None:
    made = established()
    assert made.inbound(initiation(21, to=GUEST), 1) is None
    assert made.outbound(response(11, 21, to=ENDPOINT), 1) is None
    assert reason(made.outbound(transport(21, 0), 1)) is Reason.UNCONFIRMED
    assert made.inbound(transport(11, 0), 1) is None
    assert made.handshakes() == []
    assert made.outbound(transport(21, 0), 1) is None
    assert made.inbound(transport(11, 1), 1) is None
    assert made.handshakes() == [Handshake(Side.ENDPOINT)]


def test_a_responder_sends_nothing_before_the_guest_has_chosen_its_response() -> None:
    made = table()
    made.outbound(initiation(10), 0)
    made.inbound(response(20, 10), 0)
    assert reason(made.inbound(transport(10, 0), 0)) is Reason.UNCONFIRMED
    assert made.outbound(transport(20, 0), 0) is None
    assert made.inbound(transport(10, 0), 0) is None


def test_a_forged_response_replaces_nothing() -> None:
    """It may come before or after the true one: the guest's kernel knows which it takes."""
    made = established()
    made.outbound(initiation(11), 120)
    for forged in (66, 67):
        assert made.inbound(response(forged, 11), 120) is None
    assert made.inbound(response(21, 11), 120.1) is None
    assert made.inbound(response(68, 11), 120.2) is None
    assert made.outbound(transport(20, 1), 120.3) is None
    assert made.outbound(transport(21, 0), 120.3) is None
    for forged in (66, 67, 68):
        assert reason(made.outbound(transport(forged, 0), 121)) is Reason.UNKNOWN_INDEX


def test_a_flood_of_forged_responses_is_bounded_and_evicts_nothing() -> None:
    made = established()
    made.outbound(initiation(11), 120)
    assert made.inbound(response(21, 11), 120) is None
    found = [made.inbound(response(1000 + n, 11), 120) for n in range(1000)]
    assert found.count(None) == session.CANDIDATES_KEPT - 1
    assert reason(found[-1]) is Reason.FLOOD
    assert made.inbound(response(21, 11), 120) is None  # the true one again
    assert made.outbound(transport(21, 0), 121) is None
    assert made.outbound(transport(20, 1), 121) is None


def test_a_flood_of_forged_initiations_is_bounded_and_what_passes_can_be_answered() -> None:
    made = established()
    passed = []
    for n in range(20_000):
        now = 1 + n / 1000
        if made.inbound(initiation(1000 + n, to=GUEST), now) is None:
            passed.append((1000 + n, now))
    expected = session.FLOOD_BURST + session.FLOOD_RATE * 20
    assert expected - 2 <= len(passed) <= expected + 2
    recent = [index for index, at in passed if at > 21 - 10]
    for n, index in enumerate(recent):
        assert made.outbound(response(5000 + n, index, to=ENDPOINT), 21) is None
    assert made.outbound(transport(20, 1), 21) is None
    assert made.inbound(transport(10, 1), 21) is None


def test_forged_initiations_do_not_evict_the_guests_own() -> None:
    made = established()
    made.outbound(initiation(11), 120)
    for n in range(session.HEARD_KEPT * 2):
        made.inbound(initiation(11 + n, to=GUEST), 120 + n)
    assert made.inbound(response(21, 11), 700) is None
    assert made.outbound(transport(21, 0), 700) is None


def test_forged_transport_confirms_an_offer_and_evicts_nothing() -> None:
    """Whoever sees the guest answer the endpoint's retries can forge what looks like transport."""
    made = established()
    for n in range(6):
        assert made.inbound(initiation(30 + n, to=GUEST), 5.0 * n) is None
        assert made.outbound(response(40 + n, 30 + n, to=ENDPOINT), 5.0 * n) is None
        assert made.inbound(transport(40 + n, 7), 5.0 * n) is None
    assert made.handshakes() == []
    assert made.outbound(transport(20, 1), 31) is None
    assert made.outbound(transport(35, 0), 31) is None


def test_a_forged_response_under_a_live_index_chooses_nothing() -> None:
    made = established()
    made.outbound(initiation(11), 120)
    assert made.inbound(response(20, 11), 120) is None  # the live session's own index
    assert made.inbound(response(21, 11), 120) is None
    assert made.outbound(transport(20, 1), 120) is None
    assert made.outbound(transport(21, 0), 120) is None
    assert made.inbound(transport(11, 0), 120) is None


def test_a_restarted_endpoint_may_use_an_index_again() -> None:
    made = established()
    made.outbound(transport(20, 1), 1)
    made.outbound(initiation(11), 30)
    assert made.inbound(response(20, 11), 30) is None
    assert made.outbound(transport(20, 0), 30) is None
    assert made.inbound(transport(11, 0), 30) is None
    assert made.handshakes() == [Handshake(Side.GUEST)]


def test_both_sides_may_initiate_at_once() -> None:
    made = established()
    assert made.outbound(initiation(11), 120) is None
    assert made.inbound(initiation(21, to=GUEST), 120) is None
    assert made.outbound(response(12, 21, to=ENDPOINT), 120) is None
    assert made.inbound(response(22, 11), 120) is None
    assert made.inbound(transport(12, 0), 120) is None
    assert made.outbound(transport(21, 0), 120) is None
    assert made.outbound(transport(22, 0), 120) is None
    assert made.inbound(transport(11, 0), 120) is None


def test_a_retransmitted_initiation_may_be_answered_late_but_once_chosen_all_is_over() -> None:
    made = table()
    made.outbound(initiation(1), 0)
    made.outbound(initiation(2), 5)
    assert made.inbound(response(50, 2), 5.1) is None
    assert made.inbound(response(49, 1), 5.2) is None
    assert made.outbound(transport(50, 0), 5.3) is None
    assert reason(made.inbound(response(50, 2), 5.4)) is Reason.UNSOLICITED
    assert reason(made.inbound(response(49, 1), 5.4)) is Reason.UNSOLICITED


def test_the_guests_latest_initiations_are_remembered_and_no_more() -> None:
    made = established()
    for n in range(session.ASKED_KEPT + 1):
        assert made.outbound(initiation(100 + n), 5.0 * n) is None
    assert reason(made.inbound(response(21, 100), 30)) is Reason.UNSOLICITED
    assert made.inbound(response(21, 101), 30) is None


def test_an_index_the_guest_uses_again_is_its_newest() -> None:
    made = established()
    for n, index in enumerate((100, 101, 102, 103, 100, 104)):
        assert made.outbound(initiation(index), 5.0 * n) is None
    assert reason(made.inbound(response(21, 101), 30)) is Reason.UNSOLICITED
    assert made.inbound(response(22, 100), 30) is None


def test_an_index_the_guest_uses_again_starts_anew() -> None:
    made = established()
    made.outbound(initiation(11), 1)
    made.inbound(response(66, 11), 1)
    made.outbound(initiation(11), 6)
    assert reason(made.outbound(transport(66, 0), 6)) is Reason.UNKNOWN_INDEX


def test_an_initiation_of_the_endpoints_is_answered_once() -> None:
    made = established()
    made.inbound(initiation(21, to=GUEST), 1)
    assert made.outbound(response(11, 21, to=ENDPOINT), 1) is None
    assert reason(made.outbound(response(12, 21, to=ENDPOINT), 1)) is Reason.UNSOLICITED


def test_the_guests_latest_offers_are_remembered_and_no_more() -> None:
    made = established()
    for n in range(session.OFFERED_KEPT + 1):
        made.inbound(initiation(30 + n, to=GUEST), n)
        made.outbound(response(50 + n, 30 + n, to=ENDPOINT), n)
    assert reason(made.inbound(transport(50, 0), 20)) is Reason.UNKNOWN_INDEX
    assert made.inbound(transport(51, 0), 20) is None


def test_what_is_chosen_forgets_what_was_offered_before_but_not_behind() -> None:
    made = established()
    for n in range(3):
        made.inbound(initiation(30 + n, to=GUEST), n)
        made.outbound(response(50 + n, 30 + n, to=ENDPOINT), n)
    assert made.inbound(transport(51, 0), 5) is None
    assert made.outbound(transport(31, 0), 5) is None
    assert reason(made.inbound(transport(50, 0), 6)) is Reason.UNKNOWN_INDEX
    assert made.inbound(transport(52, 0), 6) is None


def test_previous_current_and_next_are_live_in_a_rekey_and_no_more() -> None:
    made = established()
    for n in range(1, 4):
        assert made.outbound(initiation(10 + n), 120.0 + 5 * n) is None
        assert made.inbound(response(20 + n, 10 + n), 120.0 + n) is None
        assert made.outbound(transport(20 + n, 0), 120.0 + n) is None
    assert reason(made.outbound(transport(20, 1), 124)) is Reason.UNKNOWN_INDEX
    assert reason(made.inbound(transport(10, 1), 124)) is Reason.UNKNOWN_INDEX
    for n in range(1, 4):
        assert made.outbound(transport(20 + n, 1), 124) is None
        assert made.inbound(transport(10 + n, 1), 124) is None


# Age.


def test_a_session_dies_of_age_whoever_sends() -> None:
    made = established()
    last = tracking.SESSION_LIFETIME
    assert last >= wireguard.REJECT_AFTER_TIME
    assert made.outbound(transport(20, 1), last) is None
    assert made.inbound(transport(10, 1), last) is None
    assert reason(made.outbound(transport(20, 2), last + 0.1)) is Reason.SESSION_DEAD
    assert reason(made.inbound(transport(10, 2), last + 0.1)) is Reason.SESSION_DEAD


def test_a_session_is_as_old_as_the_response_it_began_with() -> None:
    made = established()
    made.outbound(initiation(11), 0)
    made.inbound(response(21, 11), 5)
    late = 5 + tracking.SESSION_LIFETIME
    assert reason(made.outbound(transport(21, 0), late + 0.1)) is Reason.SESSION_DEAD
    assert made.outbound(transport(21, 0), late) is None
    made.inbound(initiation(31, to=GUEST), 0)
    made.outbound(response(12, 31, to=ENDPOINT), 5)
    assert reason(made.inbound(transport(12, 0), late + 0.1)) is Reason.SESSION_DEAD
    assert made.inbound(transport(12, 0), late) is None
    assert reason(made.outbound(transport(31, 0), late + 0.1)) is Reason.SESSION_DEAD


def test_a_guest_behind_a_suspended_hosts_clock_is_no_rogue() -> None:
    """It fills a session that it takes for live until its own handshake timer runs out."""
    made = established()
    for n in range(1, 5000):
        refusal = made.outbound(transport(20, n), 3600 + n / 1000)
        assert reason(refusal) is Reason.SESSION_DEAD
    assert made.outbound(initiation(11), 3620) is None
    assert made.inbound(response(21, 11), 3620) is None
    assert made.outbound(transport(21, 0), 3620) is None


# What the guest may not do.


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (b"GET / HTTP/1.0\r\n\r\n" + bytes(40), Reason.NOT_WIREGUARD),
        (transport(20, 0, MTU + 33), Reason.TRANSPORT_LENGTH),
        (initiation(11, to=GUEST), Reason.MAC1),
        (initiation(11, mac2=b"m" * 16), Reason.MAC2),
        (transport(20, 1 + (1 << 32)), Reason.COUNTER_ABSURD),
    ],
)
def test_what_no_honest_guest_sends_is_rogue(message: bytes, found: Reason) -> None:
    refusal = established().outbound(message, 1)
    assert reason(refusal) is found
    assert refusal is not None and refusal.rogue


def test_transport_before_any_handshake_is_rogue() -> None:
    made = table()
    for _ in range(2):
        refusal = made.outbound(transport(20, 0), 0)
        assert reason(refusal) is Reason.BEFORE_HANDSHAKE
        assert refusal is not None and refusal.rogue
        made.outbound(initiation(10), 0)
        made.inbound(response(21, 10), 0)


def test_a_message_that_is_no_transport_is_not_judged_as_one() -> None:
    """An initiation under a live session's index, its next bytes the next counter: all but mac1."""
    made = established()
    wrong = bytearray(initiation(20))
    wrong[8:16] = struct.pack("<Q", 1)
    assert reason(made.outbound(bytes(wrong), 1)) is Reason.MAC1
    assert made.outbound(transport(20, 1), 1) is None


def test_a_confirmed_offer_is_for_its_own_index_alone() -> None:
    made = established()
    assert made.inbound(initiation(21, to=GUEST), 1) is None
    assert made.outbound(response(11, 21, to=ENDPOINT), 1) is None
    assert made.inbound(transport(11, 0), 1) is None
    for other in (19, 22, 0xFFFFFFFF):
        assert reason(made.outbound(transport(other, 0), 1)) is Reason.UNKNOWN_INDEX
    assert made.outbound(transport(21, 0), 1) is None


def test_an_absurd_counter_begins_no_session() -> None:
    made = established()
    made.outbound(initiation(11), 1)
    made.inbound(response(21, 11), 1)
    assert reason(made.outbound(transport(21, 1 << 32), 1)) is Reason.COUNTER_ABSURD
    assert made.outbound(transport(21, (1 << 32) - 1), 1) is None


def initiations(made: SessionTable, times: list[float]) -> list[float]:
    """When an initiation of the guest's passed, of those that came at ``times``."""
    found = {at: reason(made.outbound(initiation(900 + n), at)) for n, at in enumerate(times)}
    assert set(found.values()) <= {None, Reason.INITIATION_RATE}
    return [at for at, refused in found.items() if refused is None]


@pytest.mark.parametrize("state", ["fresh", "answered", "live", "dead", "met"])
def test_initiations_come_at_wireguards_own_rate_always(state: str) -> None:
    start = 0.0
    made = table()
    if state == "answered":
        made.outbound(initiation(1), 0)
        made.inbound(response(20, 1), 0)
        start = 100.0
    elif state != "fresh":
        made = established()
        start = {"live": 100.0, "dead": 1000.0, "met": 30.0}[state]
        if state == "met":
            made.meet()
    passed = initiations(made, [start + n / 10 for n in range(600)])
    assert passed[:2] == [start, start + 0.1], "a burst of two"
    assert len(passed) <= 2 + 60 / 4.5
    gaps = [later - sooner for sooner, later in itertools.pairwise(passed[1:])]
    assert min(gaps[1:]) >= 4.5 - 0.2
    # An honest guest's, one per REKEY_TIMEOUT, pass for good.
    honest = [start + 100 + 5.0 * n for n in range(200)]
    assert initiations(made, honest) == honest


@given(times=st.lists(st.floats(0, 1000), max_size=200))
def test_no_order_of_initiations_passes_more_than_the_rate(times: list[float]) -> None:
    made = established()
    times = [1000 + at for at in sorted(times)]
    passed = initiations(made, list(dict.fromkeys(times)))
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span = passed[last] - passed[first]
            assert last - first + 1 <= 2 + span * session.INITIATION_RATE + 1e-6


# Another endpoint.


def met(now: float = 0.0) -> SessionTable:
    made = established(now)
    made.inbound(initiation(33, to=GUEST), now)
    made.outbound(initiation(12), now + 5)
    made.inbound(response(40, 12), now + 5)
    made.meet()
    return made


@pytest.mark.parametrize(
    "message",
    [
        transport(20, 1),
        transport(40, 0),
        response(50, 33, to=ENDPOINT),
        cookie_reply(33),
        cookie_reply(20),
    ],
)
def test_a_stranger_gets_nothing_that_was_meant_for_another(message: bytes) -> None:
    made = met()
    for n in range(1000):
        assert reason(made.outbound(message, 6 + n / 1000)) is Reason.PEER_LEFT


def test_a_stranger_gets_initiations_and_all_else_after_a_handshake_of_the_guests() -> None:
    made = met()
    assert made.outbound(initiation(13), 10) is None
    # He asks, too: but the guest's own comes first.
    assert made.inbound(initiation(34, to=GUEST), 10) is None
    assert reason(made.outbound(response(51, 34, to=ENDPOINT), 10)) is Reason.PEER_LEFT
    assert made.inbound(response(60, 13), 10) is None
    assert made.outbound(transport(60, 0), 10) is None
    assert made.handshakes() == []
    assert made.inbound(transport(13, 0), 11) is None
    assert made.handshakes() == [Handshake(Side.GUEST)]
    assert made.inbound(initiation(35, to=GUEST), 12) is None
    assert made.outbound(response(52, 35, to=ENDPOINT), 12) is None
    # What is still sent to the one who left is known for that, whenever it comes.
    assert reason(made.outbound(transport(20, 2), 100)) is Reason.PEER_LEFT


def test_an_honest_guest_is_never_rogue_for_the_endpoint_has_moved_again_and_again() -> None:
    """It sends at full speed under what it believes, for 180 s; a move is 30 s from the last."""
    made = established()
    live = [20]
    for move in range(6):
        now = 30.0 * (move + 1)
        made.meet()
        for n in range(500):
            for index in live:
                found = made.outbound(transport(index, 1 + 500 * move + n), now + n / 1000)
                assert found is not None and not found.rogue
        guest, endpoint = 100 + move, 200 + move
        assert made.outbound(initiation(guest), now + 15) is None
        assert made.inbound(response(endpoint, guest), now + 15) is None
        assert made.outbound(transport(endpoint, 0), now + 15) is None
        assert made.inbound(transport(guest, 0), now + 15) is None
        live = [*live, endpoint][-3:]


def test_what_is_remembered_of_those_who_left_is_bounded() -> None:
    made = table()
    for move in range(50):
        for n in range(4):
            made.outbound(initiation(4 * move + n), 100.0 * move + 5 * n)
            for k in range(100):
                made.inbound(response(100 * (4 * move + n) + k, 4 * move + n), 100.0 * move + 5 * n)
        made.meet()
    assert len(made._left) == session.LEFT_KEPT


def test_a_cookie_of_the_one_who_left_still_explains_a_mac2() -> None:
    made = table()
    made.outbound(initiation(10), 0)
    made.inbound(cookie_reply(10), 0)
    made.meet()
    assert made.outbound(initiation(11, mac2=b"m" * 16), 5) is None


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
    edge = established()
    span = session.OUT_OF_STEP_SPAN / session.OUT_OF_STEP_MOST
    exact = [edge.outbound(transport(99, n), n * span) for n in range(300)]
    assert not any(refusal is not None and refusal.rogue for refusal in exact)


# Counters and lengths.


def test_the_counters_window() -> None:
    made = established()
    assert made.outbound(transport(20, 10_000), 1) is None
    assert made.outbound(transport(20, 10_000 - tracking.WINDOW + 1), 1) is None
    assert reason(made.outbound(transport(20, 10_000 - tracking.WINDOW), 1)) is Reason.COUNTER_OLD
    assert made.outbound(transport(20, 9_999), 1) is None
    assert reason(made.outbound(transport(20, 9_999), 1)) is Reason.COUNTER_REPEATED


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 30_000)), max_size=60))
def test_a_counter_passes_once_within_the_window(counters: list[int]) -> None:
    made, seen = established(), {0}
    for counter in counters:
        fits = counter not in seen and counter > max(seen) - tracking.WINDOW
        assert (made.outbound(transport(20, counter), 1) is None) == fits
        if fits:
            seen.add(counter)


def test_inbound_counters_shut_nobody_out() -> None:
    """Anyone can forge one; the guest's kernel, which can tell, keeps its own window."""
    made = established()
    assert made.inbound(transport(10, (1 << 64) - 1), 1) is None
    assert made.inbound(transport(10, 1), 1) is None


def test_a_transport_message_fits_its_mtu_and_that_is_all() -> None:
    """Neither padded if it fills the path's MTU, which may be any, nor if boringtun sends it."""
    made = established()
    assert made.outbound(transport(20, 1, MTU + 32), 1) is None
    assert made.outbound(transport(20, 2, 1390 + 32), 1) is None
    assert made.inbound(transport(10, 1, 117), 1) is None
    assert made.inbound(transport(10, 2, 1472), 1) is None
    assert reason(made.inbound(transport(10, 3, 1473), 1)) is Reason.TRANSPORT_LENGTH


# Many at once.


def test_the_next_counters_pass_at_once_and_are_noted() -> None:
    made = established()
    assert made.sends(20, 1, 3, FULLEST, 1)
    assert reason(made.outbound(transport(20, 3), 1)) is Reason.COUNTER_REPEATED
    assert made.outbound(transport(20, 4), 1) is None
    assert reason(made.outbound(transport(20, 4), 1)) is Reason.COUNTER_REPEATED


@pytest.mark.parametrize(
    ("receiver", "first", "length", "now"),
    [(21, 1, 48, 1), (20, 0, 48, 1), (20, 2, 48, 1), (20, 1, FULLEST + 1, 1), (20, 1, 48, 191)],
)
def test_what_is_not_next_is_asked_one_by_one(
    receiver: int, first: int, length: int, now: float
) -> None:
    made = established()
    assert not made.sends(receiver, first, 2, length, now)
    assert made.outbound(transport(20, 1), 1) is None


def test_what_the_endpoint_sends_passes_at_once_in_a_complete_live_session_alone() -> None:
    made = established()
    assert made.receives(10, session.LINK_MTU, tracking.SESSION_LIFETIME)
    assert not made.receives(10, session.LINK_MTU + 1, 1)
    assert not made.receives(10, 48, tracking.SESSION_LIFETIME + 0.1)
    assert not made.receives(11, 48, 1)
    made.outbound(initiation(11), 1)
    made.inbound(response(21, 11), 1)
    made.outbound(transport(21, 0), 1)
    assert not made.receives(11, 48, 1)  # the first completes the handshake
    assert made.inbound(transport(11, 0), 1) is None
    assert made.receives(11, 48, 1)


# Cookies.


def test_a_cookie_explains_a_mac2_for_two_minutes_and_then_a_stopped_clock_may() -> None:
    made = established()
    assert made.outbound(initiation(11), 1) is None
    assert made.inbound(cookie_reply(11), 1) is None
    assert made.outbound(initiation(12, mac2=b"m" * 16), 121) is None
    refusal = made.outbound(initiation(13, mac2=b"m" * 16), 121.1)
    assert reason(refusal) is Reason.COOKIE_AGED
    assert refusal is not None and not refusal.rogue


def test_a_cookie_reply_explains_the_mac2_of_who_received_it_alone() -> None:
    made = established()
    made.inbound(initiation(21, to=GUEST), 1)
    assert made.outbound(cookie_reply(21), 1) is None
    assert made.inbound(initiation(22, to=GUEST, mac2=b"m" * 16), 2) is None
    assert reason(made.outbound(initiation(11, mac2=b"m" * 16), 2)) is Reason.MAC2


def test_an_initiation_is_answered_by_a_cookie_too() -> None:
    """An endpoint that is under load says so: the way to it is no worse, and wants no renewal."""
    made = established()
    assert made.unanswered == 0
    made.outbound(initiation(11), 1)
    assert made.unanswered == 1
    made.inbound(cookie_reply(11), 1)
    assert made.unanswered == 0
    made.outbound(initiation(12), 6)
    assert made.unanswered == 1
    made.inbound(response(22, 12), 6)
    assert made.unanswered == 0
    made.outbound(initiation(11), 12)  # the same index once more: not yet answered
    assert made.unanswered == 1


def test_what_a_cookie_reply_may_answer() -> None:
    made = established()
    made.outbound(initiation(11), 1)
    made.inbound(response(21, 11), 1)
    made.inbound(initiation(31, to=GUEST), 1)
    made.outbound(response(12, 31, to=ENDPOINT), 1)
    made.inbound(initiation(32, to=GUEST), 1)
    for index in (10, 11, 12):  # a live session's, an initiation's, a response's
        assert made.inbound(cookie_reply(index), 1) is None
    for index in (20, 21, 32):
        assert made.outbound(cookie_reply(index), 1) is None
    for index in (9, 20, 31, 32):
        assert reason(made.inbound(cookie_reply(index), 1)) is Reason.UNSOLICITED
        assert reason(made.outbound(cookie_reply(index + 100), 1)) is Reason.UNSOLICITED


def test_a_flood_of_cookie_replies_is_bounded() -> None:
    made = established()
    found = [made.inbound(cookie_reply(10), 1) for _ in range(1000)]
    assert found.count(None) == session.FLOOD_BURST
    assert reason(found[-1]) is Reason.FLOOD
    assert made.inbound(initiation(21, to=GUEST), 1) is None  # which has a measure of its own


# Anything.


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_raise_and_nothing_inbound_but_wireguard_passes(messages: list[bytes]) -> None:
    made = established()
    for now, message in enumerate(messages):
        for refusal in (made.outbound(message, now), made.inbound(message, now)):
            assert refusal is None or isinstance(refusal, Refusal)


INDICES = st.integers(0, 12)
forgeries = st.one_of(
    st.builds(initiation, INDICES, st.just(GUEST), st.sampled_from([bytes(16), b"m" * 16])),
    st.builds(response, INDICES, INDICES),
    st.builds(cookie_reply, INDICES),
    st.builds(transport, INDICES, st.integers(0, (1 << 64) - 1), st.just(48)),
    st.binary(max_size=160),
)


@given(st.lists(st.lists(forgeries, max_size=6), min_size=9, max_size=9))
def test_whatever_is_forged_an_honest_guest_is_never_refused(forged: list[list[bytes]]) -> None:
    """The forger knows the keys, sees every index, and speaks between any two true messages."""
    made = table()
    script = [
        (made.outbound, initiation(1)),
        (made.inbound, response(2, 1)),
        (made.outbound, transport(2, 0)),
        (made.outbound, initiation(3)),
        (made.inbound, response(4, 3)),
        (made.outbound, transport(2, 1)),
        (made.outbound, transport(4, 0)),
        (made.inbound, transport(3, 0)),
        (made.outbound, transport(4, 1)),
    ]
    for (way, message), noise in zip(script, forged, strict=True):
        assert way(message, 1.0) is None
        for forgery in noise:
            made.inbound(forgery, 1.0)


def test_every_reason_of_a_message_is_exercised_here() -> None:
    text = Path(__file__).read_text()
    for one in list(Reason)[list(Reason).index(Reason.NOT_WIREGUARD) :]:
        assert f"Reason.{one.name}" in text
