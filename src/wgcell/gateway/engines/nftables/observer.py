"""Reports the flows that the kernel decides and forwards: their begin by NFLOG, their end by
conntrack."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable

from wgcell.gateway.engines.nftables import netlink
from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.sets import Peers
from wgcell.gateway.engines.nftables.table import LOG_GROUP, PREFIX
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.policy import LEARNED
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.admission import CUT_OFF
from wgcell.gateway.peer.events import EventLog, flow_end, flow_event

__all__ = ["FlowObserver"]

_MOST_OPEN = 4096
"""Flows of the kernel whose end is awaited."""
_SWEEP_EVERY = 2.0
"""Seconds between two sweeps for ended flows, and summaries of events that were not reported."""
_AT_ONCE = 64
"""Reads before the other sockets' turn."""


class FlowObserver:
    """Hears the kernel, and reports to the admissions of ``peers``."""

    def __init__(self, host: HostContext, peers: Peers) -> None:
        self._host = host
        self._peers = peers
        self._open: dict[tuple[object, ...], tuple[Flow, EventLog]] = {}
        self._cut: set[tuple[object, ...]] = set()
        """Open flows that the kernel was told to forget."""
        self._sockets: tuple[socket.socket, ...] = ()
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen to the kernel. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._sockets = log, ends = self._host.run(netlink.open_sockets, LOG_GROUP)
        for sock in (log, ends):
            loop.add_reader(sock, self._receive, sock)
        self._sweeping = asyncio.create_task(self._sweep(ends))

    def close(self) -> None:
        """Report nothing more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = ()

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                raw = sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: messages were lost
            for found in netlink.parse(raw):
                if isinstance(found, netlink.FirstPacket):
                    self._began(found)
                else:
                    self._ended(found)

    def _began(self, packet: netlink.FirstPacket) -> None:
        served = self._peers.get(packet.source)
        begin, _, rest = packet.prefix.partition(":")
        if served is None or begin != PREFIX:
            return
        verdict, _, rest = rest.partition(":")
        admission, number = served.admission, rest.rpartition(":")[2]
        policy = admission.peer.policy
        names = admission.cache.names(packet.address, time.monotonic())
        flow = admission.new_flow(packet.protocol, packet.address, packet.port)
        # The kernel says which rule matched, but not why. The policy is asked again for the reason.
        again = policy.evaluate(packet.address, packet.port, packet.protocol, names)
        rule, reason = "", "a rule allows it"
        if verdict == "allow":
            if number.isdigit() and int(number) < len(policy.rules):
                flow.rule = policy.rules[int(number)].text
            elif number == LEARNED:
                flow.rule, reason = again.rule, again.reason
                _, rule = admission.explain(flow, again)
            flow.names = again.names
            if len(self._open) < _MOST_OPEN:
                self._open[_key(packet)] = flow, admission.events
        elif again.action is Action.ALLOW:
            reason = "too many flows, or too many new ones a second"
        else:
            again, rule = admission.explain(flow, again)
            flow.rule, reason = again.rule, again.reason
        admission.events.add(flow_event(flow, verdict, reason, hint=rule))

    def allows(self, flow: netlink.KernelFlow) -> bool:
        """Whether the policy of its peer allows a flow that the kernel forwards.

        A flow whose begin was seen is about the names that it had then. Of any other, every name
        that has led there counts: an answer may end before the flows that it has opened.
        """
        served = self._peers.get(flow.source)
        if served is None:
            return False
        admission, now = served.admission, time.monotonic()
        known, _ = self._open.get(_key(flow), (None, None))
        if known is not None and known.names:
            names = known.names
        else:
            expired = tuple(admission.cache.expired(flow.address, now))
            names = (*expired, *admission.cache.names(flow.address, now))
        policy = admission.peer.policy
        decision = policy.evaluate(flow.address, flow.port, flow.protocol, names)
        return decision.action is Action.ALLOW

    def cut(self, flows: Iterable[netlink.KernelFlow]) -> None:
        """These are cut: their end, of which the kernel reports, is for that reason."""
        for flow in flows:
            if _key(flow) in self._open:
                self._cut.add(_key(flow))

    def _ended(self, end: netlink.FlowDestroyed) -> None:
        flow, events = self._open.pop(_key(end), (None, None))
        if flow is not None and events is not None:
            flow.bytes_out, flow.bytes_in = end.bytes_out, end.bytes_in
            reason = CUT_OFF if _key(end) in self._cut else "closed"
            events.add(flow_end(flow, "allow", reason))
        self._cut.discard(_key(end))

    async def _sweep(self, ends: socket.socket) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY)
            with contextlib.suppress(OSError):
                netlink.sweep(ends)
            for served in dict.fromkeys(self._peers.values()):
                served.admission.events.summarise()
                mine = served.admission.peer.name
                flows = (flow for flow, _ in self._open.values() if flow.peer == mine)
                await served.admission.extend(flows)


def _key(
    flow: netlink.FirstPacket | netlink.FlowDestroyed | netlink.KernelFlow,
) -> tuple[object, ...]:
    return flow.source, flow.source_port, flow.address, flow.port, flow.protocol
