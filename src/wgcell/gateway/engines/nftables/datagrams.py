"""Proxies the UDP flows that TPROXY redirects.

Each flow has a connected socket that bears the target's address. Only datagrams that come before
this socket exists arrive at the one socket for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from wgcell.gateway.engines.nftables import transparent
from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.sets import Peers
from wgcell.gateway.engines.nftables.transparent import Ends
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.events import flow_end
from wgcell.gateway.proxy.icmp import Why, unreachable
from wgcell.gateway.proxy.splice import LocalAddress, Unreachable
from wgcell.gateway.proxy.udp import splice_datagrams
from wgcell.gateway.tasks import Tasks
from wgcell.net import addresses

__all__ = ["UdpFlows"]

_LARGEST = 65535
_AT_ONCE = 64
"""Datagrams read before the other sockets' turn."""
_MOST_QUEUED = 1 << 18
"""Bytes of one flow's datagrams that wait to be sent, each with its overhead."""
_OVERHEAD = 64


class UdpFlows:
    """The UDP flows of all peers."""

    def __init__(self, host: HostContext, peers: Peers) -> None:
        self._host = host
        self._peers = peers
        self._tasks = Tasks()
        self._flows: dict[Ends, _PeersEnd] = {}
        self._sockets: list[socket.socket] = []
        self._icmp: dict[socket.AddressFamily, socket.socket] = {}

    def start(self) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        for family in transparent.families():
            sock = self._host.run(transparent.redirect_socket, family, socket.SOCK_DGRAM)
            loop.add_reader(sock, self._receive, sock)
            self._sockets.append(sock)
            self._icmp[family] = self._host.run(transparent.icmp_socket, family)

    def close(self) -> None:
        """Receive nothing more. The flows end with their admissions."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        for sock in self._icmp.values():
            sock.close()

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, control, _, source = sock.recvmsg(_LARGEST, transparent.CONTROL_SIZE)
            except OSError:
                return
            # Connected to port 0 a socket would receive from any port of the peer.
            if source[1] and (target := transparent.target_of(control)) is not None:
                ends = (source[0], source[1]), target
                family = socket.AddressFamily(sock.family)
                flow = self._flows.get(ends) or self._begin(ends, family)
                if flow is not None:
                    flow.add(data)

    def _begin(self, ends: Ends, family: socket.AddressFamily) -> _PeersEnd | None:
        source = addresses.of_socket(ends[0][0])
        served = self._peers.get(source)
        if served is None:
            return None
        admission = served.admission
        flow = admission.new_flow("udp", addresses.of_socket(ends[1][0]), ends[1][1])
        decision = admission.decide(flow, source)
        if decision.action is not Action.ALLOW:
            # The kernel let the flow pass; a limit that only this process knows refused it.
            self._answer(ends, Why.PROHIBITED)
            return None
        try:
            stream = _PeersEnd(self._host.run(transparent.connected_socket, family, ends))
        except OSError as error:
            self._answer(ends, Why.PROHIBITED)
            admission.events.add(flow_end(flow, "allow", f"broken: {error}"))
            return None
        self._flows[ends] = stream

        async def work() -> str:
            try:
                local = admission.may_be_local(flow)
                return await splice_datagrams(stream, flow, local, endless=True)
            except LocalAddress:
                self._answer(ends, Why.PROHIBITED)
                raise
            except (Unreachable, OSError):
                self._answer(ends, Why.PORT)
                raise

        async def carried() -> None:
            try:
                await admission.carry(flow, decision, work())
            finally:
                del self._flows[ends]
                stream.close()

        self._tasks.spawn(carried())
        return stream

    def _answer(self, ends: Ends, why: Why) -> None:
        source, target = ends
        raw = self._icmp[socket.AF_INET6 if ":" in source[0] else socket.AF_INET]
        with contextlib.suppress(OSError):
            raw.sendto(unreachable(source, target, why), (source[0], 0))


class _PeersEnd:
    """The peer's end of a UDP flow, as a `proxy.splice.Stream`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queued = 0
        asyncio.get_running_loop().add_reader(sock, self._receive)

    def _receive(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                self.add(self._sock.recv(_LARGEST))
            except OSError:
                return

    def add(self, data: bytes) -> None:
        """Queue a datagram; it is lost, as UDP loses datagrams, if too many wait."""
        if self._queued + len(data) + _OVERHEAD <= _MOST_QUEUED:
            self._queued += len(data) + _OVERHEAD
            self._queue.put_nowait(data)

    async def read(self, _: int, /) -> bytes:
        data = await self._queue.get()
        self._queued -= len(data) + _OVERHEAD
        return data

    def write(self, data: bytes, /) -> None:
        with contextlib.suppress(OSError):
            self._sock.send(data)

    async def drain(self) -> None:
        """Nothing waits: a datagram that the kernel does not take is lost."""

    def write_eof(self) -> None:
        """UDP has no end of a stream."""

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
