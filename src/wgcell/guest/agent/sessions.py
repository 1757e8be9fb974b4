"""The server of sessions: what the host opens on the channel, started in the workload's place."""

from __future__ import annotations

from wgcell.errors import GuestError
from wgcell.guest.agent.archives import Archiver
from wgcell.guest.agent.execution import Program
from wgcell.guest.agent.line import Line
from wgcell.guest.agent.session import KILLED, Granted, Session
from wgcell.guest.agent.wires import wired
from wgcell.guest.agent.workload import environment
from wgcell.guest.channel import WORKLOAD
from wgcell.guest.frames import (
    Command,
    Credit,
    Data,
    End,
    Hangup,
    Open,
    Pack,
    SessionRefused,
    Signal,
    Size,
    Unpack,
)

__all__ = ["Sessions"]

_LAST_SECONDS = 1.0
"""From the workload's end until sessions are over, all sent or not."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.agent.enclosure import Enclosure
    from wgcell.guest.agent.loop import Loop
    from wgcell.guest.agent.workload import Workload
    from wgcell.guest.config import GuestConfig
    from wgcell.guest.frames import Frame, Subject


class Sessions:
    """All sessions of one guest, the workload's among them: number 0."""

    def __init__(
        self,
        loop: Loop,
        port: int,
        config: GuestConfig,
        place: Enclosure,
        work: Workload,
    ) -> None:
        self._loop, self._config, self._place, self._work = loop, config, place, work
        self._archiver = Archiver()
        self._open: dict[int, Session] = {}
        self._ending = self._cut = False
        self._line = Line(loop, port, self._obey, self._hang_up_all)
        work.taken = Granted(self._line, WORKLOAD).taken
        work.ended = self.end

    @property
    def over(self) -> bool:
        """Whether the workload is, and so are all others, and all was sent or its time is up."""
        return self._cut or (self._ending and not self._open and not self._line.is_full)

    def end(self) -> None:
        """The workload has ended, so they all end."""
        self._ending = True
        self._line.channel.close(WORKLOAD)
        for session in [*self._open.values()]:
            session.kill()
        self._loop.after(_LAST_SECONDS, self._cut_all)

    def _cut_all(self) -> None:
        for session in [*self._open.values()]:
            session.cut(KILLED)
        self._cut = True

    def _hang_up_all(self) -> None:
        """The host's end of the port is gone."""
        for session in [*self._open.values()]:
            session.hang_up()

    def _obey(self, frame: Frame) -> None:
        number = frame.session
        if type(frame) is Open:
            self._begin(number, frame.subject)
        elif number == WORKLOAD:
            _pass_on(self._work, frame)
        elif number in self._open:
            if type(frame) is Credit:
                self._open[number].go_on(frame.stream)
            else:
                _pass_on(self._open[number], frame)

    def _begin(self, number: int, subject: Subject) -> None:
        try:
            self._start(number, subject)
        except OSError as error:
            reason = f"the guest can't start it: {error.strerror}"
            self._line.send(SessionRefused(number, reason))
        except GuestError as error:
            self._line.send(SessionRefused(number, str(error)))

    def _start(self, number: int, subject: Subject) -> None:
        if self._ending:
            raise GuestError("the workload has ended")
        size, stdin = None, type(subject) is Unpack
        if type(subject) is Command:
            size, stdin = subject.terminal, subject.stdin
        program = self._program(subject)
        wires = wired(self._place.terminals, size, stdin)
        try:
            pid = self._place.start(program, wires.theirs)
        except OSError:
            wires.cut()
            raise
        wires.hand_over()
        self._open[number] = Session(
            self._loop, self._line, number, pid, wires, lambda: self._forget(number)
        )

    def _forget(self, number: int) -> None:
        del self._open[number]

    def _program(self, subject: Subject) -> Program:
        match subject:
            case Command(argv, env, folder, user, terminal, _):
                has_terminal = terminal is not None
                environ = environment(self._config, has_terminal, env)
                return Program(argv, environ, folder, user, has_terminal, None)
            case Pack(path):
                return self._archiver.pack(path)
            case Unpack(path):
                return self._archiver.unpack(path)
            case _:
                raise GuestError("the guest starts no session of that kind")


def _pass_on(to: Session | Workload, frame: Frame) -> None:
    match frame:
        case Data(_, _, data):
            to.give(data)
        case End():
            to.end_input()
        case Size(_, terminal):
            to.resize(terminal)
        case Signal(_, number):
            to.signal(number)
        case Hangup():
            to.hang_up()
