"""The embedded engine's server of one peer, and the peer's flows.

mitmproxy_rs terminates WireGuard and TCP/IP, and hands over each flow as a stream. It accepts any
source address from any peer of a server, and a peer can end a server (a SYN to port 0 does). So
each peer has a server and a port of its own: everything that this server receives is this peer's,
and what the peer breaks is its own.

An allowed flow is proxied to an ordinary socket of this process. A refused flow is ended at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import mitmproxy_rs

from wgcell.gateway import words
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.policy import Decision
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.admission import DNS_PORT, Admission
from wgcell.gateway.peer.events import SUMMARY_EVERY, Report
from wgcell.gateway.proxy.splice import CHUNK, LocalAddress, Unreachable
from wgcell.gateway.proxy.tcp import Splice, connect
from wgcell.gateway.proxy.udp import UDP_IDLE, splice_datagrams
from wgcell.gateway.tasks import Tasks
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["PeerServer"]

DNS_IDLE = 10.0
"""Seconds without a query after which a peer's TCP connection to the resolver ends."""
SILENT_REFUSAL = 0.5
"""Seconds after which a refused TCP stream is ended, if the workload sends nothing."""
MOST_REFUSED = 256
"""Refused streams that wait at a time; beyond it they are ended without a wait."""
RESTART_AFTER = 1.0
"""Seconds from the unexpected end of a server to its restart."""


class PeerServer:
    """The WireGuard server of one peer. Its events go to ``report``."""

    def __init__(self, config: GatewayConfig, peer: Peer, report: Report) -> None:
        self._config = config
        self._report = report
        self._admission = Admission(config, peer, report)
        self._tasks = Tasks()
        self._refused = 0
        self._server: mitmproxy_rs.wireguard.WireGuardServer
        self._closing = False
        self.place = ("", 0)

    @property
    def peer(self) -> Peer:
        """The peer, with its present policy."""
        return self._admission.peer

    # Start and end.

    async def open(self) -> None:
        """Listen. Raises OSError if this machine has no such address, or the port is taken."""
        await self._listen((self._config.listen[0], self.peer.port))
        self._tasks.spawn(self._keep_running())
        self._tasks.spawn(self._summaries())

    def warm(self) -> None:
        """Load the modules that a peer's first query would wait for."""
        self._admission.warm()

    async def _listen(self, place: tuple[str, int]) -> None:
        self._server = await mitmproxy_rs.wireguard.start_wireguard_server(
            *place, self._config.private_key, [self.peer.public_key], self._tcp, self._udp
        )
        host, port = self._server.getsockname()[:2]
        self.place = (str(host), int(port))

    async def _keep_running(self) -> None:
        """Restart a server that its peer has broken. WireGuard sessions recover by themselves."""
        while True:
            await self._server.wait_closed()
            if self._closing:
                return
            now = round(time.time(), 3)
            self._report(words.ServerBroken(now, self.peer.name, RESTART_AFTER))
            self._admission.end_flows()
            await asyncio.sleep(RESTART_AFTER)
            with suppress(OSError):
                await self._listen(self.place)

    async def _summaries(self) -> None:
        while True:
            await asyncio.sleep(SUMMARY_EVERY)
            self._admission.events.summarise()
            await self._admission.extend()

    async def close(self) -> int:
        """Cut the peer off: its flows end now, and nothing more is received from it. Returns how
        many flows."""
        self._closing = True
        self._server.close()
        flows = self._admission.close()
        await self._tasks.cancel()
        await asyncio.gather(*flows, return_exceptions=True)
        await self._server.wait_closed()
        self._admission.events.summarise()
        return len(flows)

    def change(self, peer: Peer) -> int:
        """Set another policy for the same peer. Flows that it does not allow end now; returns how
        many."""
        return self._admission.change(peer)

    def _flow_of(self, stream: mitmproxy_rs.Stream, protocol: str) -> tuple[Flow, Address]:
        host, port = stream.get_extra_info("sockname")[:2]
        source = addresses.of_socket(stream.get_extra_info("peername")[0])
        return self._admission.new_flow(protocol, addresses.of_socket(host), int(port)), source

    # TCP.

    async def _tcp(self, stream: mitmproxy_rs.Stream) -> None:
        try:
            flow, source = self._flow_of(stream, "tcp")
            if flow.port == DNS_PORT and flow.address in self._config.addresses:
                await self._dns_over_tcp(stream, flow)
                return
            decision = self._admission.decide(flow, source)
            if decision.action is Action.ALLOW:
                work = self._proxy_tcp(stream, flow, decision)
                await self._admission.carry(flow, decision, work)
            else:
                await self._refuse(stream)
        except OSError:
            # Either side may end a connection at any moment. That ends the flow; it is no fault.
            pass
        finally:
            await _close(stream)

    async def _refuse(self, stream: mitmproxy_rs.Stream) -> None:
        """Wait until the workload's side of the three-way handshake is most likely over.

        This process gets a stream before that, and mitmproxy_rs 0.11.1 loses an end that comes
        before the workload's ACK (tried: 12 of 13 connections hung). The stream's first byte proves
        the ACK. A stream without a byte is ended after `SILENT_REFUSAL`. A reset is impossible: the
        TCP of mitmproxy_rs sends none.
        """
        if self._refused >= MOST_REFUSED:
            return
        self._refused += 1
        try:
            async with asyncio.timeout(SILENT_REFUSAL):
                await stream.read(1)
        except TimeoutError:
            pass
        finally:
            self._refused -= 1

    async def _proxy_tcp(self, stream: mitmproxy_rs.Stream, flow: Flow, decision: Decision) -> str:
        try:
            target = await connect(flow, decision, self._admission.may_be_local(flow))
        except (Unreachable, LocalAddress):
            await self._refuse(stream)
            raise
        # A target may end at once: see `_refuse`.
        return await Splice(stream, flow, self._admission.throttle, SILENT_REFUSAL).run(target)

    # UDP and DNS.

    async def _udp(self, stream: mitmproxy_rs.Stream) -> None:
        try:
            flow, source = self._flow_of(stream, "udp")
            if flow.port == DNS_PORT and flow.address in self._config.addresses:
                await self._dns_over_udp(stream)
                return
            decision = self._admission.decide(flow, source)
            if decision.action is Action.ALLOW:
                local, throttle = self._admission.may_be_local(flow), self._admission.throttle
                work = splice_datagrams(stream, flow, local, throttle)
                await self._admission.carry(flow, decision, work)
        except OSError:
            # As for TCP: an ICMP error from the target ends the flow.
            pass
        finally:
            await _close(stream)

    async def _dns_over_udp(self, stream: mitmproxy_rs.Stream) -> None:
        """Answer each query as soon as possible: a slow name must not hold up the next."""
        while raw := await _read_within(stream, UDP_IDLE):
            self._tasks.spawn(self._answer(stream, raw))

    async def _answer(self, stream: mitmproxy_rs.Stream, raw: bytes) -> None:
        if answer := await self._admission.nameserver.reply(raw):
            with suppress(OSError):
                stream.write(answer)

    async def _dns_over_tcp(self, stream: mitmproxy_rs.Stream, flow: Flow) -> None:
        """Queries one after the other, each behind its length of two bytes (RFC 7766)."""
        data = b""
        with self._admission.counted(flow, Decision(Action.ALLOW, "", "")) as counted:
            if not counted:
                await self._refuse(stream)
            while counted and (raw := await _read_within(stream, DNS_IDLE)):
                data += raw
                while len(data) >= 2 and len(data) >= (size := int.from_bytes(data[:2], "big")) + 2:
                    answer = await self._admission.nameserver.reply(data[2 : 2 + size], tcp=True)
                    if not answer:
                        return
                    stream.write(len(answer).to_bytes(2, "big") + answer)
                    data = data[2 + size :]


async def _read_within(stream: mitmproxy_rs.Stream, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await stream.read(CHUNK)
    except TimeoutError:
        return b""


async def _close(stream: mitmproxy_rs.Stream) -> None:
    with suppress(OSError):  # the tunnel's side may have closed it first
        stream.close()  # type: ignore[no-untyped-call]
        await stream.wait_closed()
