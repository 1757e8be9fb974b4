"""One peer's way through the embedded engine: a WireGuard server of its own, and its flows.

mitmproxy_rs terminates WireGuard and TCP/IP and hands over each flow as a stream. It believes any
source address of any peer of a server, and a peer can end a server (a SYN to port 0 does): so each
peer has a server, and a port, of its own. What comes through this door is this peer's, whatever it
says, and what it breaks is its own.

An allowed flow is joined to an ordinary socket of this process; a refused one is ended at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mitmproxy_rs

from wgcell.gateway import hello
from wgcell.gateway.config import GatewayConfig, Peer
from wgcell.gateway.flows import SUMMARY_EVERY, Flow, FlowLog, Report, mend
from wgcell.gateway.leads import NameTable
from wgcell.gateway.limits import Bucket
from wgcell.gateway.policy import Address, Decision, Verdict

if TYPE_CHECKING:
    from wgcell.gateway.nameserver import Nameserver

__all__ = ["Door"]

CONNECT_TIMEOUT = 10.0
"""Seconds an allowed flow may take to reach its target."""
HELLO_TIMEOUT = 10.0
"""Seconds from a client's first byte to the end of its TLS hello or HTTP head."""
TCP_IDLE = 3600.0
UDP_IDLE = 60.0
"""Seconds without a byte after which a flow is over."""
DNS_IDLE = 10.0
SILENT_REFUSAL = 0.5
"""Seconds until a refused TCP stream on which the workload says nothing is ended."""
MOST_REFUSED = 256
"""Refused streams that are waited for at a time; beyond it they are ended without a wait."""
REOPEN_AFTER = 1.0
"""Seconds from a server's unexpected end to its successor."""
_CHUNK = 65536
_DNS_PORT = 53
_NUMBERS = itertools.count(1)


class _Refused(Exception):
    """A flow that is refused after it has begun, with the reason and the host it asked for."""

    def __init__(self, reason: str, host: str) -> None:
        super().__init__(reason)
        self.host = host


class Door:
    """One peer's server. Opened and closed by the engine; its events go to ``report``."""

    def __init__(self, config: GatewayConfig, peer: Peer, report: Report) -> None:
        self._config = config
        self.peer = peer
        self._report = report
        self._log = FlowLog(peer.name, report)
        self._names = NameTable()
        limits = peer.policy.limits
        self._new = Bucket(limits.flows_per_second, limits.flows)
        rate = limits.bytes_per_second
        self._bytes = Bucket(rate, max(rate, _CHUNK)) if rate else None
        self._joined: dict[asyncio.Task[None], tuple[Flow, Decision]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0
        self._server: Any = None
        self._closing = False
        self.place = ("", 0)

    @cached_property
    def _nameserver(self) -> Nameserver:
        """Made when it is first wanted: a door that opens need not wait for dnspython to load."""
        from wgcell.gateway.nameserver import Nameserver
        from wgcell.gateway.resolver import Upstream, host_resolvers

        upstream = Upstream(self._config.resolver or host_resolvers())
        return Nameserver(self.peer.policy, upstream, self._name_refused, self._name_learned)

    # Opening and closing.

    async def open(self) -> None:
        """Listen. Raises OSError if the address is not there or its port is taken."""
        await self._listen((self._config.listen[0], self.peer.port))
        self._spawn(self._keep_open())
        self._spawn(self._summaries())

    def warm(self) -> None:
        """Load what a peer's first question would wait for."""
        self._nameserver.policy = self.peer.policy

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
            self._end_flows()
            await asyncio.sleep(REOPEN_AFTER)
            with suppress(OSError):
                await self._listen(self.place)

    async def _summaries(self) -> None:
        while True:
            await asyncio.sleep(SUMMARY_EVERY)
            self._log.summarise()

    async def close(self) -> None:
        """Cut the peer off: its flows end now, and nothing it sends is heard any more."""
        self._closing = True
        self._server.close()
        self._end_flows()
        waiting = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, *self._joined, return_exceptions=True)
        await self._server.wait_closed()
        self._log.summarise()

    def change(self, peer: Peer) -> None:
        """Another policy for the same peer; flows that it does not allow end now."""
        self.peer = peer
        self._nameserver.policy = peer.policy
        for task, (flow, decision) in list(self._joined.items()):
            names = decision.names
            again = peer.policy.evaluate(flow.address, flow.port, flow.protocol, names)
            if again.verdict is Verdict.REFUSE:
                task.cancel()

    def _end_flows(self) -> None:
        for task in list(self._joined):
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Deciding.

    def _flow_of(self, stream: mitmproxy_rs.Stream, protocol: str) -> tuple[Flow, Address]:
        host, port = stream.get_extra_info("sockname")[:2]
        source = ipaddress.ip_address(stream.get_extra_info("peername")[0])
        address = ipaddress.ip_address(host)
        names = self._names.names(address, time.monotonic())
        name = names[-1] if names else ""
        return Flow(next(_NUMBERS), self.peer.name, protocol, address, int(port), name), source

    def _decide(self, flow: Flow, source: Address) -> Decision:
        policy = self.peer.policy
        names = self._names.names(flow.address, time.monotonic())
        decision = policy.evaluate(flow.address, flow.port, flow.protocol, names)
        rule = mend(flow.protocol, flow.address, flow.port, flow.name)
        if source != self.peer.address:
            decision = Decision(Verdict.REFUSE, "", f"its source, {source}, is not the peer's")
            rule = ""
        elif decision.verdict is Verdict.REFUSE:
            rule = "" if decision.rule else rule
            if policy.kept(flow.address):
                rule = mend(flow.protocol, flow.address, flow.port, "")
        elif len(self._joined) >= policy.limits.flows:
            decision = Decision(Verdict.REFUSE, "", f"{policy.limits.flows} flows are open already")
            rule = ""
        elif not self._new.take(time.monotonic()):
            rate = policy.limits.flows_per_second
            decision = Decision(Verdict.REFUSE, "", f"more than {rate} new flows a second")
            rule = ""
        if decision.names:
            flow.name = decision.names[-1]
        flow.rule = decision.rule
        event = flow.event("flow", decision.verdict.value, decision.reason)
        learned = decision.rule == "learn"
        self._log.tell(
            {**event, "mend": rule if learned or decision.verdict is Verdict.REFUSE else ""}
        )
        return decision

    def _name_refused(self, name: str, reason: str) -> None:
        flow = Flow(next(_NUMBERS), self.peer.name, "dns", self._config.address, _DNS_PORT, name)
        rule = mend("dns", flow.address, flow.port, name) if reason == "no rule names it" else ""
        self._log.tell({**flow.event("flow", Verdict.REFUSE.value, reason), "mend": rule})

    def _name_learned(self, name: str, addresses: tuple[Address, ...], ttl: float) -> None:
        self._names.learn(name, addresses, ttl, time.monotonic())

    # TCP.

    async def _tcp(self, stream: mitmproxy_rs.Stream) -> None:
        try:
            flow, source = self._flow_of(stream, "tcp")
            if (flow.address, flow.port) == (self._config.address, _DNS_PORT):
                await self._dns_over_tcp(stream, flow)
                return
            decision = self._decide(flow, source)
            if decision.verdict is Verdict.ALLOW:
                await self._joining(flow, decision, self._join_tcp(stream, flow, decision))
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

    async def _joining(
        self, flow: Flow, decision: Decision, work: Coroutine[Any, Any, str]
    ) -> None:
        """Do ``work``, which returns why it ended, as an open flow of this peer."""
        task = asyncio.current_task()
        if task is None or self._closing:
            work.close()
            return
        self._joined[task] = flow, decision
        verdict, reason = Verdict.ALLOW, "cut off"
        try:
            reason = await work
        except _Refused as refused:
            verdict, reason = Verdict.REFUSE, str(refused)
            rule = (
                mend(flow.protocol, flow.address, flow.port, refused.host) if refused.host else ""
            )
            event = flow.event("flow", verdict.value, reason)
            self._log.tell({**event, "host": refused.host, "mend": rule})
        except OSError as error:
            reason = f"broken: {error}"
        finally:
            del self._joined[task]
            self._log.tell(flow.end(verdict.value, reason))

    async def _join_tcp(self, stream: mitmproxy_rs.Stream, flow: Flow, decision: Decision) -> str:
        host, port = decision.target or (str(flow.address), flow.port)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            await self._refuse(stream)
            return f"target not reached: {error or 'timed out'}"
        moved = [time.monotonic()]
        tasks = [
            asyncio.create_task(self._outward(stream, writer, flow, decision, moved)),
            asyncio.create_task(self._inward(reader, stream, flow, moved)),
        ]
        try:
            return await _until_done(tasks, moved, TCP_IDLE)
        finally:
            await _cancel(tasks)
            writer.transport.abort()

    async def _outward(
        self,
        stream: mitmproxy_rs.Stream,
        writer: asyncio.StreamWriter,
        flow: Flow,
        decision: Decision,
        moved: list[float],
    ) -> None:
        raw = await stream.read(_CHUNK)
        if raw and decision.names and decision.rule != "learn":
            raw = await self._greeted(stream, flow, decision.names, raw)
        while raw:
            moved[0] = time.monotonic()
            flow.bytes_out += len(raw)
            await self._pace(len(raw))
            writer.write(raw)
            await writer.drain()
            raw = await stream.read(_CHUNK)
        if writer.can_write_eof():
            writer.write_eof()

    async def _greeted(
        self, stream: mitmproxy_rs.Stream, flow: Flow, names: tuple[str, ...], raw: bytes
    ) -> bytes:
        """The first bytes, once they are seen to ask for one of ``names``. Raises `_Refused`."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                while (seen := hello.judge(raw, names, flow.port)) is None:
                    more = await stream.read(_CHUNK)
                    if not more:
                        raise _Refused("it ended within its TLS hello or HTTP head", "")
                    raw += more
        except TimeoutError:
            why = f"no whole TLS hello or HTTP head within {HELLO_TIMEOUT:.0f} s"
            raise _Refused(why, "") from None
        if seen.refusal:
            raise _Refused(seen.refusal, seen.host)
        return raw

    async def _inward(
        self,
        reader: asyncio.StreamReader,
        stream: mitmproxy_rs.Stream,
        flow: Flow,
        moved: list[float],
    ) -> None:
        while raw := await reader.read(_CHUNK):
            moved[0] = time.monotonic()
            flow.bytes_in += len(raw)
            await self._pace(len(raw))
            stream.write(raw)
            await stream.drain()
        early = flow.started + SILENT_REFUSAL - time.monotonic()
        if early > 0 and not flow.bytes_out:
            # A target that ends at once: see _refuse; the reading is another task's here.
            await asyncio.sleep(early)
        stream.write_eof()  # type: ignore[no-untyped-call]

    async def _pace(self, count: int) -> None:
        if self._bytes is not None and (wait := self._bytes.wait(time.monotonic(), count)) > 0:
            await asyncio.sleep(wait)

    # UDP and DNS.

    async def _udp(self, stream: mitmproxy_rs.Stream) -> None:
        try:
            flow, source = self._flow_of(stream, "udp")
            if (flow.address, flow.port) == (self._config.address, _DNS_PORT):
                await self._dns_over_udp(stream)
                return
            decision = self._decide(flow, source)
            if decision.verdict is Verdict.ALLOW:
                await self._joining(flow, decision, self._join_udp(stream, flow))
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
        if answer := await self._nameserver.reply(raw):
            with suppress(OSError):
                stream.write(answer)

    async def _dns_over_tcp(self, stream: mitmproxy_rs.Stream, flow: Flow) -> None:
        """RFC 7766, one query after the other, each behind its length of two bytes."""
        if len(self._joined) >= self.peer.policy.limits.flows:
            return
        task = asyncio.current_task()
        if task is None:
            return
        self._joined[task] = flow, Decision(Verdict.ALLOW, "", "")
        data = b""
        try:
            while raw := await _read_within(stream, DNS_IDLE):
                data += raw
                while len(data) >= 2 and len(data) >= (size := int.from_bytes(data[:2], "big")) + 2:
                    answer = await self._nameserver.reply(data[2 : 2 + size], tcp=True)
                    if not answer:
                        return
                    stream.write(len(answer).to_bytes(2, "big") + answer)
                    data = data[2 + size :]
        finally:
            del self._joined[task]

    async def _join_udp(self, stream: mitmproxy_rs.Stream, flow: Flow) -> str:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if flow.address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((str(flow.address), flow.port))
            moved = [time.monotonic()]

            async def outward() -> None:
                while raw := await stream.read(_CHUNK):
                    moved[0] = time.monotonic()
                    flow.bytes_out += len(raw)
                    await self._pace(len(raw))
                    await loop.sock_sendall(sock, raw)

            async def inward() -> None:
                while True:
                    raw = await loop.sock_recv(sock, _CHUNK)
                    moved[0] = time.monotonic()
                    flow.bytes_in += len(raw)
                    await self._pace(len(raw))
                    stream.write(raw)
                    await stream.drain()

            tasks = [asyncio.create_task(outward()), asyncio.create_task(inward())]
            try:
                return await _until_done(tasks[:1], moved, UDP_IDLE, tasks[1:])
            finally:
                await _cancel(tasks)


async def _until_done(
    tasks: list[asyncio.Task[None]],
    moved: list[float],
    idle: float,
    others: list[asyncio.Task[None]] | None = None,
) -> str:
    """Until all of ``tasks`` are done, one of any fails (raises its error), or nothing moves."""
    every = {*tasks, *(others or ())}
    while True:
        left = moved[0] + idle - time.monotonic()
        if left <= 0:
            return "idle"
        done, _ = await asyncio.wait(every, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            every.discard(task)
            task.result()
        if all(task.done() for task in tasks):
            return "closed"


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _read_within(stream: mitmproxy_rs.Stream, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await stream.read(_CHUNK)
    except TimeoutError:
        return b""


async def _close(stream: mitmproxy_rs.Stream) -> None:
    with suppress(OSError):  # the tunnel's side may have closed it first
        stream.close()  # type: ignore[no-untyped-call]
        await stream.wait_closed()
