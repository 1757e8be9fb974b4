"""Proxies the TCP flows that the kernel hands over: to services, and redirected ones.

The order of a flow's steps: its SYN is pending (see `pending`); the admission decides; the process
connects to the target; the SYN is released; the kernel completes the peer's handshake, and the
connection is accepted; both are spliced (see `proxy.tcp`).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.pending import PendingSyn, PendingSyns
from wgcell.gateway.engines.nftables.sets import Peers
from wgcell.gateway.engines.nftables.table import HOLD_GROUP
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.policy import Decision
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.admission import Admission
from wgcell.gateway.proxy.splice import Connection, Unreachable, abort, reset
from wgcell.gateway.proxy.tcp import Splice, connect
from wgcell.gateway.tasks import Tasks
from wgcell.net import addresses

__all__ = ["TAKES_REST", "TcpFlows", "finish"]

TAKES_REST = 30.0
"""Seconds that a peer may take for the last bytes after both ends have ended."""


class TcpFlows:
    """The TCP flows of all peers that this process proxies."""

    def __init__(self, host: HostContext, peers: Peers) -> None:
        self._host = host
        self._peers = peers
        self._tasks = Tasks()
        self._pending: PendingSyns | None = None

    def start(self) -> None:
        """Receive copies of SYNs. Raises OSError."""
        self._pending = self._host.run(PendingSyns, HOLD_GROUP)
        asyncio.get_running_loop().add_reader(self._pending, self._receive, self._pending)

    def close(self) -> None:
        """Receive nothing more. The flows end with their admissions."""
        if self._pending is not None:
            asyncio.get_running_loop().remove_reader(self._pending)
            self._pending.close()

    def _receive(self, pending: PendingSyns) -> None:
        for syn in pending.read():
            self._tasks.spawn(self._handle(syn))

    async def _handle(self, syn: PendingSyn) -> None:
        packet = syn.packet
        served = self._peers.get(packet.source)
        with syn:
            if served is not None:
                admission = served.admission
                flow = admission.new_flow("tcp", packet.address, packet.port)
                decision = admission.decide(flow, packet.source)
                if decision.action is Action.ALLOW:
                    work = self._proxy(syn, flow, decision, admission)
                    with contextlib.suppress(asyncio.CancelledError):  # by another policy
                        await admission.carry(flow, decision, work)

    async def _proxy(
        self, syn: PendingSyn, flow: Flow, decision: Decision, admission: Admission
    ) -> str:
        """The reason of the flow's end. Raises Unreachable, FlowRefused and OSError."""
        try:
            target = await connect(flow, decision, admission.may_be_local(flow))
        except Unreachable as error:
            syn.reject(reset=error.reset)
            raise
        try:
            connection = await syn.release()
        except TimeoutError:
            return "the peer did not complete its handshake"
        finally:
            if not syn.accepted:
                target[1].transport.abort()
        return await finish(Splice(_Stream(*connection), flow), target, connection)

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The kernel has accepted a connection, whose SYN was released."""
        peer = writer.get_extra_info("peername")
        if peer is not None and self._pending is not None:
            source = addresses.of_socket(peer[0]), int(peer[1])
            with contextlib.suppress(OSError):  # it may have ended already
                sock, sockname = map(writer.get_extra_info, ("socket", "sockname"))
                destination = self._host.destination(sock, sockname[:2])
                syn = self._pending.find(*source, *destination)
                if syn is not None and syn.accept((reader, writer)):
                    return  # `_proxy` ends the connection
        reset(writer)


class _Runs(Protocol):
    async def run(self, target: Connection) -> str: ...


async def finish(
    splice: _Runs, target: Connection, connection: Connection, *, takes_rest: float = TAKES_REST
) -> str:
    """Run ``splice`` until the peer has taken the last bytes, too; for so long the flow is open.

    The peer may take ``takes_rest`` seconds. Returns the reason of the end.
    """
    _, writer = connection
    ended = ""
    try:
        ended = await splice.run(target)
        if ended == "closed":
            writer.close()
            with contextlib.suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(takes_rest):
                    await writer.wait_closed()
    finally:
        if ended == "closed":
            abort(writer)
        else:
            reset(writer)
    return ended


class _Stream:
    """An accepted connection as a `proxy.splice.Stream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.read, self.write = reader.read, writer.write
        self.drain, self.write_eof = writer.drain, writer.write_eof
