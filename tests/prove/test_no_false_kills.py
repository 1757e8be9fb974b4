"""An honest cell through hours of tunnel use, in emulated time: nothing of the guest's is refused.

Two WireGuards as the paper has them (section 6), with the relay's session table at the guest's
card. Between table and endpoint lies a bad network::

    guest -- table -- loss, reordering, duplicates, outages (roaming) -- endpoint

and the host is suspended now and then, for minutes or hours. WGCELL_REKEYS sets how many
handshakes must be completed; the long form is 20000.
"""

from __future__ import annotations

import heapq
import os
import random
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.support.messages import ENDPOINT, GUEST, handshake

from wgcell.relay.session import SessionTable
from wgcell.relay.verdict import Reason
from wgcell.wire import wireguard

REKEYS = int(os.environ.get("WGCELL_REKEYS", "1000"))
REKEY_AFTER_TIME, KEEPALIVE = 120.0, 10.0
GIVE_UP = 90.0


@dataclass
class Session:
    ours: int
    theirs: int
    born: float
    initiator: bool
    counter: int = 0


@dataclass
class Peer:
    """One side. ``now`` is its own clock: a suspended guest does not see the time that passed."""

    key_of_other: bytes
    chance: random.Random
    current: Session | None = None
    following: Session | None = None
    previous: Session | None = None
    pending: tuple[int, float] | None = None
    wants_since: float | None = None
    spoke: float | None = None
    stamp: int = 0
    newest: int = 0

    def index(self) -> int:
        return self.chance.getrandbits(32)

    def live(self, now: float) -> Session | None:
        one = self.current
        return one if one is not None and now - one.born < wireguard.REJECT_AFTER_TIME else None

    def tick(self, now: float, talk: bool) -> list[bytes]:
        """What its timers send at ``now``, and data if it has some."""
        out: list[bytes] = []
        session = self.live(now)
        due = session is None and talk
        if session is not None and session.initiator and talk:
            due = now - session.born > REKEY_AFTER_TIME
        if self.spoke is not None and now - self.spoke > KEEPALIVE + wireguard.REKEY_TIMEOUT:
            due, self.spoke = True, None
        if due and self.wants_since is None:
            self.wants_since = now
        if self.wants_since is not None:
            if now - self.wants_since > GIVE_UP:
                self.wants_since = self.pending = None
            elif self.pending is None or now - self.pending[1] >= wireguard.REKEY_TIMEOUT:
                index = self.index()
                self.pending = (index, now)
                self.stamp += 1
                head = struct.pack("<IIQ", 1, index, self.stamp)
                out.append(handshake(head, 148, self.key_of_other))
        if talk and session is not None:
            out.append(self.transport(session, self.chance.choice((32, 96, 1452)), now))
        return out

    def transport(self, session: Session, size: int, now: float) -> bytes:
        message = struct.pack("<IIQ", 4, session.theirs, session.counter).ljust(size, b"\0")
        session.counter += 1
        if size > 32 and self.spoke is None:
            self.spoke = now
        return message

    def take(self, message: bytes, now: float) -> list[bytes]:
        """A message that arrived; what it answers."""
        match message[0]:
            case 1:
                theirs, stamp = struct.unpack_from("<IQ", message, 4)
                if stamp <= self.newest:  # its timestamp is no later than the last: a replay
                    return []
                self.newest = stamp
                ours = self.index()
                self.following = Session(ours, theirs, now, initiator=False)
                return [handshake(struct.pack("<III", 2, ours, theirs), 92, self.key_of_other)]
            case 2:
                theirs, receiver = struct.unpack_from("<II", message, 4)
                if self.pending is None or receiver != self.pending[0]:
                    return []
                self.previous = self.current
                self.current = Session(receiver, theirs, now, initiator=True)
                self.pending = self.wants_since = self.spoke = None
                return [self.transport(self.current, 32, now)]
            case _:
                receiver, _counter = struct.unpack_from("<IQ", message, 4)
                if self.following is not None and receiver == self.following.ours:
                    self.previous, self.current = self.current, self.following
                    self.following = None
                known = [one.ours for one in (self.current, self.previous) if one is not None]
                if receiver in known:
                    self.spoke = None
                    if len(message) > 32 and (live := self.live(now)) is not None:
                        return [self.transport(live, 32, now)]
                return []


def live_through(
    rekeys: int, seed: int, moves: float = 0.0
) -> tuple[Counter[Reason], Counter[Reason], int, float]:
    """Refusals of the guest's, drops of the endpoint's, handshakes, seconds that went by.

    ``moves`` is how likely, each time the two sides' timers run, the endpoint moves to another
    address: what is under way is lost, and it knows its peers no more than after a restart.
    """
    chance = random.Random(seed)
    table = SessionTable(GUEST, ENDPOINT, 1420)
    guest, endpoint = Peer(ENDPOINT, chance), Peer(GUEST, chance)
    out: Counter[Reason] = Counter()
    inward: Counter[Reason] = Counter()
    way: list[Any] = []
    now = slept = outage = 0.0
    done = number = moved = 0

    def send(to: Peer, message: bytes) -> None:
        nonlocal number
        copies = 0 if now < outage or chance.random() < 0.05 else 1 + (chance.random() < 0.03)
        for _ in range(copies):
            number += 1
            heapq.heappush(way, (now + chance.uniform(0.01, 0.4), number, to, message))

    def leave(messages: list[bytes]) -> None:
        for message in messages:
            refusal = table.outbound(message, now)
            if refusal is None:
                send(endpoint, message)
            else:
                assert not refusal.rogue, (refusal, now, moved)
                out[refusal.reason] += 1

    def answer(messages: list[bytes]) -> None:
        for message in messages:
            send(guest, message)

    tick = 0.0
    while done < rekeys:
        if way and way[0][0] <= tick:
            now, _, to, message = heapq.heappop(way)
            if to is endpoint:
                answer(endpoint.take(message, now))
            elif (refusal := table.inbound(message, now)) is None:
                leave(guest.take(message, now - slept))
            else:
                inward[refusal.reason] += 1
        else:
            now = tick
            leave(guest.tick(now - slept, talk=chance.random() < 0.8))
            answer(endpoint.tick(now, talk=chance.random() < 0.3))
            tick = now + chance.uniform(0.5, 9.0)
            if chance.random() < moves:
                way = []
                endpoint = Peer(GUEST, chance, stamp=endpoint.stamp, newest=endpoint.newest)
                table.meet()
                moved += 1
            if chance.random() < 0.001:
                outage = now + chance.uniform(5, 60)  # roaming: the path is gone for a while
            if chance.random() < 0.0005:
                asleep = chance.choice((20.0, 200.0, 4000.0))
                tick, slept = tick + asleep, slept + asleep
                # What is under way waits in the host's sockets.
                way = [(max(at, tick), *rest) for at, *rest in way]
                heapq.heapify(way)
        done += len(table.handshakes())
    return out, inward, done, now


def test_an_honest_cell_is_never_refused() -> None:
    out, inward, done, seconds = live_through(REKEYS, seed=1)
    print(f"{done} handshakes in {seconds / 3600:.0f} h; out {dict(out)}; in {dict(inward)}")
    assert done >= REKEYS
    # Suspended, a guest does not know how old its session is: those few are out of step.
    assert not any(reason is not Reason.SESSION_DEAD for reason in out)
    assert out[Reason.SESSION_DEAD] <= done / 10


def test_an_honest_cell_whose_endpoint_moves_is_never_rogue_and_goes_on() -> None:
    out, inward, done, seconds = live_through(REKEYS, seed=2, moves=0.02)
    print(f"{done} handshakes in {seconds / 3600:.0f} h; out {dict(out)}; in {dict(inward)}")
    # It can't know that its endpoint is gone, and talks on under what it agreed with that one.
    assert out[Reason.PEER_LEFT] > 0
    assert set(out) <= {Reason.SESSION_DEAD, Reason.PEER_LEFT}
