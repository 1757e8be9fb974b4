"""What waits for a reader: few pieces, in order, in turn, and no more than there is credit for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.programs import command

from wgcell.cell.sessions.outbox import Outbox
from wgcell.guest.channel import WINDOW, Channel
from wgcell.guest.frames import (
    MOST_DATA,
    STDERR,
    STDIN,
    STDOUT,
    Credit,
    Data,
    End,
    Exit,
    Frame,
    Hangup,
    Open,
    Opened,
    SessionRefused,
    Signal,
    Size,
    Terminal,
)


def server(*sessions: int) -> tuple[Outbox, Channel]:
    """An outbox of a server's, and the opener whose sessions these are."""
    opener, box = Channel(opener=True), Outbox(Channel(opener=False))
    for number in sessions:
        box.channel.receive(opener.send(Open(number, command("x"))))
        opener.receive(box.channel.send(Opened(number)))
    return box, opener


def everything(box: Outbox, other: Channel) -> list[Frame]:
    found: list[Frame] = []
    while raw := box.take():
        found += other.receive(raw)
    return found


@given(st.lists(st.integers(1, 40_000), max_size=12))
def test_data_is_joined_and_nothing_is_lost(sizes: list[int]) -> None:
    box, opener = server(1)
    whole, left = b"", WINDOW
    for number, size in enumerate(sizes):
        part = bytes([number]) * min(size, left, MOST_DATA)
        if part:
            box.put(Data(1, STDOUT, part))
        whole, left = whole + part, left - len(part)
    assert box.waits(1, STDOUT) == len(whole)
    found = everything(box, opener)
    assert b"".join(one.data for one in found) == whole  # type: ignore[union-attr]
    assert len(found) <= 2 * len(whole) // MOST_DATA + 1
    assert box.is_empty


def test_a_flood_of_the_smallest_frames_takes_the_room_of_their_bytes() -> None:
    box, _ = server(1)
    for _ in range(WINDOW):
        box.put(Data(1, STDOUT, b"x"))
    for _ in range(100_000):
        box.put(Credit(1, STDIN, 0))
    pieces = box._waiting[1].data[STDOUT]._pieces
    assert len(pieces) == WINDOW // MOST_DATA + 1
    assert len(box._waiting[1].credit) == 1


def test_sessions_and_streams_take_turns() -> None:
    box, opener = server(1, 2)
    for number, stream in ((1, STDOUT), (1, STDERR), (2, STDOUT)):
        for _ in range(3):
            box.put(Data(number, stream, bytes(MOST_DATA)))
    order = [(one.session, one.stream) for one in everything(box, opener)]  # type: ignore[union-attr]
    assert order[:4] == [(1, STDOUT), (2, STDOUT), (1, STDERR), (2, STDOUT)]


def test_what_ends_a_session_comes_last() -> None:
    box, opener = server(1)
    box.put(Data(1, STDOUT, bytes(3 * MOST_DATA // 2)[:MOST_DATA]))
    box.put(Data(1, STDOUT, bytes(MOST_DATA)))
    box.put(End(1, STDOUT))
    box.put(End(1, STDERR))
    box.put(Exit(1, 3))
    found = everything(box, opener)
    assert [type(one) for one in found] == [Data, Data, End, End, Exit]


def test_data_waits_for_credit_and_the_end_waits_for_it() -> None:
    box, opener = server(1)
    for _ in range(WINDOW // 8192 + 1):
        box.put(Data(1, STDOUT, bytes(8192)))
    box.put(Exit(1, 0))
    found = everything(box, opener)
    assert sum(len(one.data) for one in found) == WINDOW  # type: ignore[union-attr]
    assert not box.take() and not box.is_empty
    box.channel.receive(opener.send(Credit(1, STDOUT, 10)))
    assert everything(box, opener) == [Data(1, STDOUT, bytes(10))]
    box.channel.receive(opener.send(Credit(1, STDOUT, 8192)))
    assert [type(one) for one in everything(box, opener)] == [Data, Exit]


def test_one_that_may_send_nothing_holds_up_no_other() -> None:
    box, opener = server(1, 2)
    for _ in range(WINDOW // 8192 + 1):
        box.put(Data(1, STDOUT, bytes(8192)))
    everything(box, opener)
    box.put(Data(2, STDOUT, b"x"))
    assert everything(box, opener) == [Data(2, STDOUT, b"x")]


def test_of_sizes_the_last_counts_and_a_signal_waits_once() -> None:
    server_, box = Channel(opener=False), Outbox(Channel(opener=True))
    box.put(Open(1, command("x")))
    for number in range(1000):
        box.put(Size(1, Terminal(number, number)))
        box.put(Signal(1, 1 + number % 3))
    found = everything(box, server_)
    assert found[1:] == [Size(1, Terminal(999, 999)), *(Signal(1, one) for one in (1, 2, 3))]


def test_a_hangup_takes_the_place_of_what_nobody_waits_for() -> None:
    server_, box = Channel(opener=False), Outbox(Channel(opener=True))
    said = (
        *(Open(1, command("x")), Data(1, STDIN, b"x"), End(1, STDIN), Signal(1, 2)),
        *(Size(1, Terminal(1, 1)), Credit(1, STDOUT, 1), Hangup(1)),
    )
    for frame in said:
        box.put(frame)
    assert everything(box, server_) == [said[0], Hangup(1)]


@pytest.mark.parametrize("data_alone", [False, True])
def test_what_is_forgotten_is_not_sent(data_alone: bool) -> None:
    box, _ = server(1)
    for frame in (Data(1, STDOUT, b"x"), End(1, STDOUT), Credit(1, STDIN, 0)):
        box.put(frame)
    (box.forget_data if data_alone else box.forget)(1)
    assert box.is_empty is not data_alone
    assert box.waits(1, STDOUT) == 0


def test_a_refusal_is_sent() -> None:
    opener, box = Channel(opener=True), Outbox(Channel(opener=False))
    box.channel.receive(opener.send(Open(1, command("x"))))
    box.put(SessionRefused(1, "no"))
    assert everything(box, opener) == [SessionRefused(1, "no")]
