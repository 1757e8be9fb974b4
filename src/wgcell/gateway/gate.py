"""What one peer may do, decided, told and held to: the same in each engine.

An engine brings a flow's facts here, and does what is answered. The policy decides, over the names
that lead to an address now; the peer's limits are kept; each decision is an event. Flows that this
process itself joins are known here, so that another policy, or the peer's end, ends them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wgcell.gateway.config import GatewayConfig, Peer
from wgcell.gateway.flows import FAILED, Flow, FlowLog, Report, learned_rule, mend
from wgcell.gateway.joining import CHUNK, NotReached, Refused
from wgcell.gateway.leads import NameTable
from wgcell.gateway.limits import Bucket
from wgcell.gateway.policy import LEARNED, Address, Decision, Limits, Verdict
from wgcell.net import addresses

if TYPE_CHECKING:
    from wgcell.gateway.nameserver import Nameserver

__all__ = ["DNS_PORT", "Gate"]

DNS_PORT = 53
MOST_JOINED = 3500
"""Flows that this process joins for all peers together: two descriptors each, and some are left."""
_NUMBERS = itertools.count(1)
_CUT_OFF = "cut off"
_MOST_FAILED = 512
"""Names that were not found, each told once."""

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
        self._failed: set[str] = set()
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
        heard = self._name_refused, self._name_learned, self._name_failed
        return Nameserver(self.peer.policy, upstream, *heard)

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
            flow.rule, flow.names, flow.checked = again.rule, again.names, again.checked

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
        decision, rule = self.explained(flow, decision)
        if source not in self.peer.addresses:
            decision = Decision(Verdict.REFUSE, "", f"its source, {source}, is not the peer's")
            rule = ""
        elif decision.verdict is Verdict.REFUSE:
            pass
        elif beyond := self._beyond(policy.limits):
            decision, rule = Decision(Verdict.REFUSE, "", beyond), ""
        if decision.names:
            flow.name = decision.names[-1]
        flow.rule, flow.names, flow.checked = decision.rule, decision.names, decision.checked
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

    def explained(self, flow: Flow, decision: Decision) -> tuple[Decision, str]:
        """``decision`` with what is known beside it; and the rule that would allow what no rule
        allows, or that what is learned lacks."""
        policy = self.peer.policy
        kept = policy.kept(flow.address)
        if decision.rule == LEARNED:
            return decision, learned_rule(flow, "" if kept else flow.name)
        if decision.rule or decision.verdict is Verdict.ALLOW:
            return decision, ""
        for name, since in reversed(self.names.ended(flow.address, time.monotonic()).items()):
            again = policy.evaluate(flow.address, flow.port, flow.protocol, (name,))
            if again.verdict is Verdict.ALLOW:
                flow.name = name
                why = f"the answer for {name} ended {since:.0f} s ago, and it was not asked again"
                return replace(decision, reason=why), ""
        if kept:
            return decision, self._service_for(flow)
        return decision, mend(flow.protocol, flow.port, flow.name)

    def _service_for(self, flow: Flow) -> str:
        """The option that puts a service at an address of the tunnel's that nobody has."""
        address, length = flow.address, 24 if flow.address.version == 4 else 64
        tunnels = [
            addresses.network(f"{own}/{length}", strict=False)
            for own in self._config.addresses
            if own.version == address.version
        ]
        among = any(address in tunnel for tunnel in tunnels)
        if flow.protocol != "tcp" or not among or address in self._config.inside:
            return ""
        where = f"[{address}]" if address.version == 6 else str(address)
        return f"--service {where}:{flow.port}=HOST:PORT"

    async def prolong(self, others: Iterable[Flow] = ()) -> None:
        """What open flows are allowed by leads on; ``others`` are flows not joined here."""
        now = time.monotonic()
        flows = [*(flow for flow, _ in self._open.values()), *others]
        leads = dict.fromkeys((name, flow.address) for flow in flows for name in flow.names)
        due = [lead for lead in leads if self.names.short(*lead, now)]
        for name, address in due:
            self.names.learn(name, (address,), 0, now)
        if due and self._learned is not None:
            await self._learned(tuple((name, address, 0.0) for name, address in due))

    def _name_refused(self, name: str, reason: str) -> None:
        own = self._config.address
        flow = Flow(next(_NUMBERS), self.peer.name, "dns", own, DNS_PORT, name)
        rule = mend("dns", DNS_PORT, name) if reason == "no rule names it" else ""
        self.log.tell({**flow.event("flow", Verdict.REFUSE.value, reason), "mend": rule})

    def _name_failed(self, name: str, reason: str) -> None:
        """Told once a name, until it is found."""
        if name not in self._failed and len(self._failed) < _MOST_FAILED:
            self._failed.add(name)
            own = self._config.address
            flow = Flow(next(_NUMBERS), self.peer.name, "dns", own, DNS_PORT, name)
            self.log.tell({**flow.event("flow", FAILED, reason), "mend": ""})

    async def _name_learned(self, name: str, addresses: tuple[Address, ...], ttl: float) -> None:
        self._failed.discard(name)
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

        A flow that is refused after it has begun is told as refused; one whose target, or whose
        service, could not be reached is told so by its end.
        """
        with self.counted(flow, decision) as counted:
            verdict, reason = Verdict.ALLOW.value, _CUT_OFF
            if not counted:
                work.close()
                return reason
            try:
                reason = await work
            except Refused as refused:
                verdict, reason = Verdict.REFUSE.value, str(refused)
                host, checked = refused.host, not refused.unchecked
                asked = host if checked else flow.name
                rule = mend(flow.protocol, flow.port, asked, checked=checked)
                event = flow.event("flow", verdict, reason)
                self.log.tell({**event, "host": host, "mend": rule})
            except NotReached as error:
                verdict, reason = FAILED, str(error)
            except OSError as error:
                reason = f"broken: {error}"
            finally:
                self.log.tell(flow.end(verdict, reason))
        return reason

    async def pace(self, count: int) -> None:
        """Wait until so many bytes may move."""
        if self._bytes is not None and (wait := self._bytes.wait(time.monotonic(), count)) > 0:
            await asyncio.sleep(wait)
