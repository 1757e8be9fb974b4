"""The relay without its sockets: bytes in, commands out, in order.

A rogue frame cuts the link for good: nothing behind it in the same read passes.

Outbound, ``room`` is the place for the next bytes of QEMU's stream, and ``outbound`` takes them.
The payloads in its commands are views of that buffer, to be sent before the next call of ``room``.
Messages of one size, and one shorter at their end, are one command: the host's UDP sends them as
segments. Inbound, the endpoint's datagrams come as the host's UDP has coalesced them.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from wgcell.relay import link
from wgcell.relay.classify import classify
from wgcell.relay.framing import LONGEST_FRAME, PREFIX, Stream
from wgcell.relay.runs import Runs
from wgcell.relay.session import Handshake, SessionTable, Side
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire.wireguard import SHORTEST_TRANSPORT, MessageType

__all__ = [
    "Arrived",
    "Command",
    "Cut",
    "Relay",
    "Report",
    "Send",
    "Verified",
    "WriteNic",
]

Bytes = bytes | memoryview

SEGMENTS_MOST = 64
SEGMENTS_BYTES = 65_000
"""Of one send with segments (Linux: UDP_MAX_SEGMENTS, and IPv4's longest datagram)."""


@dataclass(slots=True)
class Send:
    """Send each of ``payloads`` on the connected UDP socket, in order.

    All are as long as the first, but the last, which may be shorter.
    """

    payloads: list[memoryview]


@dataclass(slots=True)
class WriteNic:
    """Write ``buffers``, one after the other, to the NIC's socket."""

    buffers: list[Bytes]


@dataclass(slots=True)
class Arrived:
    """Datagrams that came together. ``whole`` is all of them side by side, each as long as the
    first of ``payloads``; the last may be shorter."""

    whole: Bytes
    payloads: Sequence[Bytes]


@dataclass(frozen=True, slots=True)
class Report:
    """A refusal to report to the supervisor, with the frame."""

    refusal: Refusal
    frame: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the NIC's socket and pull the kill switch; nothing passes any more."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The first handshake that the guest began is complete: transport has passed both ways."""


Command = Send | WriteNic | Report | Cut | Handshake | Verified

_HEAD = struct.Struct("<Q")
"""Type, reserved bytes and the receiver's index of a transport message."""


@lru_cache(maxsize=64)
def _heads(size: int, count: int) -> struct.Struct:
    return struct.Struct(f"{_HEAD.size}s{size - _HEAD.size}x" * count)


def _alike(group: Arrived, size: int) -> int:
    """The number of the first ones of that size; 0 if one begins differently from the first."""
    count = len(group.payloads) - (len(group.payloads[-1]) != size)
    heads = b"".join(_heads(size, count).unpack_from(group.whole))
    return count if heads == heads[: _HEAD.size] * count else 0


@lru_cache(maxsize=2048)
def _header(size: int) -> bytes:
    """The bytes before a payload of that size on its way to QEMU."""
    return (link.HEADERS + size).to_bytes(PREFIX, "big") + link.headers(size)


def _room(size: int) -> int:
    """The most datagrams of that size in one send."""
    return min(SEGMENTS_MOST, SEGMENTS_BYTES // max(size, 1))


class Relay:
    """One link's state. ``refused`` and ``dropped_in`` count refusals by reason.

    ``lenient``: a rogue frame is dropped and counted, and cuts nothing. No cell's relay is that;
    it is for storms of rogue frames at one relay, in `wgcell.prove` and tests.
    """

    def __init__(self, sessions: SessionTable, *, lenient: bool = False) -> None:
        self._sessions = sessions
        self._lenient = lenient
        self._stream = Stream()
        self._runs = Runs(sessions)
        self._verified = False
        self.cut = False
        self.messages_out = 0
        self.messages_in = 0
        self.bytes_out = 0
        self.bytes_in = 0
        self.handshakes = 0
        self.refused: Counter[str] = Counter()
        self.dropped_in: Counter[str] = Counter()

    @property
    def unanswered(self) -> int:
        """The number of the guest's latest initiations without an answer."""
        return self._sessions.unanswered

    def meet(self) -> None:
        """The socket is connected to another address: see `SessionTable.meet`."""
        self._sessions.meet()

    def room(self) -> memoryview:
        """The place for the next bytes of QEMU's stream. Voids all payloads not yet sent."""
        return self._stream.room()

    def outbound(self, received: int, now: float) -> list[Command]:
        """The commands for ``received`` new bytes in ``room``: frames, and a part of one."""
        commands: list[Command] = []
        if self.cut:
            return commands
        stream, runs = self._stream, self._runs
        stream.end += received
        while (length := stream.length()) is not None:
            if not 0 < length <= LONGEST_FRAME:
                return commands + self._lie(length)
            payloads, alike = runs.take(stream, length, now)
            if payloads:
                (self._send_alike if alike else self._send)(commands, payloads)
                continue
            start = stream.at + PREFIX
            frame = stream.view[start : start + length]
            payload = classify(frame)
            refusal = (
                payload if isinstance(payload, Refusal) else self._sessions.outbound(payload, now)
            )
            if refusal is not None:
                commands += self._refuse(refusal, bytes(frame))
                if self.cut:
                    return commands
            elif not isinstance(payload, Refusal):
                self._send(commands, [payload])
                if payload[0] == MessageType.TRANSPORT and not stream.alone(length):
                    runs.learn(stream)
            stream.at += PREFIX + length
        commands += self._progress()
        return commands

    def _send(self, commands: list[Command], payloads: list[memoryview]) -> None:
        """Send ``payloads`` as segments.

        One joins the last send if it is no longer than that send's first payload, and all others of
        that send are as long as the first.
        """
        self.messages_out += len(payloads)
        last = commands[-1] if commands else None
        group = last.payloads if isinstance(last, Send) else []
        first = len(group[0]) if group else 0
        room = _room(first) - len(group) if group and len(group[-1]) == first else 0
        self.bytes_out += sum(map(len, payloads))
        for payload in payloads:
            size = len(payload)
            if room > 0 and size <= first:
                group.append(payload)
                room = room - 1 if size == first else 0
            else:
                group, first, room = [payload], size, _room(size) - 1
                commands.append(Send(group))

    def _send_alike(self, commands: list[Command], payloads: list[memoryview]) -> None:
        """`_send` for payloads of one size."""
        size = len(payloads[0])
        last = commands[-1] if commands else None
        if isinstance(last, Send) and len(last.payloads[0]) == size == len(last.payloads[-1]):
            joining = max(0, _room(size) - len(last.payloads))
            last.payloads += payloads[:joining]
        else:
            joining = 0
        for at in range(joining, len(payloads), _room(size)):
            commands.append(Send(payloads[at : at + _room(size)]))
        self.messages_out += len(payloads)
        self.bytes_out += size * len(payloads)

    def _lie(self, length: int) -> list[Command]:
        """Cut the link, lenient or not: nobody knows where the next frame begins."""
        refusal = Refusal(Reason.STREAM, f"a frame's length of {length}")
        self.refused[refusal.reason.value] += 1
        self.cut = True
        at = self._stream.at
        return [Cut(), Report(refusal, bytes(self._stream.view[at : at + 64]))]

    def _refuse(self, refusal: Refusal, frame: bytes) -> list[Command]:
        self.refused[refusal.reason.value] += 1
        if not refusal.rogue:
            return [Report(refusal, frame)]
        if self._lenient:
            return []
        self.cut = True
        return [Cut(), Report(refusal, frame)]

    def inbound(self, arrived: Iterable[Arrived], now: float) -> list[Command]:
        """The commands for datagrams from the endpoint."""
        if self.cut:
            return []
        buffers: list[Bytes] = []
        live, longest = -1, 0  # what the session has said; nothing inbound ends a session
        for group in arrived:
            payloads = group.payloads
            size = len(payloads[0])
            count = 0
            if size >= SHORTEST_TRANSPORT:
                (head,) = _HEAD.unpack_from(group.whole)
                if head != live or size > longest:
                    live, longest = (head, size) if self._live(head, size, now) else (-1, 0)
                if head == live:
                    count = 1 if len(payloads) == 1 else _alike(group, size)
            if count:
                header = _header(size)
                if count == 1:
                    buffers += (header, payloads[0])
                else:
                    pairs: list[Bytes] = [header] * (2 * count)
                    pairs[1::2] = payloads[:count]
                    buffers += pairs
                self.messages_in += count
                self.bytes_in += count * size
            for payload in payloads[count:]:
                refusal = self._sessions.inbound(payload, now)
                if refusal is None:
                    buffers += (_header(len(payload)), payload)
                    self.messages_in += 1
                    self.bytes_in += len(payload)
                else:
                    self.dropped_in[refusal.reason.value] += 1
        commands: list[Command] = [WriteNic(buffers)] if buffers else []
        commands += self._progress()
        return commands

    def _live(self, head: int, size: int, now: float) -> bool:
        """Whether a datagram that begins with ``head`` is transport of a live session."""
        kind, receiver = head & 0xFFFFFFFF, head >> 32
        return kind == MessageType.TRANSPORT and self._sessions.receives(receiver, size, now)

    def _progress(self) -> list[Command]:
        """The handshakes that the last messages completed, as commands."""
        done: list[Command] = list(self._sessions.handshakes())
        if not done:  # nearly always
            return done
        self.handshakes += len(done)
        if not self._verified and Handshake(Side.GUEST) in done:
            self._verified = True
            done.append(Verified())
        return done
