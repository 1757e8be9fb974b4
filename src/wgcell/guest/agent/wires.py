"""The streams of a program: its own ends, and the agent's."""

from __future__ import annotations

import os
from dataclasses import dataclass

from wgcell.guest.agent import terminals
from wgcell.guest.agent.streams import Feed

__all__ = ["Wires", "wired"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.guest.agent.loop import Loop
    from wgcell.guest.frames import Terminal


@dataclass(frozen=True, slots=True)
class Wires:
    """Descriptors. ``theirs``: standard input, output and error, to be closed once it has them.

    ``stdin`` is written by the agent, if anything is to come; ``stdout`` and ``stderr`` are read,
    and stderr is None with a terminal, whose master is both ``stdout`` and ``stdin``.
    """

    theirs: tuple[int, int, int]
    stdin: int | None
    stdout: int
    stderr: int | None
    is_terminal: bool

    def feed(self, loop: Loop, taken: Callable[[int], None]) -> Feed | None:
        """What writes standard input. A terminal's has no end but the character that says so."""
        target = self.stdin
        if target is None:
            return None
        last = (lambda: terminals.end_of_input(target)) if self.is_terminal else bytes
        return Feed(loop, target, taken, last)

    def hand_over(self) -> None:
        """The program has its own ends."""
        for descriptor in {*self.theirs}:
            os.close(descriptor)

    def cut(self) -> None:
        """Close all: there is no program."""
        self.hand_over()
        for descriptor in (self.stdin, self.stdout, self.stderr):
            if descriptor is not None:
                os.close(descriptor)


def wired(devpts: int, size: Terminal | None, stdin: bool) -> Wires:
    """New ones; with a ``size``, a terminal. Without ``stdin``, /dev/null. Raises OSError."""
    made: list[int] = []
    try:
        return _pipes(made, stdin) if size is None else _terminal(made, devpts, size, stdin)
    except OSError:
        for descriptor in made:
            os.close(descriptor)
        raise


def _pipes(made: list[int], stdin: bool) -> Wires:
    given, feed = (_pipe(made)) if stdin else (_null(made), None)
    out, to_out = _pipe(made)
    errors, to_errors = _pipe(made)
    return Wires((given, to_out, to_errors), feed, out, errors, False)


def _terminal(made: list[int], devpts: int, size: Terminal, stdin: bool) -> Wires:
    master, terminal = terminals.opened(devpts, size)
    made += [master, terminal]
    given, feed = (terminal, os.dup(master)) if stdin else (_null(made), None)
    return Wires((given, terminal, terminal), feed, master, None, True)


def _pipe(made: list[int]) -> tuple[int, int]:
    pair = os.pipe()
    made += pair
    return pair


def _null(made: list[int]) -> int:
    made.append(os.open("/dev/null", os.O_RDWR))
    return made[-1]
