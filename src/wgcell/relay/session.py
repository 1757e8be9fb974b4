"""Keyless session tracking: WireGuard in step, seen from outside.

The relay holds no private key, so it can neither read nor forge. What it can demand is that each
message is WireGuard and follows from the messages before it: a response answers an initiation
that has passed, a transport message carries an index that the other side announced in a handshake
that was completed, a counter moves as counters do, and a session dies of age. mac1 needs only the
receiver's *public* key.

Outbound (the guest's) a refusal may be rogue. Inbound nothing is ever rogue: anyone who can send
a packet could kill a cell with it. It is dropped and counted.

Time is an argument, in seconds of CLOCK_BOOTTIME: a suspended host ages its sessions too.
"""

from __future__ import annotations

import hmac
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import wireguard
from wgcell.wire.wireguard import CookieReply, Initiation, Response, Transport

__all__ = ["Handshake", "SessionTable", "Side"]

COOKIE_LIFETIME = 120.0
"""Seconds a cookie reply explains a mac2 (paper, section 5.4.7)."""

MARGIN = 10.0
"""Seconds beyond REJECT_AFTER_TIME: the two ends' clocks start at different messages."""

INITIATION_BURST = 2
INITIATIONS_KEPT = 4
SESSIONS_KEPT = 3
"""Previous, current and next."""

LINK_MTU = 1500 - 28
"""Bytes of UDP payload that fit the link's one frame."""

WINDOW = 8192
"""Counters behind the highest that may still come (Linux: COUNTER_BITS_TOTAL)."""
ABSURD_JUMP = 1 << 32
"""No link of ours loses that many messages in one session's life."""

OUT_OF_STEP_MOST = 200
OUT_OF_STEP_SPAN = 10.0
"""More than so many out-of-step messages of the guest's in so many seconds are rogue."""


class Side(Enum):
    """Who sends."""

    GUEST = "guest"
    ENDPOINT = "endpoint"

    @property
    def other(self) -> Side:
        """Who receives."""
        return Side.ENDPOINT if self is Side.GUEST else Side.GUEST


@dataclass(frozen=True, slots=True)
class Handshake:
    """A handshake was completed."""

    initiator: Side


@dataclass(slots=True)
class _Counters:
    """One direction's counters: the highest, and a bitmap of the window below it."""

    highest: int = -1
    seen: int = 0

    def refuse(self, counter: int) -> Refusal | None:
        if counter > self.highest + ABSURD_JUMP:
            return Refusal(Reason.COUNTER_ABSURD, f"{counter} after {self.highest}")
        behind = self.highest - counter
        if behind >= WINDOW:
            return Refusal(Reason.COUNTER_OLD, f"{counter} after {self.highest}")
        if behind >= 0 and self.seen >> behind & 1:
            return Refusal(Reason.COUNTER_REPEATED, str(counter))
        return None

    def note(self, counter: int) -> None:
        ahead = counter - self.highest
        if ahead > 0:
            kept = self.seen << ahead if ahead < WINDOW else 0
            self.seen = (kept | 1) & ((1 << WINDOW) - 1)
            self.highest = counter
        else:
            self.seen |= 1 << -ahead


@dataclass(slots=True)
class _Session:
    """A completed handshake: each side's index, and the counters of what each side sends."""

    initiator: Side
    index: dict[Side, int]
    born: float
    counters: dict[Side, _Counters] = field(
        default_factory=lambda: {side: _Counters() for side in Side}
    )


@dataclass(slots=True)
class _Initiations:
    """One side's initiations that no response has answered: sender index -> when it passed."""

    outstanding: dict[int, float] = field(default_factory=dict)
    passed: deque[float] = field(default_factory=lambda: deque(maxlen=INITIATION_BURST))

    def note(self, index: int, now: float) -> None:
        self.outstanding.pop(index, None)
        self.outstanding[index] = now
        while len(self.outstanding) > INITIATIONS_KEPT:
            del self.outstanding[next(iter(self.outstanding))]


class SessionTable:
    """Every session between one guest and one endpoint.

    ``mtu`` is wg0's: a full-size packet is not padded, so its length need not be a multiple of 16.
    """

    def __init__(self, guest_public_key: bytes, endpoint_public_key: bytes, mtu: int) -> None:
        self._public = {Side.GUEST: guest_public_key, Side.ENDPOINT: endpoint_public_key}
        self._fullest = mtu + wireguard.SHORTEST_TRANSPORT
        self._initiations = {side: _Initiations() for side in Side}
        self._sessions: list[_Session] = []
        self._cookie: dict[Side, float] = {}
        self._stumbles: deque[float] = deque(maxlen=OUT_OF_STEP_MOST + 1)
        self._answered = False
        self._completed: list[Handshake] = []
        self.valid = dict.fromkeys(Side, 0)
        """Transport messages accepted in sessions the guest initiated, by sender."""

    def handshakes(self) -> list[Handshake]:
        """The handshakes completed since this was last asked."""
        done, self._completed = self._completed, []
        return done

    def outbound(self, message: bytes, now: float) -> Refusal | None:
        """A message of the guest's: None if it may pass."""
        refusal = self._check(Side.GUEST, message, now)
        if refusal is None or refusal.rogue:
            return refusal
        self._stumbles.append(now)
        many = len(self._stumbles) > OUT_OF_STEP_MOST
        if many and now - self._stumbles[0] < OUT_OF_STEP_SPAN:
            detail = f"more than {OUT_OF_STEP_MOST} in {OUT_OF_STEP_SPAN:.0f} s, "
            return Refusal(Reason.RATE, f"{detail}the last: {refusal.reason.value}")
        return refusal

    def inbound(self, message: bytes, now: float) -> Refusal | None:
        """A datagram of the endpoint's: None if it may pass. Whoever asks only ever drops it."""
        return self._check(Side.ENDPOINT, message, now)

    def _check(self, sender: Side, message: bytes, now: float) -> Refusal | None:
        try:
            parsed = wireguard.parse(message)
        except wireguard.MalformedMessageError as error:
            return Refusal(Reason.NOT_WIREGUARD, str(error))
        match parsed:
            case Transport():
                return self._transport(sender, parsed, now)
            case Initiation():
                return self._initiation(sender, parsed, now)
            case Response():
                return self._response(sender, parsed, now)
            case CookieReply():
                return self._cookie_reply(sender, parsed, now)

    def _macs(self, sender: Side, message: Initiation | Response, now: float) -> Refusal | None:
        right = wireguard.mac1(self._public[sender.other], message.covered)
        if not hmac.compare_digest(right, message.mac1):
            return Refusal(Reason.MAC1, "not under its receiver's public key")
        if message.mac2 != wireguard.NO_MAC:
            given = self._cookie.get(sender)
            if given is None or now - given > COOKIE_LIFETIME:
                return Refusal(Reason.MAC2, "no cookie reply explains it")
        return None

    def _initiation(self, sender: Side, message: Initiation, now: float) -> Refusal | None:
        refusal = self._macs(sender, message, now)
        if refusal is not None:
            return refusal
        initiations = self._initiations[sender]
        # Until the endpoint has answered once, a cell must not be able to flood whoever it is.
        passed = initiations.passed
        held = sender is Side.GUEST and not self._answered and len(passed) == INITIATION_BURST
        # Two at once, then one per REKEY_TIMEOUT; a tenth is left for the guest's jitter.
        if held and now - passed[-1] < wireguard.REKEY_TIMEOUT * 0.9:
            return Refusal(Reason.INITIATION_RATE, "before the endpoint has answered")
        passed.append(now)
        initiations.note(message.sender, now)
        return None

    def _response(self, sender: Side, message: Response, now: float) -> Refusal | None:
        refusal = self._macs(sender, message, now)
        if refusal is not None:
            return refusal
        initiator = sender.other
        outstanding = self._initiations[initiator].outstanding
        if message.receiver not in outstanding:
            return Refusal(Reason.UNSOLICITED, "a response that answers no initiation")
        # An initiator takes the first response to its latest initiation; earlier ones are void.
        for index in list(outstanding):
            del outstanding[index]
            if index == message.receiver:
                break
        indices = {sender: message.sender, initiator: message.receiver}
        self._sessions.append(_Session(initiator, indices, now))
        del self._sessions[:-SESSIONS_KEPT]
        if sender is Side.ENDPOINT:
            self._answered = True
        self._completed.append(Handshake(initiator))
        return None

    def _cookie_reply(self, sender: Side, message: CookieReply, now: float) -> Refusal | None:
        awaiting = self._initiations[sender.other].outstanding
        announced = any(s.index[sender.other] == message.receiver for s in self._sessions)
        if message.receiver not in awaiting and not announced:
            return Refusal(Reason.UNSOLICITED, "a cookie reply to no message")
        self._cookie[sender.other] = now
        return None

    def _transport(self, sender: Side, message: Transport, now: float) -> Refusal | None:
        if message.length > (self._fullest if sender is Side.GUEST else LINK_MTU):
            return Refusal(Reason.TRANSPORT_LENGTH, f"{message.length} bytes, over the MTU")
        # The guest's WireGuard is Linux's, which pads; boringtun, as an endpoint, does not.
        padded = message.length % 16 == 0 or message.length == self._fullest
        if sender is Side.GUEST and not padded:
            return Refusal(Reason.TRANSPORT_LENGTH, f"{message.length} bytes are not padded")
        if not self._sessions:
            return Refusal(Reason.BEFORE_HANDSHAKE, "no handshake was completed yet")
        session = next(
            (s for s in reversed(self._sessions) if s.index[sender.other] == message.receiver), None
        )
        if session is None:
            return Refusal(Reason.UNKNOWN_INDEX, f"0x{message.receiver:08x}")
        age = now - session.born
        if age > wireguard.REJECT_AFTER_TIME + MARGIN:
            return Refusal(Reason.SESSION_DEAD, f"{age:.0f} s old")
        counters = session.counters[sender]
        refusal = counters.refuse(message.counter)
        if refusal is not None:
            return refusal
        counters.note(message.counter)
        if session.initiator is Side.GUEST:
            self.valid[sender] += 1
        return None
