"""The workload's own streams: who writes its standard input, and who sees what it prints. No I/O.

What it prints is carried by other ports, which the hub only looks at (`Source`). Its standard input
is the guest's session 0, and has one holder at a time: whoever started the cell, or a client that
attached. Bytes of a holder wait here, a window of them at most, until the guest has room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from wgcell.cell.sessions.outbox import Outbox
from wgcell.guest.channel import WORKLOAD
from wgcell.guest.frames import MOST_DATA, STDERR, STDIN, STDOUT, Data, End, Exit

__all__ = ["Attached", "Credited", "Source", "Workload"]

_NAMES = {STDOUT: "stdout", STDERR: "stderr"}
Credited = Callable[[int], None]
"""Called with how many bytes more its holder may write to the standard input."""


class Source(Protocol):
    """What the workload has printed to one stream."""

    @property
    def end(self) -> int:
        """Bytes so far."""

    def read(self, at: int, most: int) -> tuple[int, bytes]:
        """Up to ``most`` bytes from ``at`` on, or from where there are some again; and where."""


@dataclass(slots=True, eq=False)
class Attached:
    """One look at the workload, from the moment on when it began."""

    number: int
    """In its client's channel."""
    box: Outbox
    at: dict[int, int]
    """How far it has seen each stream."""
    credited: Credited | None
    """None: it does not hold the standard input."""

    def show(self, sources: Mapping[int, Source]) -> bool:
        """Put what there is room for into the box; whether all that was printed is there."""
        shown = [self._show(stream, source) for stream, source in sources.items()]
        return all(shown)

    def _show(self, stream: int, source: Source) -> bool:
        at, number = self.at.setdefault(stream, 0), self.number
        while room := self.box.channel.room(number, stream) - self.box.waits(number, stream):
            place, data = source.read(at, min(room, MOST_DATA))
            if place > at:
                # Its reader was so slow that they are nowhere any more.
                lost = f"\n[wgcell: {place - at} bytes of {_NAMES[stream]} were not read in time]\n"
                self.box.put(Data(number, stream, lost.encode()[:room]))
            elif data:
                self.box.put(Data(number, stream, data))
                place += len(data)
            else:
                break
            at = place
        self.at[stream] = at
        return at >= source.end


class Workload:
    """One cell's. ``sources`` by their stream's number; it may be filled later."""

    def __init__(self, guest: Outbox, sources: Mapping[int, Source]) -> None:
        self.sources = sources
        self._guest = guest
        self._holder: Credited | None = None
        self._ended = False

    def hold(self, credited: Credited) -> str:
        """Let the caller write the standard input, a window of it at first; or why not."""
        if self._ended:
            return "the workload's standard input has ended"
        if self._holder is not None:
            return "somebody else holds the workload's standard input"
        self._holder = credited
        return ""

    def let_go(self, credited: Credited) -> None:
        """Its holder is gone: another may come."""
        if credited != self._holder:
            return
        self._holder = None
        if not self._ended:
            # Each holder that came and went would leave a window of them here.
            self._guest.forget_data(WORKLOAD)

    def write(self, credited: Credited, data: bytes) -> None:
        """More for the standard input, of its holder's."""
        if credited == self._holder and not self._ended:
            self._guest.put(Data(WORKLOAD, STDIN, data))

    def end(self, credited: Credited) -> None:
        """The standard input ends here: its holder says so."""
        if credited == self._holder and not self._ended:
            self._ended = True
            self._guest.put(End(WORKLOAD, STDIN))

    def passed(self, count: int) -> None:
        """So many bytes of the standard input have left for the guest."""
        if self._holder is not None and count:
            self._holder(count)

    def attach(self, number: int, box: Outbox, credited: Credited | None) -> Attached | str:
        """A look for a client's session ``number``, which holds the standard input if it is
        ``credited``; or why not."""
        if credited is not None and (why := self.hold(credited)):
            return why
        at = {stream: source.end for stream, source in self.sources.items()}
        return Attached(number, box, at, credited)

    def detach(self, attached: Attached, code: int) -> None:
        """The look is over, for its client too."""
        if attached.credited is not None:
            self.let_go(attached.credited)
        attached.box.put(Exit(attached.number, code))
