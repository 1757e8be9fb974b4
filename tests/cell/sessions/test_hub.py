"""Any number of clients and a guest around one hub, in any order: honest ones, and liars.

::

    client -- line --+
    client -- line --+-- hub -- line -- guest
    the starter -----+

The lines are bytes in memory, which arrive when and in what pieces the test likes. What the honest
ends say must arrive whole, in order, and at the right end; nobody is accused who was honest; and
the hub holds no more than the windows. A liar must be found out or do no harm: nobody else is held
up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.channels import ANY_FRAME, fields
from tests.support.examples import examples
from tests.support.programs import command

from wgcell.cell.core.events import SessionExited, SessionOpened
from wgcell.cell.sessions.hub import Client, Hub
from wgcell.errors import GuestError
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
    End,
    Exit,
    Frame,
    Hangup,
    Open,
    Opened,
    SessionRefused,
    Signal,
    Size,
    Subject,
    Terminal,
    encode,
)

STREAMS = (STDIN, STDOUT, STDERR)


class Printed:
    """What the workload has printed, all of it kept."""

    def __init__(self) -> None:
        self.whole = b""

    @property
    def end(self) -> int:
        return len(self.whole)

    def read(self, at: int, most: int) -> tuple[int, bytes]:
        return at, self.whole[at : at + most]


class End_:
    """An honest end of a channel, and the line to it from the hub and back."""

    def __init__(self, *, opener: bool) -> None:
        self.channel = Channel(opener=opener, workload=not opener)
        self.line = bytearray()
        """Bytes on their way to the hub."""
        self.held: dict[tuple[int, int], bytearray] = {}
        """What came and was not read yet, by session and stream."""
        self.read: dict[tuple[int, int], bytearray] = {}
        self.written: dict[tuple[int, int], bytearray] = {}
        self.over: dict[int, Frame] = {}
        """How a session ended."""
        self.hung_up: set[int] = set()
        self.opened: dict[int, Subject] = {}

    def say(self, frame: Frame) -> None:
        self.line += self.channel.send(frame)

    def write(self, session: int, stream: int, data: bytes) -> None:
        self.say(Data(session, stream, data))
        self.written.setdefault((session, stream), bytearray()).extend(data)

    def hear(self, raw: bytes) -> None:
        """What the hub says; it never breaks a rule."""
        for frame in self.channel.receive(raw):
            match frame:
                case Open(session, subject):
                    self.opened[session] = subject
                case Data(session, stream, data):
                    self.held.setdefault((session, stream), bytearray()).extend(data)
                case Exit() | SessionRefused():
                    self.over[frame.session] = frame
                case Hangup(session):
                    self.hung_up.add(session)

    def take(self, key: tuple[int, int], size: int) -> None:
        """Read, and give credit for it if that may be said."""
        if self.channel.is_open(key[0]) and not self.channel._sessions[key[0]].runs:
            return  # its program has not begun
        held = self.held.get(key, bytearray())
        part = bytes(held[:size])
        del held[:size]
        if part:
            self.read.setdefault(key, bytearray()).extend(part)
            if self.channel.is_open(key[0]) and key[0] not in self.hung_up:
                self.say(Credit(*key, len(part)))


class Player:
    """An honest client: its end, and the hub's side of it."""

    def __init__(self, hub: Hub) -> None:
        self.end = End_(opener=True)
        self.client: Client = hub.join(1000)
        self.hung_up: set[int] = set()
        self.attached: dict[int, int] = {}
        """Where what it sees begins, of each attached session."""


class Cell(RuleBasedStateMachine):
    """One hub among honest ends."""

    def __init__(self) -> None:
        super().__init__()
        self.printed = Printed()
        self.reports: list[SessionOpened | SessionExited] = []
        self.hub = Hub({STDOUT: self.printed}, lambda subject: "", self.reports.append)
        self.guest = End_(opener=False)
        self.players: list[Player] = []
        self.gone: list[Player] = []
        self.lost_input = 0

    # What is on its way arrives.

    @rule(size=st.integers(1, 200_000))
    def guest_is_heard(self, size: int) -> None:
        part = bytes(self.guest.line[:size])
        del self.guest.line[:size]
        self.hub.hear_guest(part)

    @rule(most=st.integers(1, 50))
    def guest_hears(self, most: int) -> None:
        for _ in range(most):
            self.guest.hear(self.hub.take_for_guest())

    @precondition(lambda self: self.players)
    @rule(data=st.data(), size=st.integers(1, 200_000))
    def client_is_heard(self, data: st.DataObject, size: int) -> None:
        player = data.draw(st.sampled_from(self.players))
        part = bytes(player.end.line[:size])
        del player.end.line[:size]
        self.hub.hear_client(player.client, part)

    @precondition(lambda self: self.players)
    @rule(data=st.data(), most=st.integers(1, 50))
    def client_hears(self, data: st.DataObject, most: int) -> None:
        player = data.draw(st.sampled_from(self.players))
        for _ in range(most):
            player.end.hear(player.client.box.take())

    # What clients do.

    @precondition(lambda self: len(self.players) < 4)
    @rule()
    def come(self) -> None:
        self.players.append(Player(self.hub))

    @precondition(lambda self: self.players)
    @rule(data=st.data(), attach=st.booleans(), stdin=st.booleans())
    def open(self, data: st.DataObject, attach: bool, stdin: bool) -> None:
        player = data.draw(st.sampled_from(self.players))
        channel = player.end.channel
        if not channel.is_full:
            number = channel.next_session
            subject: Subject = Attach(stdin) if attach else command("x", stdin=stdin)
            player.end.opened[number] = subject
            player.end.say(Open(number, subject))

    def running(self) -> list[tuple[Player, int]]:
        return [
            (player, number)
            for player in self.players
            for number in player.end.opened
            if player.end.channel.is_open(number) and number not in player.hung_up
        ]

    @precondition(lambda self: self.running())
    @rule(data=st.data(), size=st.integers(1, MOST_DATA))
    def write(self, data: st.DataObject, size: int) -> None:
        player, number = data.draw(st.sampled_from(self.running()))
        size = min(size, player.end.channel.room(number, STDIN))
        if size:
            player.end.write(number, STDIN, bytes([number % 256]) * size)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), what=st.sampled_from(["end", "size", "signal", "hangup"]))
    def tell(self, data: st.DataObject, what: str) -> None:
        player, number = data.draw(st.sampled_from(self.running()))
        if what == "end" and player.end.channel.room(number, STDIN):
            player.end.say(End(number, STDIN))
        elif what == "size":
            player.end.say(Size(number, Terminal(0, 10_000)))
        elif what == "signal":
            player.end.say(Signal(number, 2))
        elif what == "hangup":
            player.hung_up.add(number)
            player.end.hung_up.add(number)
            player.end.say(Hangup(number))

    @precondition(lambda self: any(player.end.held for player in self.players))
    @rule(data=st.data(), size=st.integers(1, WINDOW))
    def read(self, data: st.DataObject, size: int) -> None:
        player = data.draw(st.sampled_from([one for one in self.players if one.end.held]))
        player.end.take(data.draw(st.sampled_from(sorted(player.end.held))), size)

    @precondition(lambda self: self.players)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        player = data.draw(st.sampled_from(self.players))
        self.players.remove(player)
        self.gone.append(player)
        self.hub.leave(player.client)

    # What the guest does.

    def served(self) -> list[int]:
        channel = self.guest.channel
        return [number for number in self.guest.opened if channel.is_open(number)]

    @precondition(lambda self: self.served())
    @rule(data=st.data(), refuse=st.booleans())
    def begin(self, data: st.DataObject, refuse: bool) -> None:
        number = data.draw(st.sampled_from(self.served()))
        if not self.guest.channel._sessions[number].runs:
            self.guest.say(SessionRefused(number, "no") if refuse else Opened(number))

    @precondition(lambda self: self.served())
    @rule(data=st.data(), stream=st.sampled_from([STDOUT, STDERR]), size=st.integers(1, MOST_DATA))
    def print_(self, data: st.DataObject, stream: int, size: int) -> None:
        number = data.draw(st.sampled_from(self.served()))
        size = min(size, self.guest.channel.room(number, stream))
        if size and self.guest.channel._sessions[number].runs:
            self.guest.write(number, stream, bytes([number % 256]) * size)

    @precondition(lambda self: self.served())
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.served()))
        if self.guest.channel._sessions[number].runs:
            self.guest.say(Exit(number, number % 256))

    @precondition(lambda self: self.guest.held)
    @rule(data=st.data(), size=st.integers(1, WINDOW))
    def consume(self, data: st.DataObject, size: int) -> None:
        self.guest.take(data.draw(st.sampled_from(sorted(self.guest.held))), size)

    @rule(size=st.integers(1, WINDOW))
    def workload_prints(self, size: int) -> None:
        self.printed.whole += bytes([len(self.printed.whole) % 251]) * size
        self.hub.show()

    # What always holds.

    @invariant()
    def no_more_is_held_than_the_windows(self) -> None:
        for number in (WORKLOAD, *self.hub._sessions):
            assert self.hub.guest.waits(number, STDIN) <= WINDOW
        for player in self.players:
            for number in player.end.opened:
                for stream in (STDOUT, STDERR):
                    assert player.client.box.waits(number, stream) <= WINDOW
        assert set(self.hub.guest._waiting) <= {WORKLOAD, *self.hub._sessions}
        assert len(self.hub._sessions) <= MOST_SESSIONS

    @invariant()
    def what_arrives_is_what_was_said(self) -> None:
        """By number: a session's bytes are its client's number, the guest's are the guest's."""
        for number, session in self.hub._sessions.items():
            client = session.client
            player = next((one for one in self.players if one.client is client), None)
            if player is None:
                continue
            for stream in STREAMS:
                far, near = (number, stream), (session.of_client, stream)
                one, other = (
                    (self.guest, player.end) if stream == STDIN else (player.end, self.guest)
                )
                got, said = (far, near) if stream == STDIN else (near, far)
                came = one.read.get(got, b"") + one.held.get(got, b"")
                assert bytes(other.written.get(said, b"")).startswith(bytes(came))

    def teardown(self) -> None:
        """Let everything flow: whoever still runs gets all that was meant for it, and ends."""
        turns = 0
        while self._moved():
            turns += 1
            assert turns < 1000
        ended = {one.session for one in self.reports if isinstance(one, SessionExited)}
        opened = {one.session for one in self.reports if isinstance(one, SessionOpened)}
        assert ended <= opened and opened - ended - {WORKLOAD} == set(self.hub._sessions)
        for player in self.players:
            assert player.client.box.is_empty

    def _moved(self) -> bool:
        """One turn of the whole: everybody reads all it has, and every line is emptied."""
        moved = bool(self.guest.line)
        self.hub.hear_guest(bytes(self.guest.line))
        self.guest.line.clear()
        while raw := self.hub.take_for_guest():
            self.guest.hear(raw)
            moved = True
        for number in self.served():
            if not self.guest.channel._sessions[number].runs:
                self.guest.say(Opened(number))
                moved = True
        for key in list(self.guest.held):
            self.guest.take(key, 1 << 30)
        for player in self.players:
            moved |= bool(player.end.line)
            self.hub.hear_client(player.client, bytes(player.end.line))
            player.end.line.clear()
            while raw := player.client.box.take():
                player.end.hear(raw)
                moved = True
            for key in list(player.end.held):
                player.end.take(key, 1 << 30)
        return moved


Cell.TestCase.settings = settings(max_examples=examples(120), stateful_step_count=50, deadline=None)
TestCell = Cell.TestCase


# Liars.


def small(frame: Frame) -> Frame:
    """``frame`` in a session that may be there."""
    return type(frame)(frame.session % 4, *fields(frame))


class Scene:
    """A hub with a guest, an honest client with a session of each kind, and a client that lies."""

    def __init__(self) -> None:
        self.printed = Printed()
        self.hub = Hub({STDOUT: self.printed}, lambda subject: "", lambda report: None)
        self.guest = End_(opener=False)
        self.honest, self.liar = Player(self.hub), Player(self.hub)
        for player in (self.honest, self.liar):
            player.end.say(Open(1, command("x")))
            self.flow(player)
            number = max(self.guest.opened)
            self.guest.say(Opened(number))
            self.hub.hear_guest(bytes(self.guest.line))
            self.guest.line.clear()
        self.honest.end.say(Open(2, Attach(stdin=True)))
        self.flow(self.honest)

    def flow(self, player: Player) -> None:
        self.hub.hear_client(player.client, bytes(player.end.line))
        player.end.line.clear()
        while raw := self.hub.take_for_guest():
            self.guest.hear(raw)
        while raw := player.client.box.take():
            player.end.hear(raw)

    def echo(self) -> bytes:
        """What comes back of the honest client's session."""
        self.honest.end.write(1, STDIN, b"ping")
        self.flow(self.honest)
        first = min(self.guest.opened)
        self.guest.take((first, STDIN), 4)
        self.guest.write(first, STDOUT, b"pong")
        self.hub.hear_guest(bytes(self.guest.line))
        self.guest.line.clear()
        self.flow(self.honest)
        return bytes(self.honest.end.held[1, STDOUT])

    def held(self) -> int:
        """Bytes that the hub holds for anybody."""
        boxes = [self.hub.guest, self.honest.client.box, self.liar.client.box]
        return sum(
            chunks.size
            for box in boxes
            for waiting in box._waiting.values()
            for chunks in waiting.data.values()
        )


@given(st.lists(ANY_FRAME, max_size=30))
@settings(max_examples=examples(300), deadline=None)
def test_a_client_that_lies_harms_nobody_else(said: list[Frame]) -> None:
    scene = Scene()
    try:
        for frame in said:
            scene.hub.hear_client(scene.liar.client, encode(small(frame)))
    except GuestError:
        scene.hub.leave(scene.liar.client)
    assert scene.held() <= 8 * WINDOW
    assert scene.echo() == b"pong"
    scene.printed.whole += b"seen"
    scene.hub.show()
    scene.flow(scene.honest)
    assert scene.honest.end.held[2, STDOUT] == b"seen"


@given(st.lists(ANY_FRAME, max_size=30))
@settings(max_examples=examples(300), deadline=None)
def test_a_guest_that_lies_is_found_out_or_does_no_harm(said: list[Frame]) -> None:
    """Whatever it says, an honest client never sees a frame that breaks a rule."""
    scene = Scene()
    try:
        for frame in said:
            scene.hub.hear_guest(encode(small(frame)))
            scene.flow(scene.honest)
    except GuestError:
        scene.hub.lose_guest()
        scene.flow(scene.honest)
    assert scene.held() <= 8 * WINDOW


@given(st.binary(max_size=400), st.booleans())
def test_bytes_raise_nothing_but_guest_error(raw: bytes, of_guest: bool) -> None:
    scene = Scene()
    hear: Callable[[bytes], None] = scene.hub.hear_guest
    if not of_guest:
        hear = lambda raw: scene.hub.hear_client(scene.liar.client, raw)  # noqa: E731
    with contextlib.suppress(GuestError):
        hear(raw)


def test_of_what_a_flood_is_made_makes_no_difference() -> None:
    """Bytes one by one: a client that takes nothing costs no more than its windows."""
    scene = Scene()
    liar = max(scene.guest.opened)
    for _ in range(WINDOW):
        scene.guest.say(Data(liar, STDOUT, b"x"))
    scene.hub.hear_guest(bytes(scene.guest.line))
    scene.guest.line.clear()
    pieces = scene.liar.client.box._waiting[1].data[STDOUT]._pieces
    assert scene.liar.client.box.waits(1, STDOUT) == WINDOW and len(pieces) < 10
    with pytest.raises(ValueError, match="where 0 may come"):
        scene.guest.say(Data(liar, STDOUT, b"x"))
    with pytest.raises(GuestError, match="where 0 may come"):
        scene.hub.hear_guest(encode(Data(liar, STDOUT, b"x")))


def test_a_command_is_recorded_without_its_environment() -> None:
    reports: list[SessionOpened | SessionExited] = []
    hub = Hub({}, lambda subject: "", reports.append)
    client = hub.join(7)
    secret = Command(("sh", "-c", "x y"), (("TOKEN", "s3cret"),), "", "", Terminal(1, 2), True)
    hub.hear_client(client, Channel(opener=True).send(Open(1, secret)))
    assert reports == [SessionOpened(1, "command", ("sh", "-c", "x y"), True, 7)]
    assert "s3cret" not in repr(reports)
