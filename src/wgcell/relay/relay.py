"""The relay without its sockets: bytes in, commands out, in order.

A rogue frame cuts the link for good: of what stands behind it in the same read, nothing passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from wgcell.relay.classify import classify
from wgcell.relay.framing import Framer, prefixed
from wgcell.relay.link import wrap
from wgcell.relay.session import Handshake, SessionTable, Side
from wgcell.relay.verdict import Refusal

__all__ = ["Command", "Cut", "Phase", "Relay", "Report", "SendDatagram", "Verified", "WriteNic"]


class Phase(Enum):
    """Where the cell is; only in ``stopping`` a rogue frame is dropped and no more."""

    BOOTING = "booting"
    VERIFYING = "verifying"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send ``payload`` on the connected UDP socket."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class WriteNic:
    """Write ``data`` to the NIC's socket."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """A refusal that the supervisor must hear of, with the frame."""

    refusal: Refusal
    frame: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the NIC's socket; nothing passes any more."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The first handshake of the guest's asking is complete: transport has passed both ways."""


Command = SendDatagram | WriteNic | Report | Cut | Handshake | Verified


class Relay:
    """One link's state. ``refused`` and ``dropped_in`` count refusals by reason."""

    def __init__(self, sessions: SessionTable) -> None:
        self._sessions = sessions
        self._framer = Framer()
        self._verified = False
        self.phase = Phase.BOOTING
        self.cut = False
        self.messages_out = 0
        self.messages_in = 0
        self.bytes_out = 0
        self.bytes_in = 0
        self.handshakes = 0
        self.refused: Counter[str] = Counter()
        self.dropped_in: Counter[str] = Counter()

    def outbound(self, data: bytes, now: float) -> list[Command]:
        """Bytes of QEMU's stream, any number of frames or a part of one."""
        commands: list[Command] = []
        if self.cut:
            return commands
        frames, lie = self._framer.feed(data)
        for frame in frames:
            payload = classify(frame)
            if isinstance(payload, Refusal):
                refusal: Refusal | None = payload
            else:
                refusal = self._sessions.outbound(payload, now)
                if refusal is None:
                    self.messages_out += 1
                    self.bytes_out += len(payload)
                    commands.append(SendDatagram(payload))
                    commands += self._progress()
                    continue
            commands += self._refuse(refusal, frame)
            if self.cut:
                return commands
        if lie is not None:
            # The stream can't be followed any further, whatever the phase.
            self.refused[lie.reason.value] += 1
            self.cut = True
            commands += [Report(lie, data[:64]), Cut()]
        return commands

    def _refuse(self, refusal: Refusal | None, frame: bytes) -> list[Command]:
        if refusal is None:
            return []
        self.refused[refusal.reason.value] += 1
        if not refusal.rogue or self.phase is Phase.STOPPING:
            return [Report(refusal, frame)] if not refusal.rogue else []
        self.cut = True
        return [Report(refusal, frame), Cut()]

    def inbound(self, datagrams: Iterable[bytes], now: float) -> list[Command]:
        """Datagrams of the endpoint's."""
        commands: list[Command] = []
        for datagram in datagrams:
            if self.cut:
                break
            refusal = self._sessions.inbound(datagram, now)
            if refusal is not None:
                self.dropped_in[refusal.reason.value] += 1
                continue
            self.messages_in += 1
            self.bytes_in += len(datagram)
            commands.append(WriteNic(prefixed(wrap(datagram))))
            commands += self._progress()
        return commands

    def _progress(self) -> list[Command]:
        """What the last message completed."""
        done: list[Command] = list(self._sessions.handshakes())
        self.handshakes += len(done)
        if not self._verified and Handshake(Side.GUEST) in done:
            self._verified = True
            done.append(Verified())
        return done
