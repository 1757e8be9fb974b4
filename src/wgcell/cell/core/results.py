"""The results of a workload, and whether all of them have arrived.

The guest states how many bytes it wrote to each stream; the host counts the bytes that its reader
has taken. `Results.short` and `Results.tar_verdict` say whether something is missing for good.
`Results.late` says when the guest takes too long: bytes must keep coming, and keep up an average.
Time in which only the host's own reader is waited for does not count.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from wgcell.cell import outputs
from wgcell.cell.archive import Unpacked
from wgcell.cell.core.events import Looked, StreamFacts
from wgcell.cell.states import Cause
from wgcell.guest import protocol

__all__ = ["LAST_BYTES", "MOST_IN_FLIGHT", "STOPPED", "Account", "Results", "how_it_exited"]

STOPPED = 5.0
"""Seconds between two looks, a second apart, from which on the host or the supervisor was
stopped."""

STALL = 60.0
"""Seconds without a byte of those that the guest owes, after which the results are lost."""

LEAST_RATE = 256 * 1024
START = 300.0
"""Bytes a second that results must arrive with, on average, after so many seconds: a guest can't
keep a cell alive for good by sending a byte a minute."""

LAST_BYTES = 3.0
"""Seconds for the bytes on their way to the reader when a cell ends that did not complete."""

MOST_IN_FLIGHT = 64 << 20
"""Bytes of a stream that may still be on their way when its workload is dead, and more: a port's
queue has 128 places of 32 KiB, and there are pipes and sockets before and behind it."""


@dataclass(slots=True)
class Account:
    """One stream: its progress, and the bytes that the guest says it owes."""

    facts: StreamFacts
    stated: int | None = None
    """Bytes of the stream, by the guest's statement, once the workload has ended."""
    given_up: bool = False
    closed: bool = False
    """The guest knows that nobody reads this stream."""

    @property
    def ended(self) -> bool:
        """Whether no more bytes are delivered."""
        return self.given_up or self.facts.ended

    @property
    def arrived(self) -> bool:
        """Whether no byte of it has to be waited for any more."""
        if self.given_up or self.facts.reader_gone or self.facts.failure is not None:
            return self.stated is not None or self.ended
        return self.stated is not None and self.facts.delivered == self.stated

    @property
    def owed(self) -> int:
        """Bytes that the guest says there are and that have not been delivered; below 0: too many.

        0 for a stream that nobody reads.
        """
        if self.arrived or self.stated is None:
            return 0
        return self.stated - self.facts.delivered

    def stands_still(self, now: float, patience: float) -> bool:
        """Whether its reader, not given up yet, has taken nothing for more than ``patience`` s."""
        waits = self.facts.waits_for_reader and not self.given_up
        return waits and now - self.facts.moved > patience


@dataclass(slots=True)
class Results:
    """The results of a workload with these ``asked`` outputs and a scratch ``disk`` (bytes)."""

    asked: tuple[str, ...]
    disk: int
    streams: dict[str, Account] = field(
        default_factory=lambda: {name: Account(StreamFacts(name)) for name in protocol.STREAMS}
    )
    sent: protocol.Outputs | None = None
    """The guest's statement about the tar of the outputs."""
    unpacked: Unpacked | None = None
    settled: bool = False
    """All results have arrived, or a part is lost: reported once."""
    _tar_received: int = 0
    _tar_moved: float = 0.0
    _since: float = 0.0
    """When the workload ended."""
    _stopped_at: float = 0.0
    """When the host or the supervisor was last stopped: no byte could have come until then."""
    _came_before: int = 0
    """Bytes that had come before the workload's end: they buy no time after it."""
    _reader_waited: float = 0.0
    """Seconds, since then, in which only the host's own reader was waited for."""

    def look(self, looked: Looked) -> None:
        """Note the progress of everything."""
        for facts in looked.streams:
            self.streams[facts.name].facts = facts
        self._tar_received, self._tar_moved = looked.outputs_received, looked.outputs_moved

    @property
    def delivered(self) -> int:
        """Bytes of both streams that their readers have taken."""
        return sum(account.facts.delivered for account in self.streams.values())

    @property
    def reader_waited_for(self) -> bool:
        """Whether the next bytes wait for a reader of the host's that was not given up."""
        streams = self.streams.values()
        return any(one.facts.waits_for_reader and not one.given_up for one in streams)

    @property
    def arrived(self) -> bool:
        """Whether both streams have arrived."""
        return all(account.arrived for account in self.streams.values())

    def began(self, now: float) -> None:
        """The workload has ended: from now on bytes are owed."""
        self._since = self._stopped_at = now
        self._came_before = self._received

    def state(self, exited: protocol.Exited) -> str | None:
        """Note the stated number of bytes; the stream whose number is impossible, or None."""
        stated = {"stdout": exited.stdout, "stderr": exited.stderr}
        for name, count in stated.items():
            if count - self.streams[name].facts.delivered > MOST_IN_FLIGHT:
                return name
        for name, count in stated.items():
            self.streams[name].stated = count
        return None

    def short(self) -> str | None:
        """The part of a stream that is missing for good, in a sentence; None if none is."""
        for account in self.streams.values():
            owed = account.owed
            if owed < 0 or (owed > 0 and account.ended):
                return (
                    f"{account.facts.delivered} of the {account.stated} bytes came that the "
                    f"workload wrote to {account.facts.name}"
                )
        return None

    def tar_verdict(self) -> tuple[Cause, str] | None:
        """The cause that the outputs are, with its reason; None while they are on their way."""
        if not self.asked:
            return Cause.RESULTS_ARRIVED, ""
        if self.unpacked is None or self.sent is None:
            return None
        if self.sent.status:
            status = f"tar's exit code {self.sent.status}"
            return Cause.RESULTS_MISSING, f"the guest could not read all of the outputs ({status})"
        missing = outputs.verdict(self.unpacked, self.asked)
        return (Cause.RESULTS_MISSING, missing) if missing else (Cause.RESULTS_ARRIVED, "")

    def late(self, now: float, passed: float) -> str | None:
        """Why the results are lost, ``passed`` seconds after the last look; None while they come.

        A reader that is waited for takes its time, and the guest's clock stands still meanwhile.
        """
        if passed > STOPPED:
            self._stopped_at = now
            self._reader_waited += passed
            return None
        if self.reader_waited_for:
            self._reader_waited += passed
            return None
        moved = [one.facts.moved for one in self.streams.values() if not one.arrived]
        if self.asked and self.unpacked is None:
            moved.append(self._tar_moved)
        silent = now - max([*moved, self._stopped_at])
        # More than a disk holds, twice over, buys no time.
        received = min(self._received - self._came_before, 2 * self.disk)
        took = now - self._since - self._reader_waited
        if silent > STALL:
            return f"the guest sent nothing of its results for {silent:.0f} s"
        if took > START + received / LEAST_RATE:
            return f"the results had not arrived after {took:.0f} s"
        return None

    @property
    def _received(self) -> int:
        return self.delivered + self._tar_received


def how_it_exited(code: int, oom: protocol.OutOfMemory | None, memory: int) -> str:
    """The workload's end in words.

    A kill by the out-of-memory killer of a guest with ``memory`` bytes is named as such.
    """
    if code == 128 + signal.SIGKILL and oom is not None:
        return (
            f"the guest's memory ({memory >> 20} MiB) was used up, and its kernel "
            f"killed {oom.victim or 'the workload'}; --memory gives it more"
        )
    return f"the workload exited with {code}"
