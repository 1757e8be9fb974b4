"""Admission: what one peer may do is decided, reported and enforced here, the same in each engine.

An engine passes the facts of a flow and does what the decision says. The policy decides, over the
names that lead to the flow's address at this moment. The limits of the peer are enforced, and each
decision is an event. The flows that this process itself proxies are known here, so that another
policy, or the removal of the peer, ends them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from wgcell.gateway.dns.cache import DnsCache, Resolved
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.flow import Flow, hint, learned_rule
from wgcell.gateway.model.policy import LEARNED, Decision, Limits
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.events import EventLog, Report, flow_end, flow_event
from wgcell.gateway.proxy.splice import CHUNK, FlowRefused, Unreachable
from wgcell.gateway.words import FAILED
from wgcell.net import addresses
from wgcell.net.addresses import Address
from wgcell.net.bucket import TokenBucket

if TYPE_CHECKING:
    from wgcell.gateway.dns.server import Nameserver

__all__ = ["CUT_OFF", "DNS_PORT", "MOST_FLOWS", "Admission", "OnResolved"]

DNS_PORT = 53
MOST_FLOWS = 3500
"""Flows that this process proxies for all peers together. Each takes two descriptors; the rest of
the 8,192 that `gateway.__main__` allows are for everything else."""
_NUMBERS = itertools.count(1)
CUT_OFF = "cut off"
"""The reason of the end of a flow that another policy, or the gateway's end, has ended."""
_MOST_FAILED = 512
"""Names that were not found, each reported once."""

OnResolved = Callable[[tuple[Resolved, ...]], Awaitable[None]]
"""Gets the names and addresses of an answer. The answer leaves when the call has returned."""


class Admission:
    """The admission of one peer."""

    _all_open = 0
    """Flows open in all admissions of this process: they share its descriptors."""

    def __init__(
        self,
        config: GatewayConfig,
        peer: Peer,
        report: Report,
        on_resolved: OnResolved | None = None,
        most_flows: int = MOST_FLOWS,
    ) -> None:
        """``most_flows`` bounds the open flows of all peers together."""
        self.peer = peer
        self.events = EventLog(peer.name, report)
        self.cache = DnsCache()
        self._config = config
        self._on_resolved = on_resolved
        self._most_flows = most_flows
        self._open: dict[asyncio.Task[None], tuple[Flow, Decision]] = {}
        self._closed = False
        self._failed: set[str] = set()
        self._set_limits()

    def warm(self) -> None:
        """Load the modules that a peer's first query would wait for."""
        _ = self.nameserver

    def _set_limits(self) -> None:
        limits = self.peer.policy.limits
        self._new = TokenBucket(limits.flows_per_second, limits.flows)
        rate = limits.bytes_per_second
        self._bytes = TokenBucket(rate, max(rate, CHUNK)) if rate else None

    @cached_property
    def nameserver(self) -> Nameserver:
        """The peer's resolver. It is made at the first use: a start need not wait for dnspython."""
        from wgcell.gateway.dns.server import Nameserver
        from wgcell.gateway.dns.upstream import Upstream, host_resolvers

        upstream = Upstream(self._config.resolver or host_resolvers())
        return Nameserver(self.peer.policy, upstream, self)

    def change(self, peer: Peer) -> int:
        """Set another policy for the same peer. Returns how many flows it ends.

        Flows that it does not allow end now, and queries that wait are answered by it.
        """
        if peer.policy.limits != self.peer.policy.limits:
            self._set_limits()
        self.peer = peer
        known: Nameserver | None = vars(self).get("nameserver")
        if known is not None:
            known.change(peer.policy)
        ended = 0
        for task, (flow, decision) in list(self._open.items()):
            if self._is_to_resolver(flow):
                continue
            again = self.decide_again(flow)
            if again.action is Action.REFUSE or again.target != decision.target:
                ended += task.cancel()
            flow.rule, flow.names, flow.checked = again.rule, again.names, again.checked
        return ended

    def _is_to_resolver(self, flow: Flow) -> bool:
        return flow.port == DNS_PORT and flow.address in self._config.addresses

    def decide_again(self, flow: Flow) -> Decision:
        """What the policy says of an open flow. It is about the names that have allowed the flow,
        or if a rule for the address has, about those that lead there."""
        names = flow.names or self.cache.names(flow.address, time.monotonic())
        return self.peer.policy.evaluate(flow.address, flow.port, flow.protocol, names)

    def end_flows(self) -> list[asyncio.Task[None]]:
        """Cancel every open flow and report the summary. Returns the tasks of the flows."""
        for task in self._open:
            task.cancel()
        self.events.summarise()
        return list(self._open)

    def close(self) -> list[asyncio.Task[None]]:
        """`end_flows`, and admit none any more."""
        self._closed = True
        return self.end_flows()

    # Decisions.

    def new_flow(self, protocol: str, address: Address, port: int) -> Flow:
        """The facts of a flow that begins now."""
        names = self.cache.names(address, time.monotonic())
        name = names[-1] if names else ""
        return Flow(next(_NUMBERS), self.peer.name, protocol, address, port, name)

    def decide(self, flow: Flow, source: Address) -> Decision:
        """Whether ``flow``, from the address ``source``, may begin; reported before it does."""
        policy = self.peer.policy
        names = self.cache.names(flow.address, time.monotonic())
        decision = policy.evaluate(flow.address, flow.port, flow.protocol, names)
        decision, rule = self.explain(flow, decision)
        if source not in self.peer.addresses:
            decision = Decision(Action.REFUSE, "", f"its source, {source}, is not the peer's")
            rule = ""
        elif decision.action is Action.REFUSE:
            pass
        elif beyond := self._beyond(policy.limits):
            decision, rule = Decision(Action.REFUSE, "", beyond), ""
        if decision.names:
            flow.name = decision.names[-1]
        flow.rule, flow.names, flow.checked = decision.rule, decision.names, decision.checked
        self.events.add(flow_event(flow, decision.action.value, decision.reason, hint=rule))
        return decision

    def _beyond(self, limits: Limits) -> str:
        """The limit that a new flow would exceed, in words; empty if there is none."""
        if len(self._open) >= limits.flows:
            return f"{limits.flows} flows are open already"
        if Admission._all_open >= self._most_flows:
            return f"{self._most_flows} flows of all peers are open already"
        if not self._new.take(time.monotonic()):
            return f"more than {limits.flows_per_second} new flows a second"
        return ""

    def may_be_local(self, flow: Flow) -> bool:
        """Whether ``flow`` may lead to this very machine: it is to a service, or a rule names its
        address."""
        policy = self.peer.policy
        place = flow.address, flow.port
        services = {(service.address, service.port) for service in policy.services}
        return place in services or policy.listed(flow.address)

    def explain(self, flow: Flow, decision: Decision) -> tuple[Decision, str]:
        """``decision`` with a better reason where one is known, and the hint.

        The hint is the rule that would allow a flow that no rule allows, or the rule that the
        policy being learned lacks; empty if there is none.
        """
        policy = self.peer.policy
        protected = policy.protection(flow.address)
        if decision.rule == LEARNED:
            return decision, learned_rule(flow, "" if protected else flow.name)
        if decision.rule or decision.action is Action.ALLOW:
            return decision, ""
        for name, since in reversed(self.cache.expired(flow.address, time.monotonic()).items()):
            again = policy.evaluate(flow.address, flow.port, flow.protocol, (name,))
            if again.action is Action.ALLOW:
                flow.name = name
                why = f"the answer for {name} ended {since:.0f} s ago, and it was not asked again"
                return replace(decision, reason=why), ""
        if protected:
            return decision, self._service_hint(flow)
        return decision, hint(flow.protocol, flow.port, flow.name)

    def _service_hint(self, flow: Flow) -> str:
        """The option that puts a service at an unused address of the tunnel."""
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

    # Names. `dns.server.Nameserver` calls these.

    async def extend(self, others: Iterable[Flow] = ()) -> None:
        """Extend the cached answers that open flows use; ``others`` are flows not proxied here."""
        now = time.monotonic()
        flows = [*(flow for flow, _ in self._open.values()), *others]
        used = dict.fromkeys((name, flow.address) for flow in flows for name in flow.names)
        due = [pair for pair in used if self.cache.expires_soon(*pair, now)]
        for name, address in due:
            self.cache.add(name, (address,), 0, now)
        if due and self._on_resolved is not None:
            await self._on_resolved(tuple((name, address, 0.0) for name, address in due))

    def name_refused(self, name: str, reason: str) -> None:
        """Report a refused query. ``name`` is empty if it was no query."""
        flow = Flow(next(_NUMBERS), self.peer.name, "dns", self._config.address, DNS_PORT, name)
        rule = hint("dns", DNS_PORT, name) if reason == "no rule names it" else ""
        self.events.add(flow_event(flow, Action.REFUSE.value, reason, hint=rule))

    def name_failed(self, name: str, reason: str) -> None:
        """Report an allowed name without an answer, once until it has one."""
        if name not in self._failed and len(self._failed) < _MOST_FAILED:
            self._failed.add(name)
            own = self._config.address
            flow = Flow(next(_NUMBERS), self.peer.name, "dns", own, DNS_PORT, name)
            self.events.add(flow_event(flow, FAILED, reason))

    async def name_resolved(self, name: str, addresses: tuple[Address, ...], ttl: float) -> None:
        """Remember an answer before it leaves."""
        self._failed.discard(name)
        self.cache.add(name, addresses, ttl, time.monotonic())
        if self._on_resolved is not None:
            await self._on_resolved(tuple((name, address, ttl) for address in addresses))

    # Flows that this process proxies.

    @contextmanager
    def counted(self, flow: Flow, decision: Decision) -> Iterator[bool]:
        """Counts the current task as an open flow meanwhile; false if there is no room for it."""
        task = asyncio.current_task()
        full = len(self._open) >= self.peer.policy.limits.flows
        if task is None or self._closed or full or Admission._all_open >= self._most_flows:
            yield False
            return
        self._open[task] = flow, decision
        Admission._all_open += 1
        try:
            yield True
        finally:
            del self._open[task]
            Admission._all_open -= 1

    async def carry(
        self, flow: Flow, decision: Decision, work: Coroutine[object, None, str]
    ) -> str:
        """Run ``work``, which returns the reason of its end, as an open flow; report and return it.

        A flow that is refused after it has begun is reported as refused. The end of a flow whose
        target or service could not be reached says so.
        """
        with self.counted(flow, decision) as counted:
            verdict, reason = Action.ALLOW.value, CUT_OFF
            if not counted:
                work.close()
                return reason
            try:
                reason = await work
            except FlowRefused as refused:
                verdict, reason = Action.REFUSE.value, str(refused)
                host, checked = refused.host, not refused.unchecked
                asked = host if checked else flow.name
                rule = hint(flow.protocol, flow.port, asked, checked=checked)
                self.events.add(flow_event(flow, verdict, reason, hint=rule, host=host))
            except Unreachable as error:
                verdict, reason = FAILED, str(error)
            except OSError as error:
                reason = f"broken: {error}"
            finally:
                self.events.add(flow_end(flow, verdict, reason))
        return reason

    async def throttle(self, count: int) -> None:
        """Wait until ``count`` bytes may move."""
        if self._bytes is not None and (wait := self._bytes.wait(time.monotonic(), count)) > 0:
            await asyncio.sleep(wait)
