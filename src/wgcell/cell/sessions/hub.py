"""Who is joined to whom: clients' sessions, and the guest's. No I/O.

The guest and each client have a channel of their own (`wgcell.guest.channel`). The hub is the
opener towards the guest and the server towards a client. It gives each session that a client begins
a number of the guest's channel, and passes its frames on: data one way, the credit for it the
other. So both ends of a session bound each other, and the hub holds no more of a stream than its
window.

The guest is hostile: its first violation raises GuestError, which ends the cell. A client's ends
that client alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from wgcell.cell.core.events import SessionExited, SessionOpened
from wgcell.cell.sessions.outbox import Outbox
from wgcell.cell.sessions.workload import Attached, Source, Workload
from wgcell.guest.channel import MOST_SESSIONS, WORKLOAD, Channel
from wgcell.guest.frames import (
    STDIN,
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
    Pack,
    SessionRefused,
    Signal,
    Size,
    Subject,
    Unpack,
)

__all__ = ["Client", "Hub", "Refusal"]

Refusal = Callable[[Subject], str]
"""Why a session of that subject can't begin now, in a sentence; empty if it can."""


@dataclass(slots=True, eq=False)
class _Session:
    """One of the guest's sessions, and whose it is."""

    number: int
    client: Client | None
    """None: its client is gone."""
    of_client: int
    """Its number in the client's channel."""
    hung_up: bool = False


@dataclass(slots=True, eq=False)
class Client:
    """One connection. ``detached``: its sessions go on when it is gone, and print nowhere."""

    uid: int
    detached: bool
    box: Outbox = field(default_factory=lambda: Outbox(Channel(opener=False)))
    sessions: dict[int, _Session] = field(default_factory=dict)
    attached: dict[int, Attached] = field(default_factory=dict)


class Hub:
    """One cell's. ``changed`` has the clients with more to be sent, until somebody empties it."""

    def __init__(
        self,
        sources: Mapping[int, Source],
        refusal: Refusal,
        report: Callable[[SessionOpened | SessionExited], None],
    ) -> None:
        """``sources`` are what the workload prints, by their stream's number; it may be filled
        later."""
        self.guest = Outbox(Channel(opener=True, workload=True))
        self.workload = Workload(self.guest, sources)
        self.clients: set[Client] = set()
        self.changed: set[Client] = set()
        self.watchers = 0
        """How many are attached to the workload."""
        self._refusal = refusal
        self._report = report
        self._sessions: dict[int, _Session] = {}
        self._latest = WORKLOAD
        self._code: int | None = None
        """The cell's exit code, when it has ended."""

    # The guest.

    def hear_guest(self, data: bytes) -> None:
        """What came from the guest. Raises GuestError at its first violation."""
        for frame in self.guest.channel.receive(data):
            session = self._sessions.get(frame.session)
            if session is not None:
                self._hear_session(frame, session)

    def take_for_guest(self) -> bytes:
        """The next frame for the guest; empty if there is none that may be sent now."""
        before = self.guest.waits(WORKLOAD, STDIN)
        raw = self.guest.take()
        self.workload.passed(before - self.guest.waits(WORKLOAD, STDIN))
        return raw

    def lose_guest(self) -> None:
        """The machine is gone, and every session with it."""
        for session in list(self._sessions.values()):
            self._over(session, None, "the machine ended before it did")

    def end(self, code: int) -> None:
        """The cell has ended with that exit code: whoever is attached sees the rest, and it."""
        self._code = code
        self.show()

    def _hear_session(self, frame: Frame, session: _Session) -> None:
        match frame:
            case Exit(_, code):
                self._over(session, code)
            case SessionRefused(_, text):
                self._over(session, None, text)
            case Credit(_, stream) if not self.guest.channel.room(session.number, stream):
                return  # of a stream that has ended, which could go on for ever
            case Data(_, stream, data) if session.client is None or session.client.detached:
                if not session.hung_up:
                    self.guest.put(Credit(session.number, stream, len(data)))
                return
        if session.client is not None:
            self._put(session.client, replace(frame, session=session.of_client))

    def _over(self, session: _Session, code: int | None, reason: str = "") -> None:
        del self._sessions[session.number]
        self.guest.forget(session.number)
        if session.client is not None:
            del session.client.sessions[session.of_client]
        self._report(SessionExited(session.number, code, reason))

    # The clients.

    def join(self, uid: int, *, detached: bool = False) -> Client:
        """A client of that user comes."""
        client = Client(uid, detached)
        self.clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        """A client is gone: its sessions are hung up, and the workload goes on."""
        self.clients.discard(client)
        for session in client.sessions.values():
            session.client = None
            if not (client.detached or session.hung_up):
                self._hang_up(session)
        for attached in list(client.attached.values()):
            self._detach(client, attached, 0)
        client.sessions = {}
        self.changed.discard(client)

    def hear_client(self, client: Client, data: bytes) -> None:
        """What came from a client. Raises GuestError at its first violation: it must leave."""
        for frame in client.box.channel.receive(data):
            if isinstance(frame, Open):
                self._begin(client, frame)
            elif (session := client.sessions.get(frame.session)) is not None:
                if isinstance(frame, Hangup):
                    self._hang_up(session)
                else:
                    self.guest.put(replace(frame, session=session.number))
            elif (attached := client.attached.get(frame.session)) is not None:
                self._hear_attached(client, attached, frame)

    def show(self) -> None:
        """Bring what the workload has printed to those that are attached and have room for it."""
        for client in self.clients:
            for attached in list(client.attached.values()):
                self._show(client, attached)

    def _begin(self, client: Client, frame: Open) -> None:
        subject = frame.subject
        why = self._refusal(subject)
        if not why:
            act = self._attach if isinstance(subject, Attach) else self._open
            why = act(client, frame.session, subject)
        if why:
            self._put(client, SessionRefused(frame.session, why))

    def _open(self, client: Client, number: int, subject: Subject) -> str:
        """Begin a session in the guest; or why not."""
        if len(self._sessions) >= MOST_SESSIONS:
            return f"this cell has {MOST_SESSIONS} sessions, and can't have more at once"
        self._latest += 1
        session = _Session(self._latest, client, number)
        self._sessions[session.number] = client.sessions[number] = session
        self.guest.put(Open(session.number, subject))
        self._report(_opened(session.number, subject, client.uid))
        return ""

    def _hang_up(self, session: _Session) -> None:
        session.hung_up = True
        self.guest.put(Hangup(session.number))

    def _put(self, client: Client, frame: Frame) -> None:
        client.box.put(frame)
        self.changed.add(client)

    # Those that are attached.

    def _attach(self, client: Client, number: int, subject: Subject) -> str:
        """Join the client to the workload; or why not."""

        def credited(amount: int) -> None:
            self._put(client, Credit(number, STDIN, amount))

        holds = credited if isinstance(subject, Attach) and subject.stdin else None
        attached = self.workload.attach(number, client.box, holds)
        if isinstance(attached, str):
            return attached
        client.attached[number] = attached
        self.watchers += 1
        self._put(client, Opened(number))
        self._show(client, attached)
        self._report(_opened(WORKLOAD, subject, client.uid))
        return ""

    def _hear_attached(self, client: Client, attached: Attached, frame: Frame) -> None:
        match frame:
            case Data(_, _, data) if attached.credited is not None:
                self.workload.write(attached.credited, data)
            case End() if attached.credited is not None:
                self.workload.end(attached.credited)
            case Size() | Signal():
                self.guest.put(replace(frame, session=WORKLOAD))
            case Credit():
                self._show(client, attached)
            case Hangup():
                self._detach(client, attached, 0)

    def _show(self, client: Client, attached: Attached) -> None:
        shown = attached.show(self.workload.sources)
        self.changed.add(client)
        if shown and self._code is not None:
            self._detach(client, attached, self._code)

    def _detach(self, client: Client, attached: Attached, code: int) -> None:
        del client.attached[attached.number]
        self.watchers -= 1
        self.workload.detach(attached, code)
        self.changed.add(client)


def _opened(number: int, subject: Subject, uid: int) -> SessionOpened:
    """What is recorded of a session: nothing of its environment, which may hold secrets."""
    terminal = False
    match subject:
        case Command(argv, _, _, _, size, _):
            kind, words, terminal = "command", argv, size is not None
        case Pack(path):
            kind, words = "pack", (path,)
        case Unpack(path):
            kind, words = "unpack", (path,)
        case Attach(stdin):
            kind, words = "attach", ("stdin",) if stdin else ()
    return SessionOpened(number, kind, words, terminal, uid)
