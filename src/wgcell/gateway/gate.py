"""What one peer may do, decided, told and held to: the same in each engine.

An engine brings a flow's facts here, and does what is answered. The policy decides, over the names
that lead to an address now; the peer's limits are kept; each decision is an event. Flows that this
process itself joins are known here, so that another policy, or the peer's end, ends them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wgcell.gateway.config import GatewayConfig, Peer
from wgcell.gateway.flows import Flow, FlowLog, Report, mend
from wgcell.gateway.joining import CHUNK, NotReached, Refused
from wgcell.gateway.leads import NameTable
from wgcell.gateway.limits import Bucket
from wgcell.gateway.policy import LEARNED, Address, Decision, Limits, Verdict

if TYPE_CHECKING:
    from wgcell.gateway.nameserver import Nameserver

__all__ = ["DNS_PORT", "Gate"]

DNS_PORT = 53
MOST_JOINED = 3500
"""Flows that this process joins for all peers together: two descriptors each, and some are left."""
_NUMBERS = itertools.count(1)
_CUT_OFF = "cut off"

Learned = Callable[[tuple[tuple[str, Address, float], ...]], Awaitable[None]]
"""Called with each name and address that an answer is about to open, and for how many seconds."""


class Gate:
    """One peer's. ``learned`` is called before an answer leaves, for who must know it by then."""

    _everyone = 0
    """Flows open of all gates: descriptors are the process's."""

    def __init__(
        self, config: GatewayConfig, peer: Peer, report: Report, learned: Learned | None = None
    ) -> None:
        self.peer = peer
        self.log = FlowLog(peer.name, report)
        self.names = NameTable()
        self._config = config
        self._learned = learned
        self._open: dict[asyncio.Task[None], tuple[Flow, Decision]] = {}
        self._closed = False
        self._limit()

    def warm(self) -> None:
        """Load what a peer's first question would wait for."""
        _ = self.nameserver

    def _limit(self) -> None:
        limits = self.peer.policy.limits
        self._new = Bucket(limits.flows_per_second, limits.flows)
        rate = limits.bytes_per_second
        self._bytes = Bucket(rate, max(rate, CHUNK)) if rate else None

    @cached_property
    def nameserver(self) -> Nameserver:
        """Made when it is first wanted: a gateway that starts need not wait for dnspython."""
        from wgcell.gateway.nameserver import Nameserver
        from wgcell.gateway.resolver import Upstream, host_resolvers

        upstream = Upstream(self._config.resolver or host_resolvers())
        return Nameserver(self.peer.policy, upstream, self._name_refused, self._name_learned)

    def change(self, peer: Peer) -> None:
        """Another policy for the same peer; flows that it does not allow end now."""
        if peer.policy.limits != self.peer.policy.limits:
            self._limit()
        self.peer = peer
        vars(self).pop("nameserver", None)
        for task, (flow, decision) in list(self._open.items()):
            again = peer.policy.evaluate(flow.address, flow.port, flow.protocol, flow.names)
            if again.verdict is Verdict.REFUSE or again.target != decision.target:
                task.cancel()
            flow.rule, flow.names = again.rule, again.names

    def cut(self) -> list[asyncio.Task[None]]:
        """End every flow that is open now, and tell what was not told; the flows' tasks."""
        for task in self._open:
            task.cancel()
        self.log.summarise()
        return list(self._open)

    def close(self) -> list[asyncio.Task[None]]:
        """`cut`, and nothing is kept open any more."""
        self._closed = True
        return self.cut()

    # Deciding.

    def flow(self, protocol: str, address: Address, port: int) -> Flow:
        """A new one's facts."""
        names = self.names.names(address, time.monotonic())
        name = names[-1] if names else ""
        return Flow(next(_NUMBERS), self.peer.name, protocol, address, port, name)

    def decide(self, flow: Flow, source: Address) -> Decision:
        """Whether ``flow``, which came from ``source``, may go on. Told before a byte moves."""
        policy = self.peer.policy
        names = self.names.names(flow.address, time.monotonic())
        decision = policy.evaluate(flow.address, flow.port, flow.protocol, names)
        rule = self.mend_of(flow, decision)
        if source != self.peer.address:
            decision = Decision(Verdict.REFUSE, "", f"its source, {source}, is not the peer's")
            rule = ""
        elif decision.verdict is Verdict.REFUSE:
            pass
        elif beyond := self._beyond(policy.limits):
            decision, rule = Decision(Verdict.REFUSE, "", beyond), ""
        if decision.names:
            flow.name = decision.names[-1]
        flow.rule, flow.names = decision.rule, decision.names
        event = flow.event("flow", decision.verdict.value, decision.reason)
        self.log.tell({**event, "mend": rule})
        return decision

    def _beyond(self, limits: Limits) -> str:
        """Why a new flow would be one too many; empty if it would not."""
        if len(self._open) >= limits.flows:
            return f"{limits.flows} flows are open already"
        if Gate._everyone >= MOST_JOINED:
            return f"{MOST_JOINED} flows of all peers are open already"
        if not self._new.take(time.monotonic()):
            return f"more than {limits.flows_per_second} new flows a second"
        return ""

    def own(self, flow: Flow) -> bool:
        """Whether ``flow`` may lead to this very machine: to a service, or by its address."""
        policy = self.peer.policy
        place = flow.address, flow.port
        services = {(service.address, service.port) for service in policy.services}
        return place in services or policy.listed(flow.address)

    def mend_of(self, flow: Flow, decision: Decision) -> str:
        """The rule that would allow what no rule allows; the one that what is learned lacks."""
        if decision.rule != LEARNED and (decision.rule or decision.verdict is Verdict.ALLOW):
            return ""
        name = "" if self.peer.policy.kept(flow.address) else flow.name
        return mend(flow.protocol, flow.address, flow.port, name)

    def _name_refused(self, name: str, reason: str) -> None:
        own = self._config.address
        flow = Flow(next(_NUMBERS), self.peer.name, "dns", own, DNS_PORT, name)
        rule = mend("dns", flow.address, flow.port, name) if reason == "no rule names it" else ""
        self.log.tell({**flow.event("flow", Verdict.REFUSE.value, reason), "mend": rule})

    async def _name_learned(self, name: str, addresses: tuple[Address, ...], ttl: float) -> None:
        self.names.learn(name, addresses, ttl, time.monotonic())
        if self._learned is not None:
            await self._learned(tuple((name, address, ttl) for address in addresses))

    # Flows that this process joins.

    @contextmanager
    def counted(self, flow: Flow, decision: Decision) -> Iterator[bool]:
        """The current task is an open flow of this peer's meanwhile; false: it may not be."""
        task = asyncio.current_task()
        full = len(self._open) >= self.peer.policy.limits.flows or Gate._everyone >= MOST_JOINED
        if task is None or self._closed or full:
            yield False
            return
        self._open[task] = flow, decision
        Gate._everyone += 1
        try:
            yield True
        finally:
            del self._open[task]
            Gate._everyone -= 1

    async def join(self, flow: Flow, decision: Decision, work: Coroutine[Any, Any, str]) -> str:
        """Do ``work``, which returns why it ended, as an open flow; tell its end, and return that.

        A flow that is refused after it has begun is told as refused.
        """
        with self.counted(flow, decision) as counted:
            verdict, reason = Verdict.ALLOW, _CUT_OFF
            if not counted:
                work.close()
                return reason
            try:
                reason = await work
            except Refused as refused:
                verdict, reason = Verdict.REFUSE, str(refused)
                host = refused.host
                rule = mend(flow.protocol, flow.address, flow.port, host) if host else ""
                event = flow.event("flow", verdict.value, reason)
                self.log.tell({**event, "host": host, "mend": rule})
            except NotReached as error:
                reason = str(error)
                if decision.target is not None:
                    # A target's end is a matter of its own; a service is this side's to mend.
                    verdict = Verdict.REFUSE
                    self.log.tell({**flow.event("flow", verdict.value, reason), "mend": ""})
            except OSError as error:
                reason = f"broken: {error}"
            finally:
                self.log.tell(flow.end(verdict.value, reason))
        return reason

    async def pace(self, count: int) -> None:
        """Wait until so many bytes may move."""
        if self._bytes is not None and (wait := self._bytes.wait(time.monotonic(), count)) > 0:
            await asyncio.sleep(wait)
