"""The session channel: its frames as bytes, its rules, and two ends that talk over a slow line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.channels import (
    ANY_FRAME,
    FRAMES,
    SUBJECTS,
    fields,
)
from tests.support.examples import examples

from wgcell.errors import GuestError
from wgcell.guest import frames
from wgcell.guest.channel import MOST_SESSIONS, WINDOW, WORKLOAD, Channel
from wgcell.guest.frames import (
    MOST_DATA,
    STDERR,
    STDIN,
    STDOUT,
    Attach,
    Command,
    Credit,
    Data,
    Decoder,
    End,
    Exit,
    Frame,
    Hangup,
    Open,
    Opened,
    Pack,
    SessionRefused,
    Signal,
    Size,
    Terminal,
    encode,
)

# Frames as bytes.

SUBJECTS |= st.builds(Attach, st.booleans())


def test_every_frame_is_in_the_table() -> None:
    assert set(FRAMES) == set(Frame.__args__) == set(frames._TYPES)


@given(st.lists(ANY_FRAME, max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_frames_are_read_as_they_were_written_however_they_are_cut(
    sent: list[Frame], cuts: list[int]
) -> None:
    raw = b"".join(map(encode, sent))
    decoder, found, at = Decoder(), [], 0
    while at < len(raw):
        size = cuts[at % len(cuts)]
        found += decoder.frames(raw[at : at + size])
        at += size
    assert found == sent
    assert decoder.is_between_frames


@pytest.mark.parametrize("frame", [Credit(2**32 - 1, STDERR, 2**32 - 1), Signal(1, 64)])
def test_the_largest_values_are_read_as_they_were_written(frame: Frame) -> None:
    assert Decoder().frames(encode(frame)) == [frame]


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_guest_error(raw: bytes) -> None:
    decoder = Decoder()
    try:
        read = decoder.frames(raw)
    except GuestError:
        return
    # What is read is what was there, byte for byte: nothing has two spellings but bad UTF-8.
    for frame in read:
        if not isinstance(frame, SessionRefused):
            assert encode(frame) in raw


@given(ANY_FRAME, st.data())
@settings(max_examples=examples(300))
def test_a_frame_that_was_changed_is_another_or_none(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode(frame))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        read = Decoder().frames(bytes(raw))
    except GuestError:
        return
    assert read != [frame]


@pytest.mark.parametrize("kind", range(256))
def test_a_length_beyond_its_bound_is_refused_before_its_bytes_come(kind: int) -> None:
    longest = frames._LONGEST.get(kind)
    head = bytes([kind]) + bytes(4) + (0 if longest is None else longest + 1).to_bytes(4, "big")
    with pytest.raises(GuestError):
        Decoder().frames(head)


@pytest.mark.parametrize(
    "wrong",
    [
        Data(1, STDOUT, b""),
        Data(1, STDOUT, bytes(MOST_DATA + 1)),
        Data(2**32, STDOUT, b"x"),
        Signal(1, 0),
        Signal(1, 65),
        Exit(1, 256),
        Size(1, Terminal(65536, 1)),
        Size(1, Terminal(-1, 1)),
        Credit(1, STDIN, 2**32),
        Open(1, Pack("a\0b")),
        Open(1, Command(("x" * frames.LONGEST_OPEN,), (), "", "", None, False)),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_value_out_of_range_is_never_sent(wrong: Frame) -> None:
    with pytest.raises((ValueError, OverflowError)):
        encode(wrong)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\5",
        b"\5\0",
        b"\1\4" + bytes(12),
        b"\1\0" + bytes(4) + bytes(8) + bytes(8),
        b"\1\0\0\1\0\0" + b"\0\0\0\1" + bytes(4) + bytes(12),
        b"\1\0" + bytes(4) + b"\xff\xff\xff\xff" + bytes(12),
        b"\1\0" + bytes(4) + b"\0\0\0\1\0\0\0\1" + bytes(12) + b"\0\0\0\2=x",
        b"\2\0\0\0\5abc",
        b"\2\0\0\0\1\0",
        b"\2\0\0\0\1ab",
        b"\4\2",
    ],
    ids=range(12),
)
def test_a_subject_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(GuestError):
        Decoder().frames(b"\4\0\0\0\1" + len(payload).to_bytes(4, "big") + payload)


# The rules: who may say what, and when.

COMMAND = Command(("sh",), (), "", "", None, True)
OPEN = Open(1, COMMAND)
# Each case: what came before, by whom; then the frame, and whether it may come.
H, G = True, False
BEGUN = ((H, OPEN),)
RUNS = (*BEGUN, (G, Opened(1)))
OVER = (*RUNS, (G, Exit(1, 0)))
HUNG_UP = (*RUNS, (H, Hangup(1)))
FULL = Data(1, STDOUT, b"x" * 8192)
SPENT = (*RUNS, *[(G, FULL)] * (WINDOW // 8192))
Step = tuple[bool, Frame]
RULES: list[tuple[tuple[Step, ...], bool, Frame, bool]] = [
    ((), H, OPEN, True),
    ((), G, OPEN, False),
    (BEGUN, H, OPEN, False),
    (BEGUN, H, Open(2, COMMAND), True),
    ((), H, Open(WORKLOAD, COMMAND), False),
    ((), G, Opened(1), False),
    (BEGUN, G, Opened(1), True),
    (RUNS, G, Opened(1), False),
    (RUNS, H, Opened(1), False),
    (BEGUN, G, SessionRefused(1, "no"), True),
    (RUNS, G, SessionRefused(1, "no"), False),
    (BEGUN, H, SessionRefused(1, "no"), False),
    (BEGUN, H, Data(1, STDIN, b"x"), True),
    (RUNS, H, Data(1, STDIN, b"x"), True),
    (RUNS, H, Data(1, STDOUT, b"x"), False),
    (BEGUN, G, Data(1, STDOUT, b"x"), False),
    (RUNS, G, Data(1, STDOUT, b"x"), True),
    (RUNS, G, Data(1, STDERR, b"x"), True),
    (RUNS, G, Data(1, STDIN, b"x"), False),
    (SPENT, G, Data(1, STDOUT, b"x"), False),
    (SPENT, G, Data(1, STDERR, b"x"), True),
    ((*SPENT, (H, Credit(1, STDOUT, 1))), G, Data(1, STDOUT, b"x"), True),
    ((*SPENT, (H, Credit(1, STDOUT, 1))), G, Data(1, STDOUT, b"xx"), False),
    (SPENT, H, Credit(1, STDOUT, WINDOW), True),
    (SPENT, H, Credit(1, STDOUT, WINDOW + 1), False),
    (SPENT, H, Credit(1, STDOUT, 0), False),
    (RUNS, H, Credit(1, STDOUT, 1), False),
    (RUNS, H, Credit(1, STDIN, 1), False),
    (RUNS, G, Credit(1, STDIN, 1), False),
    ((*RUNS, (H, Data(1, STDIN, b"x"))), G, Credit(1, STDIN, 1), True),
    ((*RUNS, (H, Data(1, STDIN, b"x"))), G, Credit(1, STDIN, 2), False),
    ((*RUNS, (H, Data(1, STDIN, b"x")), (H, End(1, STDIN))), G, Credit(1, STDIN, 1), True),
    (RUNS, H, End(1, STDIN), True),
    (RUNS, H, End(1, STDOUT), False),
    (RUNS, G, End(1, STDOUT), True),
    (RUNS, G, End(1, STDIN), False),
    ((*RUNS, (H, End(1, STDIN))), H, Data(1, STDIN, b"x"), False),
    ((*RUNS, (H, End(1, STDIN))), H, End(1, STDIN), False),
    ((*RUNS, (G, End(1, STDOUT))), G, Data(1, STDOUT, b"x"), False),
    ((*RUNS, (G, End(1, STDOUT))), G, End(1, STDOUT), False),
    (RUNS, H, Size(1, Terminal(0, 10_000)), True),
    (RUNS, G, Size(1, Terminal(24, 80)), False),
    (RUNS, H, Signal(1, 2), True),
    (RUNS, G, Signal(1, 2), False),
    (RUNS, H, Hangup(1), True),
    (RUNS, G, Hangup(1), False),
    (HUNG_UP, H, Hangup(1), False),
    (HUNG_UP, H, Data(1, STDIN, b"x"), False),
    (HUNG_UP, G, Data(1, STDOUT, b"x"), True),
    (HUNG_UP, G, Exit(1, 129), True),
    (BEGUN, G, Exit(1, 0), False),
    (RUNS, G, Exit(1, 0), True),
    (RUNS, H, Exit(1, 0), False),
    (OVER, G, Exit(1, 0), False),
    (OVER, G, Data(1, STDOUT, b"x"), False),
    (OVER, H, OPEN, False),
    (OVER, H, Open(7, COMMAND), True),
    # The workload.
    ((), H, Data(WORKLOAD, STDIN, b"x"), True),
    ((), H, Size(WORKLOAD, Terminal(24, 80)), True),
    ((), H, Signal(WORKLOAD, 2), True),
    ((), G, Data(WORKLOAD, STDOUT, b"x"), False),
    ((), G, End(WORKLOAD, STDOUT), False),
    ((), G, Opened(WORKLOAD), False),
    ((), G, SessionRefused(WORKLOAD, "no"), False),
    ((), G, Exit(WORKLOAD, 0), False),
    (((H, Data(WORKLOAD, STDIN, b"x")),), G, Credit(WORKLOAD, STDIN, 1), True),
    ((), G, Credit(WORKLOAD, STDIN, 1), False),
]


def test_every_frame_has_a_rule_each_way_and_each_answer() -> None:
    for kind in FRAMES:
        assert {may for _, _, frame, may in RULES if type(frame) is kind} == {True, False}


@pytest.mark.parametrize(("before", "by_opener", "frame", "may"), RULES)
def test_rules(before: tuple[Step, ...], by_opener: bool, frame: Frame, may: bool) -> None:
    """Both ends judge alike: the one that would send it, and the one that receives it."""
    opener, server = Channel(opener=True, workload=True), Channel(opener=False, workload=True)
    for step_by_opener, step in before:
        one, other = (opener, server) if step_by_opener else (server, opener)
        other.receive(one.send(step))
    sender, receiver = (opener, server) if by_opener else (server, opener)
    if may:
        assert receiver.receive(sender.send(frame)) == [frame]
        return
    with pytest.raises(ValueError):
        sender.send(frame)
    with pytest.raises(GuestError):
        receiver.receive(encode(frame))


LATE = [Data(1, STDIN, b"x"), End(1, STDIN), Credit(1, STDOUT, 5), Size(1, Terminal(1, 1))]
LATE += [Signal(1, 2), Hangup(1)]


@pytest.mark.parametrize("frame", LATE, ids=lambda frame: type(frame).__name__)
def test_what_crosses_with_the_end_of_a_session_is_dropped(frame: Frame) -> None:
    opener, server = Channel(opener=True), Channel(opener=False)
    server.receive(opener.send(OPEN))
    opener.receive(server.send(Opened(1)))
    server.send(Exit(1, 0))
    assert server.receive(encode(frame)) == []
    with pytest.raises(GuestError):
        Channel(opener=False).receive(encode(frame))


def test_the_workloads_session_can_be_closed_by_the_server_alone() -> None:
    opener, server = Channel(opener=True, workload=True), Channel(opener=False, workload=True)
    server.close(WORKLOAD)
    assert server.receive(opener.send(Data(WORKLOAD, STDIN, b"x"))) == []


def test_sessions_are_bounded_and_an_ended_one_makes_room() -> None:
    opener, server = Channel(opener=True, workload=True), Channel(opener=False, workload=True)
    for _ in range(MOST_SESSIONS):
        server.receive(opener.send(Open(opener.next_session, COMMAND)))
    assert opener.is_full
    with pytest.raises(ValueError, match="at once"):
        opener.send(Open(opener.next_session, COMMAND))
    with pytest.raises(GuestError, match="at once"):
        server.receive(encode(Open(opener.next_session, COMMAND)))
    opener.receive(server.send(SessionRefused(3, "gone")))
    assert not opener.is_full and not server.is_full
    server.receive(opener.send(Open(opener.next_session, COMMAND)))


def test_a_refusal_is_cut_and_not_lost() -> None:
    opener, server = Channel(opener=True), Channel(opener=False)
    server.receive(opener.send(OPEN))
    [refused] = opener.receive(server.send(SessionRefused(1, "é" * 5000)))
    assert refused == SessionRefused(1, "é" * 2048)


# Two ends over a line that holds bytes back, each reader as slow as it likes.


class Talk(RuleBasedStateMachine):
    """An honest opener and an honest server: whatever they do in whatever order, neither ever
    accuses the other, nothing is lost, and nobody holds more than a window of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = {H: Channel(opener=True), G: Channel(opener=False)}
        self.line = {H: bytearray(), G: bytearray()}
        """Bytes on their way from each end."""
        self.sent: dict[tuple[int, int], bytearray] = {}
        self.held: dict[tuple[int, int], bytearray] = {}
        self.taken: dict[tuple[int, int], bytearray] = {}
        self.ended: set[tuple[bool, int, int]] = set()
        self.served: set[int] = set()
        self.hung_up: set[int] = set()

    def say(self, by: bool, frame: Frame) -> None:
        self.line[by] += self.ends[by].send(frame)

    @rule(by=st.booleans(), size=st.integers(1, 100_000))
    def arrive(self, by: bool, size: int) -> None:
        part = bytes(self.line[by][:size])
        del self.line[by][:size]
        for frame in self.ends[not by].receive(part):
            if isinstance(frame, Open):
                self.served.add(frame.session)
                self.say(G, Opened(frame.session))
            elif isinstance(frame, Data):
                key = (frame.session, frame.stream)
                self.held.setdefault(key, bytearray()).extend(frame.data)
            elif isinstance(frame, Hangup):
                self.say(G, Exit(frame.session, 129))
                self.served.discard(frame.session)

    @rule()
    def begin(self) -> None:
        if not self.ends[H].is_full:
            self.say(H, Open(self.ends[H].next_session, COMMAND))

    def streams(self) -> list[tuple[bool, int, int]]:
        opener = [(H, n, STDIN) for n in range(1, self.ends[H].next_session)]
        server = [(G, n, stream) for n in sorted(self.served) for stream in (STDOUT, STDERR)]
        return [one for one in opener + server if self.ends[one[0]].room(one[1], one[2])]

    @precondition(lambda self: self.streams())
    @rule(data=st.data(), size=st.integers(1, MOST_DATA))
    def write(self, data: st.DataObject, size: int) -> None:
        by, session, stream = data.draw(st.sampled_from(self.streams()))
        if by is H and session in self.hung_up:
            return
        size = min(size, self.ends[by].room(session, stream))
        part = bytes([(session + stream + size) % 256]) * size
        self.say(by, Data(session, stream, part))
        self.sent.setdefault((session, stream), bytearray()).extend(part)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), size=st.integers(1, WINDOW))
    def read(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from([key for key, held in self.held.items() if held]))
        session, stream = key
        part = self.held[key][:size]
        del self.held[key][:size]
        self.taken.setdefault(key, bytearray()).extend(part)
        by = stream != STDIN
        gone = session in self.hung_up if by is H else session not in self.served
        if not gone and self.ends[by].is_open(session):
            self.say(by, Credit(session, stream, len(part)))

    @precondition(lambda self: self.streams())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        by, session, stream = data.draw(st.sampled_from(self.streams()))
        if not (by is H and session in self.hung_up):
            self.say(by, End(session, stream))

    @precondition(lambda self: self.served)
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.served)))
        self.served.discard(session)
        self.say(G, Exit(session, 0))

    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        opener = self.ends[H]
        there = [
            n for n in range(1, opener.next_session) if opener.is_open(n) and n not in self.hung_up
        ]
        if there:
            session = data.draw(st.sampled_from(there))
            self.hung_up.add(session)
            self.say(H, Hangup(session))

    @invariant()
    def no_more_than_a_window_waits(self) -> None:
        for key, sent in self.sent.items():
            assert len(sent) - len(self.taken.get(key, b"")) <= WINDOW

    @invariant()
    def what_arrived_is_what_was_sent(self) -> None:
        for key, sent in self.sent.items():
            here = self.taken.get(key, bytearray()) + self.held.get(key, bytearray())
            assert sent.startswith(here)


Talk.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
TestTalk = Talk.TestCase


@given(st.lists(st.tuples(ANY_FRAME, st.booleans()), max_size=12), st.booleans())
def test_any_frames_in_any_order_raise_nothing_but_guest_error(
    said: list[tuple[Frame, bool]], opener: bool
) -> None:
    """Numbers are cut to a few, so that frames meet open sessions."""
    channel = Channel(opener=opener, workload=True)
    for frame, ours in said:
        small = type(frame)(frame.session % 3, *fields(frame))
        act: Callable[[], object]
        if ours:
            act = lambda small=small: channel.send(small)  # noqa: E731
        else:
            act = lambda small=small: channel.receive(encode(small))  # noqa: E731
        try:
            act()
        except ValueError:
            assert ours
        except GuestError:
            assert not ours
            return
