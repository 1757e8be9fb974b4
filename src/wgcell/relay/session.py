"""Keyless session tracking: WireGuard in step, seen from outside.

The relay holds no private key, so it can neither read nor forge. What it can demand is that each
message is WireGuard and follows from the messages before it. But whoever is on the path, and knows
a public key, can forge a handshake message or a transport header as well as the endpoint can: a
valid mac1 authenticates nobody. So **nothing inbound ever replaces anything**. It adds something
the guest may choose, up to a bound; what the *guest* then sends is the choice, for its kernel holds
the keys and has authenticated what it acts on.

::

    initiation, guest's      asked     its index, and below it every response that claims to answer
    response, endpoint's               it: *candidates*. The guest's first transport under one of
                                       them makes it a session, and forgets its rivals.
    initiation, endpoint's   heard     its index, for the guest to answer.
    response, guest's        offered   the two indices. Transport of the endpoint's confirms the
                                       offer; the guest's first transport then makes it a session.
    transport, guest's       sessions  previous, current and next: the third oldest is forgotten.

A WireGuard responder sends no transport before it has received some under the new session (paper,
section 5.4.3; Linux, wireguard-go and boringtun all keep to it), so the relay lets none pass.
A handshake is *complete* when transport has passed both ways under it.

What stands in ``asked`` and ``offered`` is bounded by what the guest sends; inbound messages are
let through only as fast as they can be remembered for as long as an honest guest may need to answer
them. So a flood costs an honest guest handshakes at worst, never a live session nor its good name.

Outbound (the guest's) a refusal may be rogue. Inbound nothing is ever rogue: anyone who can send
a packet could kill a cell with it. It is dropped and counted.

Only the guest's counters are followed: a window that an unauthenticated message moves is a lever
to shut out the true ones behind it. The guest's kernel keeps the window of what it receives.

When the way out leads to another address, the one who is there is a stranger, though he has
consented: `SessionTable.meet` forgets every session, and until a handshake of the guest's own is
complete with him, nothing but its initiations (and the transport that completes one) leaves.

Time is an argument, in seconds of CLOCK_BOOTTIME: a suspended host ages its sessions too.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from wgcell.net.bucket import TokenBucket
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import wireguard
from wgcell.wire.wireguard import CookieReply, Initiation, MessageType, Response, Transport

__all__ = ["Handshake", "SessionTable", "Side"]

COOKIE_LIFETIME = 120.0
"""Seconds a cookie reply explains a mac2 (paper, section 5.4.7)."""

SESSION_LIFETIME = wireguard.REJECT_AFTER_TIME + 10.0
"""Seconds; the two ends' clocks start at different messages."""

INITIATION_BURST = 2.0
INITIATION_RATE = 1 / (wireguard.REKEY_TIMEOUT * 0.9)
"""The guest's initiations: so many at once, then so many a second, always. A WireGuard sends one
per REKEY_TIMEOUT (paper, section 6.4); a tenth is left for the guest's jitter."""
ASKED_KEPT = 4
"""The guest's initiations; Linux remembers its latest only."""
CANDIDATES_KEPT = 64
"""Responses to one initiation; the first to come are kept, and no more let through."""
OFFERED_KEPT = 8
HEARD_KEPT = 256
FLOOD_BURST = 64
FLOOD_RATE = 16.0
"""Initiations, and cookie replies, of the endpoint's a second: one is remembered for at least
(HEARD_KEPT - FLOOD_BURST) / FLOOD_RATE = 12 s. Linux is "under load" from 512 queued on."""
SESSIONS_KEPT = 3
"""Previous, current and next."""
LEFT_KEPT = 1024
"""Indices of endpoints that were left; a meeting leaves 267 at most, and they come 30 s apart."""

LINK_MTU = 1500 - 28
"""Bytes of UDP payload that fit the link's one frame."""

WINDOW = 8192
"""Counters behind the highest that may still come (Linux: COUNTER_BITS_TOTAL)."""
ABSURD_JUMP = 1 << 32
"""No link of ours loses that many messages in one session's life."""

OUT_OF_STEP_MOST = 200
OUT_OF_STEP_SPAN = 10.0
"""More than so many out-of-step messages of the guest's in so many seconds are rogue."""
UNCOUNTED = frozenset({Reason.SESSION_DEAD, Reason.PEER_LEFT})
"""But not these: behind a suspended host's clock a guest fills a dead session at full speed, and
for up to 180 s one with an endpoint that has moved, which it can't know."""


class Side(Enum):
    """Who sends."""

    GUEST = "guest"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class Handshake:
    """A handshake was completed: transport has passed both ways under it."""

    initiator: Side


@dataclass(slots=True)
class _Counters:
    """The highest counter, and a bitmap of the window below it.

    ``fresh`` are the topmost in unbroken order, not yet in the bitmap: the usual case is a sum.
    """

    highest: int = -1
    seen: int = 0
    fresh: int = 0

    def refuse(self, counter: int) -> Refusal | None:
        if counter == self.highest + 1:
            return None
        if counter > self.highest + ABSURD_JUMP:
            return Refusal(Reason.COUNTER_ABSURD, f"{counter} after {self.highest}")
        behind = self.highest - counter
        if behind >= WINDOW:
            return Refusal(Reason.COUNTER_OLD, f"{counter} after {self.highest}")
        self._settle()
        if behind >= 0 and self.seen >> behind & 1:
            return Refusal(Reason.COUNTER_REPEATED, str(counter))
        return None

    def note(self, counter: int, count: int = 1) -> None:
        """``count`` counters from ``counter`` on, none of them refused."""
        ahead = counter - self.highest
        if ahead == 1:
            self.highest += count
            self.fresh += count
            return
        self._settle()
        if ahead > 0:
            self._shift(ahead, 1)
            self.highest = counter
        else:
            self.seen |= 1 << -ahead

    def _settle(self) -> None:
        if self.fresh:
            self._shift(self.fresh, (1 << min(self.fresh, WINDOW)) - 1)
            self.fresh = 0

    def _shift(self, by: int, new: int) -> None:
        kept = self.seen << by if by < WINDOW else 0
        self.seen = (kept | new) & ((1 << WINDOW) - 1)


@dataclass(slots=True)
class _Session:
    """A handshake the guest has sent transport under. ``guest`` and ``endpoint`` are indices."""

    initiator: Side
    guest: int
    endpoint: int
    born: float
    complete: bool
    counters: _Counters = field(default_factory=_Counters)

    def dead(self, now: float) -> bool:
        return now - self.born > SESSION_LIFETIME

    def refuse(self, counter: int, now: float) -> Refusal | None:
        """Transport of the guest's under this session."""
        if self.dead(now):
            return Refusal(Reason.SESSION_DEAD, f"{now - self.born:.0f} s old")
        return self.counters.refuse(counter)


@dataclass(slots=True)
class _Offer:
    """The guest's answer to an initiation of the endpoint's."""

    endpoint: int
    born: float
    confirmed: bool = False


class SessionTable:
    """Every session between one guest and one endpoint. ``mtu`` is wg0's, in bytes."""

    def __init__(self, guest_public_key: bytes, endpoint_public_key: bytes, mtu: int) -> None:
        self._receiver_key = {Side.GUEST: endpoint_public_key, Side.ENDPOINT: guest_public_key}
        self._fullest = mtu + wireguard.SHORTEST_TRANSPORT
        self._asked: dict[int, dict[int, float]] = {}
        self._heard: dict[int, None] = {}
        self._offered: dict[int, _Offer] = {}
        self._sessions: list[_Session] = []
        self._left: dict[int, None] = {}
        """Indices of endpoints that the guest had before the last meetings."""
        self._stranger = False
        """Whether a handshake of the guest's own with who is there now is still to be completed."""
        self._initiations_out = TokenBucket(INITIATION_RATE, INITIATION_BURST)
        self._cookie: dict[Side, float] = {}
        self._put_off: set[int] = set()
        """The guest's initiations that were answered by a cookie."""
        self._initiations_in = TokenBucket(FLOOD_RATE, FLOOD_BURST)
        self._cookies_in = TokenBucket(FLOOD_RATE, FLOOD_BURST)
        self._stumbles: deque[float] = deque(maxlen=OUT_OF_STEP_MOST + 1)
        self._completed: list[Handshake] = []

    def handshakes(self) -> list[Handshake]:
        """The handshakes completed since this was last asked."""
        if not self._completed:
            return []
        done, self._completed = self._completed, []
        return done

    @property
    def unanswered(self) -> int:
        """The guest's latest initiations that nobody has answered, be it by a cookie."""
        return sum(
            not candidates and index not in self._put_off
            for index, candidates in self._asked.items()
        )

    def meet(self) -> None:
        """Another endpoint from now on: the guest may send it initiations, and no more until one
        of them has led to a handshake that is complete. How fast, goes on as before."""
        left = [session.endpoint for session in self._sessions]
        left += [offer.endpoint for offer in self._offered.values()]
        left += [index for candidates in self._asked.values() for index in candidates]
        for index in left:
            _remember(self._left, index, None, LEFT_KEPT)
        for table in (self._asked, self._heard, self._offered, self._sessions, self._put_off):
            table.clear()
        self._stranger = True

    def sends(self, receiver: int, first: int, count: int, length: int, now: float) -> bool:
        """Whether transport of the guest's passes: ``count`` messages of ``length`` bytes each,
        counters from ``first`` on, the very next of a session. They are noted then.

        False refuses nothing: ask `outbound`, one by one.
        """
        for session in reversed(self._sessions):
            if session.endpoint == receiver:
                break
        else:
            return False
        if session.counters.highest + 1 != first or length > self._fullest or session.dead(now):
            return False
        session.counters.note(first, count)
        return True

    def receives(self, receiver: int, longest: int, now: float) -> bool:
        """Whether transport of the endpoint's passes, in any number, up to ``longest`` bytes each.

        False refuses nothing: ask `inbound`, one by one.
        """
        for session in reversed(self._sessions):
            if session.guest == receiver:
                return session.complete and longest <= LINK_MTU and not session.dead(now)
        return False

    def outbound(self, message: bytes | memoryview, now: float) -> Refusal | None:
        """A message of the guest's: None if it may pass."""
        length = len(message)
        if length >= wireguard.SHORTEST_TRANSPORT:
            kind, receiver, counter = wireguard.TRANSPORT_HEAD.unpack_from(message)
            if kind == MessageType.TRANSPORT and self.sends(receiver, counter, 1, length, now):
                return None
        refusal = self._check(Side.GUEST, bytes(message), now)
        if refusal is None or refusal.rogue or refusal.reason in UNCOUNTED:
            return refusal
        self._stumbles.append(now)
        many = len(self._stumbles) > OUT_OF_STEP_MOST
        if many and now - self._stumbles[0] < OUT_OF_STEP_SPAN:
            detail = f"more than {OUT_OF_STEP_MOST} in {OUT_OF_STEP_SPAN:.0f} s, "
            return Refusal(Reason.RATE, f"{detail}the last: {refusal.reason.value}")
        return refusal

    def inbound(self, message: bytes | memoryview, now: float) -> Refusal | None:
        """A datagram of the endpoint's: None if it may pass. Whoever asks only ever drops it."""
        return self._check(Side.ENDPOINT, bytes(message), now)

    def _check(self, sender: Side, message: bytes, now: float) -> Refusal | None:
        try:
            parsed = wireguard.parse(message)
        except wireguard.MalformedMessageError as error:
            return Refusal(Reason.NOT_WIREGUARD, str(error))
        if isinstance(parsed, (Initiation, Response)):
            refusal = self._macs(sender, parsed, now)
            if refusal is not None:
                return refusal
        return _RULES[sender, type(parsed)](self, parsed, now)

    def _macs(self, sender: Side, message: Initiation | Response, now: float) -> Refusal | None:
        right = wireguard.mac1(self._receiver_key[sender], message.covered)
        if not hmac.compare_digest(right, message.mac1):
            return Refusal(Reason.MAC1, "not under its receiver's public key")
        if message.mac2 != wireguard.NO_MAC:
            if sender not in self._cookie:
                return Refusal(Reason.MAC2, "no cookie reply explains it")
            age = now - self._cookie[sender]
            if age > COOKIE_LIFETIME:
                # A guest whose clock stood still with the host's may think it fresh.
                return Refusal(Reason.COOKIE_AGED, f"{age:.0f} s after the cookie reply")
        return None

    # Handshakes.

    def _guest_asks(self, message: Initiation, now: float) -> Refusal | None:
        if not self._initiations_out.take(now):
            return Refusal(Reason.INITIATION_RATE, "more than one per REKEY_TIMEOUT")
        _remember(self._asked, message.sender, {}, ASKED_KEPT)
        self._put_off.discard(message.sender)
        return None

    def _endpoint_answers(self, message: Response, now: float) -> Refusal | None:
        candidates = self._asked.get(message.receiver)
        if candidates is None:
            return Refusal(Reason.UNSOLICITED, "a response that answers no initiation")
        if len(candidates) == CANDIDATES_KEPT and message.sender not in candidates:
            return Refusal(Reason.FLOOD, "too many responses to one initiation")
        candidates[message.sender] = now
        return None

    def _endpoint_asks(self, message: Initiation, now: float) -> Refusal | None:
        if not self._initiations_in.take(now):
            return Refusal(Reason.FLOOD, "too many initiations")
        _remember(self._heard, message.sender, None, HEARD_KEPT)
        return None

    def _guest_answers(self, message: Response, now: float) -> Refusal | None:
        if self._stranger:
            return Refusal(Reason.PEER_LEFT, "a response, before a handshake of the guest's own")
        if message.receiver not in self._heard:
            return Refusal(Reason.UNSOLICITED, "a response that answers no initiation")
        # A responder answers an initiation once: the next has a later timestamp.
        del self._heard[message.receiver]
        _remember(self._offered, message.sender, _Offer(message.receiver, now), OFFERED_KEPT)
        return None

    def _guest_cookies(self, message: CookieReply, now: float) -> Refusal | None:
        if self._stranger:
            return Refusal(Reason.PEER_LEFT, "a cookie reply, before a handshake of the guest's")
        known = (
            message.receiver in self._heard
            or any(message.receiver in candidates for candidates in self._asked.values())
            or any(session.endpoint == message.receiver for session in self._sessions)
        )
        if not known:
            return Refusal(Reason.UNSOLICITED, "a cookie reply to no message")
        self._cookie[Side.ENDPOINT] = now
        return None

    def _endpoint_cookies(self, message: CookieReply, now: float) -> Refusal | None:
        known = (
            message.receiver in self._asked
            or message.receiver in self._offered
            or any(session.guest == message.receiver for session in self._sessions)
        )
        if not known:
            return Refusal(Reason.UNSOLICITED, "a cookie reply to no message")
        if not self._cookies_in.take(now):
            return Refusal(Reason.FLOOD, "too many cookie replies")
        self._cookie[Side.GUEST] = now
        self._put_off = self._put_off & self._asked.keys() | {message.receiver}
        return None

    # Transport.

    def _guest_sends(self, message: Transport, now: float) -> Refusal | None:
        if message.length > self._fullest:
            return Refusal(Reason.TRANSPORT_LENGTH, f"{message.length} bytes, over the MTU")
        session = self._session(message.receiver)
        refusal = None if session is None else session.refuse(message.counter, now)
        if session is None or refusal is not None:
            # An endpoint that restarted may have begun its indices anew: look further.
            chosen = self._choose(message, now)
            if isinstance(chosen, Refusal):
                return refusal or chosen
            session = chosen
        session.counters.note(message.counter)
        return None

    def _session(self, endpoint: int) -> _Session | None:
        return next((s for s in reversed(self._sessions) if s.endpoint == endpoint), None)

    def _choose(self, message: Transport, now: float) -> _Session | Refusal:
        """The candidate or the confirmed offer that this transport has made a session."""
        for asked, candidates in reversed(self._asked.items()):
            if message.receiver in candidates:
                born = candidates[message.receiver]
                made = _Session(Side.GUEST, asked, message.receiver, born, complete=False)
                return self._begin(made, self._asked, message.counter, now)
        for offered, offer in reversed(self._offered.items()):
            if offer.endpoint == message.receiver:
                if not offer.confirmed:
                    return Refusal(Reason.UNCONFIRMED, f"0x{message.receiver:08x}")
                made = _Session(Side.ENDPOINT, offered, offer.endpoint, offer.born, complete=True)
                return self._begin(made, self._offered, message.counter, now)
        if message.receiver in self._left:
            return Refusal(Reason.PEER_LEFT, f"0x{message.receiver:08x}")
        if not self._sessions and not self._stranger:
            return Refusal(Reason.BEFORE_HANDSHAKE, "no handshake was completed yet")
        return Refusal(Reason.UNKNOWN_INDEX, f"0x{message.receiver:08x}")

    def _begin(
        self, made: _Session, waiting: dict[int, Any], counter: int, now: float
    ) -> _Session | Refusal:
        refusal = made.refuse(counter, now)
        if refusal is not None:
            return refusal
        for index in list(waiting):  # the rivals, and what was asked or offered before
            del waiting[index]
            if index == made.guest:
                break
        self._sessions.append(made)
        del self._sessions[:-SESSIONS_KEPT]
        if made.complete:
            self._completed.append(Handshake(made.initiator))
        return made

    def _endpoint_sends(self, message: Transport, now: float) -> Refusal | None:
        if message.length > LINK_MTU:
            return Refusal(Reason.TRANSPORT_LENGTH, f"{message.length} bytes, over the link's MTU")
        index = message.receiver
        session = next((s for s in reversed(self._sessions) if s.guest == index), None)
        if session is not None:
            if session.dead(now):
                return Refusal(Reason.SESSION_DEAD, f"{now - session.born:.0f} s old")
            if not session.complete:
                session.complete = True
                self._stranger = False
                self._completed.append(Handshake(session.initiator))
            return None
        if index in self._offered:
            offer = self._offered[index]
            if now - offer.born > SESSION_LIFETIME:
                return Refusal(Reason.SESSION_DEAD, f"{now - offer.born:.0f} s old")
            offer.confirmed = True
            return None
        if index in self._asked:
            return Refusal(Reason.UNCONFIRMED, "before the guest has chosen a response")
        return Refusal(Reason.UNKNOWN_INDEX, f"0x{index:08x}")


_RULES: dict[tuple[Side, type], Callable[[SessionTable, Any, float], Refusal | None]] = {
    (Side.GUEST, Initiation): SessionTable._guest_asks,
    (Side.GUEST, Response): SessionTable._guest_answers,
    (Side.GUEST, CookieReply): SessionTable._guest_cookies,
    (Side.GUEST, Transport): SessionTable._guest_sends,
    (Side.ENDPOINT, Initiation): SessionTable._endpoint_asks,
    (Side.ENDPOINT, Response): SessionTable._endpoint_answers,
    (Side.ENDPOINT, CookieReply): SessionTable._endpoint_cookies,
    (Side.ENDPOINT, Transport): SessionTable._endpoint_sends,
}


def _remember(table: dict[int, Any], index: int, value: object, most: int) -> None:
    """As the newest of at most ``most``."""
    table.pop(index, None)
    table[index] = value
    if len(table) > most:
        del table[next(iter(table))]
