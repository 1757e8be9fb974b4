"""One peer's way through the embedded engine: a WireGuard server of its own, and its flows.

mitmproxy_rs terminates WireGuard and TCP/IP and hands over each flow as a stream. It believes any
source address of any peer of a server, and a peer can end a server (a SYN to port 0 does): so each
peer has a server, and a port, of its own. What comes through this door is this peer's, whatever it
says, and what it breaks is its own.

An allowed flow is joined to an ordinary socket of this process; a refused one is ended at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import mitmproxy_rs

from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.policy import Decision
from wgcell.gateway.model.rules import Verdict
from wgcell.gateway.peer.admission import DNS_PORT, Gate
from wgcell.gateway.peer.events import SUMMARY_EVERY, Flow, Report
from wgcell.gateway.proxy.tcp import (
    CHUNK,
    UDP_IDLE,
    Joining,
    NotReached,
    OwnAddress,
    join_datagrams,
    reach,
)
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["Door"]

DNS_IDLE = 10.0
SILENT_REFUSAL = 0.5
"""Seconds until a refused TCP stream on which the workload says nothing is ended."""
MOST_REFUSED = 256
"""Refused streams that are waited for at a time; beyond it they are ended without a wait."""
REOPEN_AFTER = 1.0
"""Seconds from a server's unexpected end to its successor."""


class Door:
    """One peer's server. Opened and closed by the engine; its events go to ``report``."""

    def __init__(self, config: GatewayConfig, peer: Peer, report: Report) -> None:
        self._config = config
        self._report = report
        self._gate = Gate(config, peer, report)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0
        self._server: Any = None
        self._closing = False
        self.place = ("", 0)

    @property
    def peer(self) -> Peer:
        """Whose it is, with the policy of now."""
        return self._gate.peer

    # Opening and closing.

    async def open(self) -> None:
        """Listen. Raises OSError if the address is not there or its port is taken."""
        await self._listen((self._config.listen[0], self.peer.port))
        self._spawn(self._keep_open())
        self._spawn(self._summaries())

    def warm(self) -> None:
        """Load what a peer's first question would wait for."""
        self._gate.warm()

    async def _listen(self, place: tuple[str, int]) -> None:
        self._server = await mitmproxy_rs.wireguard.start_wireguard_server(
            *place, self._config.private_key, [self.peer.public_key], self._tcp, self._udp
        )
        host, port = self._server.getsockname()[:2]
        self.place = (str(host), int(port))

    async def _keep_open(self) -> None:
        """A server that its peer has broken is started again; sessions recover by themselves."""
        while True:
            await self._server.wait_closed()
            if self._closing:
                return
            about = {"time": round(time.time(), 3), "peer": self.peer.name}
            self._report({"event": "door_broken", **about, "again_in": REOPEN_AFTER})
            self._gate.cut()
            await asyncio.sleep(REOPEN_AFTER)
            with suppress(OSError):
                await self._listen(self.place)

    async def _summaries(self) -> None:
        while True:
            await asyncio.sleep(SUMMARY_EVERY)
            self._gate.log.summarise()
            await self._gate.prolong()

    async def close(self) -> None:
        """Cut the peer off: its flows end now, and nothing it sends is heard any more."""
        self._closing = True
        self._server.close()
        flows = self._gate.close()
        waiting = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, *flows, return_exceptions=True)
        await self._server.wait_closed()
        self._gate.log.summarise()

    def change(self, peer: Peer) -> None:
        """Another policy for the same peer; flows that it does not allow end now."""
        self._gate.change(peer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _flow_of(self, stream: mitmproxy_rs.Stream, protocol: str) -> tuple[Flow, Address]:
        host, port = stream.get_extra_info("sockname")[:2]
        source = addresses.of_socket(stream.get_extra_info("peername")[0])
        return self._gate.flow(protocol, addresses.of_socket(host), int(port)), source

    # TCP.

    async def _tcp(self, stream: mitmproxy_rs.Stream) -> None:
        try:
            flow, source = self._flow_of(stream, "tcp")
            if flow.port == DNS_PORT and flow.address in self._config.addresses:
                await self._dns_over_tcp(stream, flow)
                return
            decision = self._gate.decide(flow, source)
            if decision.verdict is Verdict.ALLOW:
                await self._gate.join(flow, decision, self._join_tcp(stream, flow, decision))
            else:
                await self._refuse(stream)
        except OSError:
            # Either side may end a connection at any moment; that is the flow's end, no fault.
            pass
        finally:
            await _close(stream)

    async def _refuse(self, stream: mitmproxy_rs.Stream) -> None:
        """Until the workload's side of the three-way handshake is surely, or most likely, over.

        A stream is ours before that, and mitmproxy_rs 0.11.1 loses an end that comes before the
        workload's ACK (tried: 12 of 13 connections hung). Its first byte proves the ACK; one that
        says nothing is given a moment. A reset is not to be had: its TCP has none to send.
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

    async def _join_tcp(self, stream: mitmproxy_rs.Stream, flow: Flow, decision: Decision) -> str:
        try:
            target = await reach(flow, decision, self._gate.own(flow))
        except (NotReached, OwnAddress):
            await self._refuse(stream)
            raise
        # A target that ends at once: see _refuse.
        return await Joining(stream, flow, self._gate.pace, SILENT_REFUSAL).run(target)

    # UDP and DNS.

    async def _udp(self, stream: mitmproxy_rs.Stream) -> None:
        try:
            flow, source = self._flow_of(stream, "udp")
            if flow.port == DNS_PORT and flow.address in self._config.addresses:
                await self._dns_over_udp(stream)
                return
            decision = self._gate.decide(flow, source)
            if decision.verdict is Verdict.ALLOW:
                work = join_datagrams(stream, flow, self._gate.own(flow), self._gate.pace)
                await self._gate.join(flow, decision, work)
        except OSError:
            # As for TCP: an ICMP unreachable from the target ends the flow.
            pass
        finally:
            await _close(stream)

    async def _dns_over_udp(self, stream: mitmproxy_rs.Stream) -> None:
        """Answers come as they are found: a slow name must not hold up the next."""
        while raw := await _read_within(stream, UDP_IDLE):
            self._spawn(self._answer(stream, raw))

    async def _answer(self, stream: mitmproxy_rs.Stream, raw: bytes) -> None:
        if answer := await self._gate.nameserver.reply(raw):
            with suppress(OSError):
                stream.write(answer)

    async def _dns_over_tcp(self, stream: mitmproxy_rs.Stream, flow: Flow) -> None:
        """RFC 7766, one query after the other, each behind its length of two bytes."""
        data = b""
        with self._gate.counted(flow, Decision(Verdict.ALLOW, "", "")) as counted:
            if not counted:
                await self._refuse(stream)
            while counted and (raw := await _read_within(stream, DNS_IDLE)):
                data += raw
                while len(data) >= 2 and len(data) >= (size := int.from_bytes(data[:2], "big")) + 2:
                    answer = await self._gate.nameserver.reply(data[2 : 2 + size], tcp=True)
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
