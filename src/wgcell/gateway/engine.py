"""The embedded gateway: a WireGuard server in user space, without root, and the policy behind it.

mitmproxy_rs terminates WireGuard and TCP/IP and hands over each flow as a stream. For each the
`Policy` decides once; an allowed flow is joined to an ordinary socket of this process, a refused
one is closed at once, so that the workload sees an end and not a hang. Every decision is told to
``report`` before a byte moves.

Names: the resolver inside the tunnel answers only what a rule names, with the addresses found at
the gateway's start, so the address that the workload connects to is one the policy knows.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import mitmproxy_rs

from wgcell.errors import PolicyError
from wgcell.gateway.keys import decode_key
from wgcell.gateway.policy import Decision, Policy, Verdict

__all__ = ["Engine", "GatewayConfig", "answer_query", "parse_config", "resolve_names"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Report = Callable[[dict[str, object]], None]

CONNECT_TIMEOUT = 10.0
"""Seconds an allowed flow may take to reach its target."""
UDP_IDLE = 60.0
"""Seconds without a datagram after which a UDP flow is over."""
MOST_FLOWS = 512
"""Open flows at a time: a workload must not exhaust the gateway's descriptors."""
_CHUNK = 65536
_DNS_PORT = 53
_SILENT_REFUSAL = 0.5
"""Seconds until a refused TCP stream on which the workload says nothing is ended."""
_NAME_TTL = 60


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one embedded gateway is told."""

    listen: tuple[str, int]
    private_key: str = field(repr=False)
    peers: tuple[str, ...]
    address: Address
    """The gateway's own address in the tunnel, where its resolver answers."""
    policy: Policy


def parse_config(raw: object) -> GatewayConfig:
    """The config line, parsed. Raises `PolicyError` for what is missing or of the wrong type."""
    if not isinstance(raw, dict):
        raise PolicyError("the gateway's config is not a JSON object")
    known = {"listen", "private_key", "peers", "allow", "services", "address", "protected"}
    if unknown := set(raw) - known:
        raise PolicyError(f"the gateway's config has unknown keys: {sorted(unknown)}")
    try:
        host, port = raw.get("listen", ("127.0.0.1", 0))
        private_key, peers = str(raw["private_key"]), tuple(str(key) for key in raw["peers"])
        for key in (private_key, *peers):
            decode_key(key)
        return GatewayConfig(
            listen=(str(host), int(port)),
            private_key=private_key,
            peers=peers,
            address=ipaddress.ip_address(raw.get("address", "10.99.0.1")),
            policy=Policy.parse(
                raw.get("allow", ()), raw.get("services", {}), protected=raw.get("protected", ())
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(f"the gateway's config is malformed: {error!r}") from None


async def resolve_names(policy: Policy) -> tuple[Policy, tuple[str, ...]]:
    """``policy`` with its names resolved, and the names that did not resolve."""
    loop = asyncio.get_running_loop()

    async def one(name: str) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, TimeoutError):
            return ()
        return tuple(dict.fromkeys(ipaddress.ip_address(item[4][0]) for item in found))

    asked = sorted(policy.allowed_names())
    answers = await asyncio.gather(*map(one, asked))
    names = {name: found for name, found in zip(asked, answers, strict=True) if found}
    return replace(policy, names=names), tuple(name for name in asked if name not in names)


def answer_query(raw: bytes, names: Mapping[str, tuple[Address, ...]]) -> tuple[bytes, str, bool]:
    """The answer to one DNS query, the name asked for, and whether it was allowed.

    IPv4 only: AAAA of an allowed name gets an empty answer. Everything else is REFUSED; what is
    no query at all gets no answer (empty bytes). Never raises on hostile bytes.
    """
    try:
        query = dns.message.from_wire(raw)
    except Exception:  # dnspython documents no closed list of what from_wire may raise
        return b"", "", False
    if query.flags & dns.flags.QR or len(query.question) != 1:
        return b"", "", False
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    answer = dns.message.make_response(query, recursion_available=True)
    allowed = name in names
    if not allowed:
        answer.set_rcode(dns.rcode.REFUSED)
    elif question.rdtype == dns.rdatatype.A:
        found = [str(address) for address in names[name] if address.version == 4]
        if found:
            answer.answer.append(dns.rrset.from_text(question.name, _NAME_TTL, "IN", "A", *found))
    return answer.to_wire(), name, allowed


@dataclass(slots=True)
class _Flow:
    """One flow's facts, and its count of bytes."""

    peer: str
    protocol: str
    address: Address
    port: int
    started: float
    bytes_out: int = 0
    bytes_in: int = 0


class Engine:
    """One running gateway. ``report`` gets each event as a JSON-able object."""

    def __init__(self, config: GatewayConfig, report: Report) -> None:
        self._config = config
        self._policy = config.policy
        self._report = report
        self._open = 0
        self._server: Any = None

    async def start(self) -> tuple[str, int]:
        """Resolve names, listen, report ``ready`` and return where we listen.

        A name that does not resolve is reported and stays refused. Raises OSError if it can't
        listen.
        """
        self._policy, lost = await resolve_names(self._config.policy)
        config = self._config
        self._server = await mitmproxy_rs.wireguard.start_wireguard_server(
            *config.listen,
            config.private_key,
            list(config.peers),
            self._tcp,
            self._udp,
        )
        host, port = self._server.getsockname()[:2]
        self._report({"event": "ready", "host": str(host), "port": int(port)})
        for name in lost:
            self._report({"event": "unresolved", "time": time.time(), "name": name})
        return str(host), int(port)

    async def stop(self) -> None:
        """Close the server; flows end with it."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _tcp(self, stream: mitmproxy_rs.Stream) -> None:
        flow = _flow_of(stream, "tcp")
        try:
            decision = self._decide(flow)
            if decision.verdict is Verdict.ALLOW:
                await self._join_tcp(stream, flow, decision)
            else:
                await _wait_for_handshake(stream)
        except OSError:
            # Either side may end a connection at any moment; that is the flow's end, no fault.
            pass
        finally:
            await _close(stream)

    def _decide(self, flow: _Flow) -> Decision:
        decision = self._policy.evaluate(flow.address, flow.port, flow.protocol)
        if decision.verdict is Verdict.ALLOW and self._open >= MOST_FLOWS:
            decision = Decision(Verdict.REFUSE, "", f"more than {MOST_FLOWS} flows are open")
        self._told(flow, decision, self._policy.name_of(flow.address))
        return decision

    def _told(self, flow: _Flow, decision: Decision, name: str) -> None:
        self._report(
            {
                "event": "flow",
                "time": time.time(),
                "peer": flow.peer,
                "protocol": flow.protocol,
                "address": str(flow.address),
                "port": flow.port,
                "name": name,
                "verdict": decision.verdict.value,
                "rule": decision.rule,
                "reason": decision.reason,
            }
        )

    def _ended(self, flow: _Flow, reason: str) -> None:
        self._report(
            {
                "event": "flow_end",
                "time": time.time(),
                "peer": flow.peer,
                "protocol": flow.protocol,
                "address": str(flow.address),
                "port": flow.port,
                "bytes_out": flow.bytes_out,
                "bytes_in": flow.bytes_in,
                "duration": round(time.monotonic() - flow.started, 3),
                "reason": reason,
            }
        )

    async def _join_tcp(self, stream: mitmproxy_rs.Stream, flow: _Flow, decision: Decision) -> None:
        host, port = decision.target or (str(flow.address), flow.port)
        reason = "closed"
        self._open += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            self._open -= 1
            self._ended(flow, f"target not reached: {error or 'timed out'}")
            await _wait_for_handshake(stream)
            return
        try:
            out = asyncio.create_task(_outward(stream, writer, flow))
            inward = asyncio.create_task(_inward(reader, stream, flow))
            done, waiting = await asyncio.wait((out, inward), return_when=asyncio.FIRST_EXCEPTION)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            failures = [task.exception() for task in done]
            reason = next((f"broken: {error}" for error in failures if error), reason)
        finally:
            self._open -= 1
            writer.close()
            self._ended(flow, reason)

    async def _udp(self, stream: mitmproxy_rs.Stream) -> None:
        flow = _flow_of(stream, "udp")
        try:
            if (flow.address, flow.port) == (self._config.address, _DNS_PORT):
                await self._resolver(stream, flow)
                return
            decision = self._decide(flow)
            if decision.verdict is Verdict.ALLOW:
                await self._join_udp(stream, flow)
        except OSError:
            # As for TCP: an ICMP unreachable from the target ends the flow.
            pass
        finally:
            await _close(stream)

    async def _resolver(self, stream: mitmproxy_rs.Stream, flow: _Flow) -> None:
        while True:
            try:
                async with asyncio.timeout(UDP_IDLE):
                    raw = await stream.read(_CHUNK)
            except TimeoutError:
                return
            if not raw:
                return
            answer, name, allowed = answer_query(raw, self._policy.names)
            if not allowed:
                reason = "no rule names it" if answer else "not a DNS query"
                self._told(flow, Decision(Verdict.REFUSE, "", reason), name)
            if answer:
                stream.write(answer)
                await stream.drain()

    async def _join_udp(self, stream: mitmproxy_rs.Stream, flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET if flow.address.version == 4 else socket.AF_INET6
        self._open += 1
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect((str(flow.address), flow.port))
            last = [loop.time()]

            async def outward() -> None:
                while raw := await stream.read(_CHUNK):
                    last[0] = loop.time()
                    flow.bytes_out += len(raw)
                    await loop.sock_sendall(sock, raw)

            async def inward() -> None:
                while True:
                    raw = await loop.sock_recv(sock, _CHUNK)
                    last[0] = loop.time()
                    flow.bytes_in += len(raw)
                    stream.write(raw)
                    await stream.drain()

            tasks = [asyncio.create_task(outward()), asyncio.create_task(inward())]
            try:
                while (left := last[0] + UDP_IDLE - loop.time()) > 0:
                    done, _ = await asyncio.wait(
                        tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    if done:
                        break
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._open -= 1
            sock.close()
            self._ended(flow, "idle or closed")


async def _outward(stream: mitmproxy_rs.Stream, writer: asyncio.StreamWriter, flow: _Flow) -> None:
    while raw := await stream.read(_CHUNK):
        flow.bytes_out += len(raw)
        writer.write(raw)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _inward(reader: asyncio.StreamReader, stream: mitmproxy_rs.Stream, flow: _Flow) -> None:
    while raw := await reader.read(_CHUNK):
        flow.bytes_in += len(raw)
        stream.write(raw)
        await stream.drain()
    early = flow.started + _SILENT_REFUSAL - time.monotonic()
    if early > 0 and not flow.bytes_out:
        # A target that ends at once: see _wait_for_handshake; the reading is another task's here.
        await asyncio.sleep(early)
    stream.write_eof()  # type: ignore[no-untyped-call]


def _flow_of(stream: mitmproxy_rs.Stream, protocol: str) -> _Flow:
    host, port = stream.get_extra_info("sockname")
    peer = stream.get_extra_info("peername")
    return _Flow(str(peer[0]), protocol, ipaddress.ip_address(host), int(port), time.monotonic())


async def _wait_for_handshake(stream: mitmproxy_rs.Stream) -> None:
    """Until the workload's side of the three-way handshake is surely, or most likely, over.

    A stream is ours before that, and mitmproxy_rs 0.11.1 loses an end that comes before the
    workload's ACK (tried: 12 of 13 connections hung). Its first byte proves the ACK; one that
    says nothing is given a moment.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_SILENT_REFUSAL):
            await stream.read(1)


async def _close(stream: mitmproxy_rs.Stream) -> None:
    try:
        stream.close()  # type: ignore[no-untyped-call]
        await stream.wait_closed()
    except OSError:
        # The tunnel's side has closed it first.
        pass
