"""The requester's command: where it runs, its streams to the host, its end. It is session 0."""

from __future__ import annotations

import os

from wgcell.guest import protocol
from wgcell.guest.agent import terminals
from wgcell.guest.agent.enclosure import Confined, Unconfined
from wgcell.guest.agent.execution import PATH, Program
from wgcell.guest.agent.process import Process
from wgcell.guest.agent.streams import Stream
from wgcell.guest.agent.wires import wired
from wgcell.guest.walls import Wall

__all__ = ["Workload", "enclosure", "environment"]

_SIGHUP, _SIGINT, _SIGKILL, _SIGTERM = 1, 2, 9, 15
_KILLED = 128 + _SIGKILL
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wgcell.guest.agent.enclosure import Enclosure, Inside
    from wgcell.guest.agent.loop import Loop
    from wgcell.guest.agent.wires import Wires
    from wgcell.guest.config import GuestConfig
    from wgcell.guest.frames import Terminal
    from wgcell.guest.protocol import Order


def enclosure(walls: frozenset[Wall], root: str, inside: Inside) -> Enclosure:
    """Where all programs run. Raises GuestError or OSError if that can't be made."""
    return (Confined if Wall.PRIVILEGES in walls else Unconfined)(root, inside)


def environment(
    config: GuestConfig, terminal: bool, more: tuple[tuple[str, str], ...] = ()
) -> Mapping[str, str]:
    """A program's environment, but for HOME."""
    term = {"TERM": "xterm"} if terminal else {}
    return {"PATH": PATH, "LANG": "C.UTF-8", **term, **dict(config.environment), **dict(more)}


class Workload:
    """The command of a configuration; without one, nothing but what holds the others together.

    ``ports``: descriptors of the ports for its two streams.
    """

    def __init__(
        self,
        loop: Loop,
        config: GuestConfig,
        place: Enclosure,
        ports: Mapping[str, int],
    ) -> None:
        self.exit_code: int | None = None
        self.taken: Callable[[int], None] = lambda size: None
        """Called with how many bytes of its standard input have gone in."""
        self.ended: Callable[[], None] = lambda: None
        """Called once, when it has ended and all that was in its namespaces with it."""
        self._is_over = False
        self._init = self._process = None
        wires = wired(place.terminals, config.terminal, config.stdin)
        # A master of its own: a program that closes its terminal is not hung up for that.
        self._terminal = os.dup(wires.stdout) if wires.is_terminal else None
        if config.command:
            env = environment(config, wires.is_terminal)
            program = Program(config.command, env, "", "", wires.is_terminal, None)
            pid = place.start(program, wires.theirs)
            self._process = Process(loop, pid, self._command_ended)
        if place.init is not None:
            self._init = Process(loop, place.init, self._init_ended)
        wires.hand_over()
        self._carry(loop, wires, ports)

    def _carry(self, loop: Loop, wires: Wires, ports: Mapping[str, int]) -> None:
        self._feed = wires.feed(loop, lambda size: self.taken(size))
        sources = {"stdout": wires.stdout, "stderr": wires.stderr}
        self.streams = {
            name: Stream(loop, _nothing() if source is None else source, ports[name])
            for name, source in sources.items()
        }

    @property
    def carried(self) -> bool:
        """Whether it has ended, and all that it wrote has gone to the host."""
        return self._is_over and all(stream.ended for stream in self.streams.values())

    def _close(self, stream: str) -> None:
        """Nobody reads that stream any more."""
        if self._terminal is not None and stream == "stdout":
            # A terminal that nobody looks at is hung up. The signal first: a program that reads
            # from the terminal would see an error before it.
            self.hang_up()
            os.close(self._terminal)
            self._terminal = None
        self.streams[stream].close()

    def exited(self) -> protocol.Exited:
        """What the host is told, once it has ended."""
        counts = [self.streams[name].count for name in protocol.STREAMS]
        return protocol.Exited(self.exit_code or 0, *counts)

    def give(self, data: bytes) -> None:
        """Standard input. Dropped, and no credit given for it, where it has none."""
        if self._feed is not None:
            self._feed.give(data)

    def end_input(self) -> None:
        """No more of it."""
        if self._feed is not None:
            self._feed.end()

    def hang_up(self) -> None:
        """Nobody writes its standard input any more."""
        if self._process is not None:
            self._process.signal(_SIGHUP)
        if self._feed is not None:
            self._feed.close()

    def resize(self, size: Terminal) -> None:
        """Its terminal, if it has one, has another size."""
        if self._terminal is not None:
            terminals.resize(self._terminal, size)

    def signal(self, number: int) -> None:
        """To its process group. Without a command, an order to end is obeyed by the agent."""
        if self._process is not None:
            self._process.signal(number)
        elif number in (_SIGINT, _SIGTERM):
            self._end(0)
        elif number == _SIGKILL:
            self._end(_KILLED)

    def obey(self, order: Order) -> None:
        """An order of the host's that is for it."""
        match order:
            case protocol.Terminate():
                self.signal(_SIGTERM)
            case protocol.Kill() if self._init is not None:
                self._init.kill()
            case protocol.Kill():
                self.signal(_SIGKILL)
            case protocol.Closed(stream):
                self._close(stream)

    def _command_ended(self, code: int) -> None:
        self._end(code)

    def _end(self, code: int) -> None:
        """This is its exit code; what is left in its namespaces has to end with it."""
        if self.exit_code is not None:
            return
        self.exit_code = code
        if self._feed is not None:
            self._feed.close()
        if self._init is None:
            self._be_over()
        else:
            self._init.kill()

    def _init_ended(self, code: int) -> None:
        # Linux lets init end when all others are gone and the agent has waited for its own.
        if self.exit_code is None:
            self.exit_code = code
        self._be_over()

    def _be_over(self) -> None:
        self._is_over = True
        self.ended()


def _nothing() -> int:
    """A pipe that is at its end."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading
