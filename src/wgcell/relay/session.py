"""Keyless session tracking: WireGuard in step, seen from outside.

The relay holds no private key, so it can neither read nor forge. It can demand that each message is
WireGuard and follows from the messages before it. But an attacker on the path who knows a public
key can forge a handshake message or a transport header as well as the endpoint can: a valid mac1
authenticates nobody. So **nothing inbound ever replaces anything**. It adds something that the
guest may choose, up to a bound. The choice is the *guest's* next message, for its kernel holds the
keys and has authenticated the message that it acts on.

::

    initiation, guest's      asked     its index, and below it every response that claims to answer
    response, endpoint's               it: *candidates*. The guest's first transport under one of
                                       them makes it a session, and forgets its rivals.
    initiation, endpoint's   heard     its index, for the guest to answer.
    response, guest's        offered   the two indices. The endpoint's transport confirms the
                                       offer; the guest's first transport then makes it a session.
    transport, guest's       sessions  previous, current and next: the third oldest is forgotten.

A WireGuard responder sends no transport before it has received some under the new session (paper,
section 5.4.3; Linux, wireguard-go and boringtun all keep to it), so the relay lets none pass.
A handshake is *complete* when transport has passed both ways under it.

The guest's own messages bound ``asked`` and ``offered``. Inbound messages pass only as fast as they
can be remembered for as long as an honest guest may need to answer them. So a flood costs an honest
guest handshakes at worst, never a live session, and never a verdict of rogue.

Outbound, which is from the guest, a refusal may be rogue. Inbound nothing is ever rogue, since
anyone who can send a packet could kill a cell with it. It is dropped and counted.

Only the guest's counters are followed. A window that unauthenticated messages moved would let a
forger shut out the true messages behind it. The guest's kernel has the window of inbound messages.

After a change of the endpoint's address the new endpoint is a stranger, though it has consented:
`SessionTable.meet` forgets every session. Until a handshake that the guest began is complete with
it, only the guest's initiations leave, and the transport that completes the handshake.

Time is an argument, in seconds of CLOCK_BOOTTIME: a suspended host ages its sessions too.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wgcell.net.bucket import TokenBucket
from wgcell.relay.tracking import SESSION_LIFETIME, Offer, Session, Side
from wgcell.relay.verdict import Reason, Refusal
from wgcell.wire import wireguard
from wgcell.wire.wireguard import CookieReply, Initiation, MessageType, Response, Transport

_Kept = TypeVar("_Kept")

__all__ = ["Handshake", "SessionTable", "Side"]

COOKIE_LIFETIME = 120.0
"""Seconds for which a cookie reply explains a mac2 (paper, section 5.4.7)."""

INITIATION_BURST = 2.0
INITIATION_RATE = 1 / (wireguard.REKEY_TIMEOUT * 0.9)
"""The guest's initiations: the number at once, then the number a second. A WireGuard sends one per
REKEY_TIMEOUT (paper, section 6.4); a tenth is left for the guest's jitter."""
ASKED_KEPT = 4
"""The guest's initiations; Linux remembers its latest only."""
CANDIDATES_KEPT = 64
"""Responses to one initiation; the first ones are kept, and no others let through."""
OFFERED_KEPT = 8
HEARD_KEPT = 256
FLOOD_BURST = 64
FLOOD_RATE = 16.0
"""The endpoint's initiations, and its cookie replies, a second: one is remembered for at least
(HEARD_KEPT - FLOOD_BURST) / FLOOD_RATE = 12 s. Linux is "under load" from 512 queued on."""
SESSIONS_KEPT = 3
"""Previous, current and next."""
LEFT_KEPT = 1024
"""Indices of former endpoints: one change leaves 267 at most, and changes are 30 s apart."""

LINK_MTU = 1500 - 28
"""Bytes of UDP payload that fit the link's one frame."""

OUT_OF_STEP_MOST = 200
OUT_OF_STEP_SPAN = 10.0
"""More out-of-step messages from the guest in that many seconds are rogue."""
UNCOUNTED = frozenset({Reason.SESSION_DEAD, Reason.PEER_LEFT})
"""Reasons that don't count for that rate. With a clock that a suspend has put back, an honest guest
fills a dead session at full speed; and it fills one with an endpoint that has moved, which it can't
know, for up to 180 s."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """A handshake was completed: transport has passed both ways under it."""

    initiator: Side


class SessionTable:
    """Every session between one guest and one endpoint. ``mtu`` is wg0's, in bytes."""

    def __init__(self, guest_public_key: bytes, endpoint_public_key: bytes, mtu: int) -> None:
        self._receiver_key = {Side.GUEST: endpoint_public_key, Side.ENDPOINT: guest_public_key}
        self._fullest = mtu + wireguard.SHORTEST_TRANSPORT
        self._asked: dict[int, dict[int, float]] = {}
        self._heard: dict[int, None] = {}
        self._offered: dict[int, Offer] = {}
        self._sessions: list[Session] = []
        self._left: dict[int, None] = {}
        """Indices of former endpoints."""
        self._stranger = False
        """The guest has not yet completed a handshake of its own with the present endpoint."""
        self._initiations_out = TokenBucket(INITIATION_RATE, INITIATION_BURST)
        self._cookie: dict[Side, float] = {}
        self._put_off: set[int] = set()
        """The guest's initiations that a cookie reply has answered."""
        self._initiations_in = TokenBucket(FLOOD_RATE, FLOOD_BURST)
        self._cookies_in = TokenBucket(FLOOD_RATE, FLOOD_BURST)
        self._stumbles: deque[float] = deque(maxlen=OUT_OF_STEP_MOST + 1)
        self._completed: list[Handshake] = []

    def handshakes(self) -> list[Handshake]:
        """The handshakes that were completed since the last call."""
        if not self._completed:
            return []
        done, self._completed = self._completed, []
        return done

    @property
    def unanswered(self) -> int:
        """The number of the guest's latest initiations without an answer; a cookie reply is one."""
        return sum(
            not candidates and index not in self._put_off
            for index, candidates in self._asked.items()
        )

    def meet(self) -> None:
        """Forget the former endpoint: another one has its place.

        The guest may send initiations, and nothing else until a handshake is complete. Their rate
        is counted across the change.
        """
        left = [session.endpoint for session in self._sessions]
        left += [offer.endpoint for offer in self._offered.values()]
        left += [index for candidates in self._asked.values() for index in candidates]
        for index in left:
            _remember(self._left, index, None, LEFT_KEPT)
        for table in (self._asked, self._heard, self._offered, self._sessions, self._put_off):
            table.clear()
        self._stranger = True

    def sends(self, receiver: int, first: int, count: int, length: int, now: float) -> bool:
        """Whether ``count`` transport messages from the guest pass, and note them if they do.

        Each has ``length`` bytes; their counters go from ``first`` on, the very next of a session.
        False refuses nothing: ask `outbound` about each message.
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
        """Whether transport from the endpoint passes: messages of at most ``longest`` bytes.

        False refuses nothing: ask `inbound` about each message.
        """
        for session in reversed(self._sessions):
            if session.guest == receiver:
                return session.complete and longest <= LINK_MTU and not session.dead(now)
        return False

    def outbound(self, message: bytes | memoryview, now: float) -> Refusal | None:
        """Why a message from the guest may not pass; None if it may."""
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
        """Why a datagram from the endpoint may not pass; None if it may. Never rogue."""
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
                # The guest may take it for fresh: a suspended host's guest has a clock that stood.
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
        _remember(self._offered, message.sender, Offer(message.receiver, now), OFFERED_KEPT)
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

    def _session(self, endpoint: int) -> Session | None:
        return next((s for s in reversed(self._sessions) if s.endpoint == endpoint), None)

    def _choose(self, message: Transport, now: float) -> Session | Refusal:
        """The new session, of the candidate or the confirmed offer that this transport chooses."""
        for asked, candidates in reversed(self._asked.items()):
            if message.receiver in candidates:
                born = candidates[message.receiver]
                made = Session(Side.GUEST, asked, message.receiver, born, complete=False)
                return self._begin(made, self._asked, message.counter, now)
        for offered, offer in reversed(self._offered.items()):
            if offer.endpoint == message.receiver:
                if not offer.confirmed:
                    return Refusal(Reason.UNCONFIRMED, f"0x{message.receiver:08x}")
                made = Session(Side.ENDPOINT, offered, offer.endpoint, offer.born, complete=True)
                return self._begin(made, self._offered, message.counter, now)
        if message.receiver in self._left:
            return Refusal(Reason.PEER_LEFT, f"0x{message.receiver:08x}")
        if not self._sessions and not self._stranger:
            return Refusal(Reason.BEFORE_HANDSHAKE, "no handshake was completed yet")
        return Refusal(Reason.UNKNOWN_INDEX, f"0x{message.receiver:08x}")

    def _begin(
        self, made: Session, waiting: dict[int, _Kept], counter: int, now: float
    ) -> Session | Refusal:
        refusal = made.refuse(counter, now)
        if refusal is not None:
            return refusal
        for index in list(waiting):  # the rivals, and all older ones
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


_RULES: dict[tuple[Side, type], Callable[..., Refusal | None]] = {
    (Side.GUEST, Initiation): SessionTable._guest_asks,
    (Side.GUEST, Response): SessionTable._guest_answers,
    (Side.GUEST, CookieReply): SessionTable._guest_cookies,
    (Side.GUEST, Transport): SessionTable._guest_sends,
    (Side.ENDPOINT, Initiation): SessionTable._endpoint_asks,
    (Side.ENDPOINT, Response): SessionTable._endpoint_answers,
    (Side.ENDPOINT, CookieReply): SessionTable._endpoint_cookies,
    (Side.ENDPOINT, Transport): SessionTable._endpoint_sends,
}


def _remember(table: dict[int, _Kept], index: int, value: _Kept, most: int) -> None:
    """Add ``index`` as the newest entry of at most ``most``."""
    table.pop(index, None)
    table[index] = value
    if len(table) > most:
        del table[next(iter(table))]
