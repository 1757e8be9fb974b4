"""Puts the answers of the resolver into nftables' sets, before an answer leaves.

A client connects as soon as it has an answer, so the answer waits until the kernel knows its
addresses. A transaction takes the kernel some 15 ms. What is to be added meanwhile goes into the
next one, for all peers together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from wgcell.errors import HostError
from wgcell.gateway import words
from wgcell.gateway.dns.cache import Resolved, lifetime
from wgcell.gateway.engines.nftables.table import SET_SIZE, sets_for
from wgcell.gateway.engines.nftables.transactions import add_elements
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.peer.admission import Admission
from wgcell.gateway.peer.events import Report
from wgcell.net.addresses import Address
from wgcell.net.bucket import TokenBucket

__all__ = ["NameSets", "Peers", "ServedPeer"]

_MOST_USED = SET_SIZE * 3 // 4
"""Elements in use of a set: an expired element leaves the kernel's set a little later."""

Element = tuple[str, Address, float]
"""A set, an address in it, and the seconds until it leaves the set."""
Expiries = dict[tuple[str, Address], float]
"""When an address leaves a set, on the monotonic clock."""


class ServedPeer:
    """One peer: its admission, and what the kernel's sets hold for it."""

    def __init__(
        self, peer: Peer, config: GatewayConfig, report: Report, name_sets: NameSets
    ) -> None:
        self.admission = Admission(
            config, peer, report, lambda resolved: name_sets.add(self, resolved)
        )
        self.closed = False
        self._expiries: Expiries = {}

    def close(self) -> list[asyncio.Task[None]]:
        """End the peer's flows, and return them. Its sets get nothing more."""
        self.closed = True
        return self.admission.close()

    def carried_over(self, peer: Peer) -> list[Element]:
        """The elements for the new, empty sets of ``peer``: this peer with another policy.

        They come from every valid answer, also for a name that is denied now: the set of that rule
        denies its addresses.
        """
        now = time.monotonic()
        expiries: Expiries = {}
        for name, address, left in self.admission.cache.valid(now):
            for place in sets_for(peer, name, address):
                expiries[place, address] = max(expiries.get((place, address), 0.0), now + left)
        self._expiries = expiries
        return [(*key, end - now) for key, end in expiries.items()]

    def elements_for(self, resolved: tuple[Resolved, ...]) -> tuple[list[Element], Expiries]:
        """The new elements for ``resolved``, and their expiries for `added`.

        An element that lives longer already is left out. So is one for which its set has no room:
        the kernel would refuse the whole transaction.
        """
        now = time.monotonic()
        self._expiries = {key: end for key, end in self._expiries.items() if end > now}
        used: dict[str, int] = {}
        for place, _ in self._expiries:
            used[place] = used.get(place, 0) + 1
        new: Expiries = {}
        for name, address, ttl in resolved:
            for place in sets_for(self.admission.peer, name, address):
                key, end = (place, address), now + lifetime(ttl)
                known = max(self._expiries.get(key, 0.0), new.get(key, 0.0))
                if known >= end:
                    continue
                if not known:
                    if used.get(place, 0) >= _MOST_USED:
                        continue
                    used[place] = used.get(place, 0) + 1
                new[key] = end
        return [(*key, end - now) for key, end in new.items()], new

    def added(self, expiries: Expiries) -> None:
        """The kernel has taken the elements of `elements_for`."""
        self._expiries.update(expiries)


Peers = dict[Address, ServedPeer]
"""Each address of each peer. One such table is shared by all parts of an engine."""


class NameSets:
    """Adds elements, one transaction after the other. ``apply`` raises HostError."""

    def __init__(
        self, apply: Callable[[str], Awaitable[None]], interface: str, report: Report
    ) -> None:
        self._apply = apply
        self._interface = interface
        self._report = report
        self._waiting: list[tuple[ServedPeer, tuple[Resolved, ...], asyncio.Future[None]]] = []
        self._working: asyncio.Task[None] | None = None
        self._faults = TokenBucket(0.1, 4)
        self.paused = asyncio.Lock()
        """Held while the table, and so the names of the sets, change."""

    async def add(self, served: ServedPeer, resolved: tuple[Resolved, ...]) -> None:
        """Returns when the kernel has the addresses, or can't take them."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((served, resolved, done))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        await done

    async def _work(self) -> None:
        while self._waiting:
            async with self.paused:
                batch, self._waiting = self._waiting, []
                try:
                    await self._add_all(batch)
                except Exception as error:  # whatever it is, an answer must not wait for ever
                    self._fault(repr(error))
                finally:
                    for _, _, done in batch:
                        if not done.done():
                            done.set_result(None)

    async def _add_all(
        self, batch: list[tuple[ServedPeer, tuple[Resolved, ...], asyncio.Future[None]]]
    ) -> None:
        asked: dict[ServedPeer, tuple[Resolved, ...]] = {}
        for served, resolved, _ in batch:
            if not served.closed:
                asked[served] = asked.get(served, ()) + resolved
        new = [(served, *served.elements_for(resolved)) for served, resolved in asked.items()]
        if await self._refusal([element for _, elements, _ in new for element in elements]):
            # One peer's elements must not keep another's out.
            refusals = [(one, await self._refusal(one[1])) for one in new]
            for why in filter(None, (why for _, why in refusals)):
                self._fault(why)
            new = [one for one, why in refusals if not why]
        for served, _, expiries in new:
            served.added(expiries)

    async def _refusal(self, elements: list[Element]) -> str:
        """The kernel's reason for refusing a transaction; empty if it took all."""
        try:
            for part in add_elements(self._interface, elements):
                await self._apply(part)
        except HostError as error:
            return error.message
        return ""

    def _fault(self, why: str) -> None:
        if self._faults.take(time.monotonic()):
            self._report(words.Fault(f"names: {why}"))
