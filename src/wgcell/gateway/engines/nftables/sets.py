"""What the resolver has answered, in nftables' sets: there before the answer leaves.

The workload connects at once, so an answer waits until the kernel knows it. A transaction takes the
kernel some 15 ms; what is to be told meanwhile is the next one, all peers' together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from wgcell.errors import HostError
from wgcell.gateway.dns.cache import lease
from wgcell.gateway.engines.nftables import ruleset
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.ratelimit import Bucket
from wgcell.gateway.peer.admission import Gate
from wgcell.gateway.peer.events import Report
from wgcell.net.addresses import Address

__all__ = ["Openings", "Served"]

_MOST_HELD = ruleset.MOST_LEADS * 3 // 4
"""Elements of a set: what has ended leaves the kernel's sets a little later."""

Leads = tuple[tuple[str, Address, float], ...]
"""Names, each with an address that it leads to and for how many seconds."""
Element = tuple[str, Address, float]
"""A set, an address in it, and for how many seconds from now."""
Ends = dict[tuple[str, Address], float]
"""Until when an address is in a set."""


class Served:
    """One peer's gate, and what the kernel knows of its names."""

    def __init__(
        self,
        peer: Peer,
        config: GatewayConfig,
        report: Report,
        openings: Openings,
    ) -> None:
        self.gate = Gate(config, peer, report, lambda leads: openings.add(self, leads))
        self.closed = False
        self._ends: Ends = {}

    def close(self) -> None:
        """Cut the peer off; it has no sets any more."""
        self.closed = True
        self.gate.close()

    def carried(self, peer: Peer) -> list[Element]:
        """What belongs into the new, empty sets of ``peer``, which is this one with another policy.

        Of every name that was answered, also one that is denied now: its set denies its address.
        """
        now = time.monotonic()
        ends: Ends = {}
        for name, address, left in self.gate.names.living(now):
            for place in ruleset.leads(peer, name, address):
                ends[place, address] = max(ends.get((place, address), 0.0), now + left)
        self._ends = ends
        return [(*key, end - now) for key, end in ends.items()]

    def opening(self, leads: Leads) -> tuple[list[Element], Ends]:
        """The elements for all of them, and the ends that are true once they are in.

        An element that lives longer already stays; none if all do. What a set has no room for is
        left out: the kernel would refuse all of the transaction.
        """
        now = time.monotonic()
        self._ends = {key: end for key, end in self._ends.items() if end > now}
        held: dict[str, int] = {}
        for place, _ in self._ends:
            held[place] = held.get(place, 0) + 1
        new: Ends = {}
        for name, address, ttl in leads:
            for place in ruleset.leads(self.gate.peer, name, address):
                key, end = (place, address), now + lease(ttl)
                known = max(self._ends.get(key, 0.0), new.get(key, 0.0))
                if known >= end:
                    continue
                if not known:
                    if held.get(place, 0) >= _MOST_HELD:
                        continue
                    held[place] = held.get(place, 0) + 1
                new[key] = end
        return [(*key, end - now) for key, end in new.items()], new

    def opened(self, ends: Ends) -> None:
        """`opening`'s elements are in."""
        self._ends.update(ends)


class Openings:
    """What waits to be told. ``apply`` has nft take a transaction; it raises HostError."""

    def __init__(
        self, apply: Callable[[str], Awaitable[None]], interface: str, report: Report
    ) -> None:
        self._apply = apply
        self._interface = interface
        self._report = report
        self._waiting: list[tuple[Served, Leads, asyncio.Future[None]]] = []
        self._telling: asyncio.Task[None] | None = None
        self._faults = Bucket(0.1, 4)
        self.paused = asyncio.Lock()
        """Held by whoever changes the sets' names meanwhile."""

    async def add(self, served: Served, leads: Leads) -> None:
        """Returns when the kernel knows them, or can't be told."""
        told = asyncio.get_running_loop().create_future()
        self._waiting.append((served, leads, told))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())
        await told

    async def _tell(self) -> None:
        while self._waiting:
            async with self.paused:
                batch, self._waiting = self._waiting, []
                try:
                    await self._tell_all(batch)
                except Exception as error:  # an answer must not wait for ever, whatever it is
                    self._fault(repr(error))
                finally:
                    for _, _, told in batch:
                        if not told.done():
                            told.set_result(None)

    async def _tell_all(self, batch: list[tuple[Served, Leads, asyncio.Future[None]]]) -> None:
        asked: dict[Served, Leads] = {}
        for served, leads, _ in batch:
            if not served.closed:
                asked[served] = asked.get(served, ()) + leads
        new = [(served, *served.opening(leads)) for served, leads in asked.items()]
        if await self._refused([element for _, elements, _ in new for element in elements]):
            # One peer's fault is no matter of another's.
            refusals = [(one, await self._refused(one[1])) for one in new]
            for why in filter(None, (why for _, why in refusals)):
                self._fault(why)
            new = [one for one, why in refusals if not why]
        for served, _, ends in new:
            served.opened(ends)

    async def _refused(self, elements: list[Element]) -> str:
        """Why a transaction was not taken; empty if all were."""
        try:
            for part in ruleset.remember(self._interface, elements):
                await self._apply(part)
        except HostError as error:
            return error.message
        return ""

    def _fault(self, why: str) -> None:
        if self._faults.take(time.monotonic()):
            self._report({"event": "fault", "detail": f"names: {why}"})
