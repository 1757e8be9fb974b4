"""The kernel engine without root: WireGuard and nftables in a namespace of this process's own.

Where the kernel engine forwards what an address allows, there is nowhere to forward to from here:
the namespace has no other link. All that is allowed is turned to this process, as it is (Linux,
Documentation/networking/tproxy.rst), and joined to an ordinary socket outside, so it reaches just
what whoever runs this may reach. What is not allowed is refused by the kernel, with a reset or an
ICMP message; and if that failed, there would be no way on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

from wgcell.errors import HostError
from wgcell.gateway import nftables
from wgcell.gateway.apart import Apart
from wgcell.gateway.backlog import Backlog
from wgcell.gateway.config import GatewayConfig
from wgcell.gateway.entrance import INSIDE, Entrance
from wgcell.gateway.flows import Report
from wgcell.gateway.icmp import Why, unreachable
from wgcell.gateway.joining import NotReached, OwnAddress, join_datagrams
from wgcell.gateway.kernel import KernelEngine, run_tool, system
from wgcell.gateway.keys import decode_key, public_key
from wgcell.gateway.policy import Address, Verdict
from wgcell.net import addresses

__all__ = ["NamespaceEngine"]

P = ParamSpec("P")
T = TypeVar("T")

_ROUTES = 100
"""The table by which a turned packet finds this process."""
_TURNING = f"""\
rule add fwmark {nftables.TURNED} lookup {_ROUTES}
route add local default dev lo table {_ROUTES}
"""
_CONF = ("src_valid_mark", "rp_filter", "route_localnet", "accept_redirects", "forwarding")
_ZERO = (
    # Each refusal is told: Linux would tell a place only so many a second.
    "net/ipv4/icmp_ratelimit",
    # A namespace begins with the machine's own (ip-sysctl.rst, devconf_inherit_init_net); with some
    # of its settings, as wg-quick's, nothing that is turned would arrive.
    *(f"net/ipv4/conf/{of}/{name}" for of in ("all", "default", "lo") for name in _CONF),
)
_ZERO_SIX = (
    "net/ipv6/icmp/ratelimit",
    *(f"net/ipv6/conf/{of}/disable_ipv6" for of in ("all", "default", "lo")),
)
_LARGEST = 65535
_AT_ONCE = 64
_MOST_HELD = 1 << 18
"""Bytes of one flow's datagrams that wait for their turn, each with what it costs to keep."""
_OVERHEAD = 64
_ANCILLARY = socket.CMSG_SPACE(28)

# linux/in.h and linux/in6.h: a family's options for sockets that speak for any address, and that
# are told where a datagram was sent to. The latter's number is that of its control message, too.
_TRANSPARENT = {
    socket.AF_INET: (socket.IPPROTO_IP, 19, 20),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 75, 74),
}
_ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_EVERYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104

Ends = tuple[tuple[str, int], tuple[str, int]]
"""Of a datagram: where from, and where to."""


class NamespaceEngine(KernelEngine):
    """One gateway, for whoever is not root. Must be made before the process has a second thread.

    Raises HostError where there can be no namespace.
    """

    name = "namespace"
    beside = True

    def __init__(
        self,
        config: GatewayConfig,
        report: Report,
        *,
        preexec: Callable[[], None] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config, report, preexec=preexec, give_up=give_up)
        self._backlog = Backlog()
        self._entrance = Entrance(lambda: self._do(_datagram_socket), self._backlog.has_room)
        # Before this process is root in a place of its own, and no more than others outside.
        self._entrance.open(config.listen)
        try:
            self._apart = Apart()
        except BaseException:
            self._entrance.close()
            raise
        self._flows: dict[Ends, _PeersEnd] = {}
        self._turned: list[socket.socket] = []
        self._six = False
        self._raw: dict[socket.AddressFamily, socket.socket] = {}

    def _do(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return self._apart.do(work, *args, **options)

    async def _later(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return await self._apart.later(work, *args, **options)

    def _take_place(self) -> None:
        self._entrance.admit(decode_key(public_key(self._config.private_key)))

    def _place(self) -> tuple[str, int]:
        return self._entrance.place

    async def apply(self, config: GatewayConfig) -> None:
        before, stood = self._config, self._entrance.place
        try:
            if config.listen != before.listen:
                self._entrance.open(config.listen)
            self._entrance.admit(decode_key(public_key(config.private_key)))
            await super().apply(config)
        except BaseException:
            self._entrance.admit(decode_key(public_key(before.private_key)))
            if self._entrance.place != stood:
                self._entrance.open(stood)
            raise

    def _stand_up(self) -> None:
        for name in _ZERO:
            system(name, "0")
        with contextlib.suppress(HostError):  # a machine without IPv6
            for name in _ZERO_SIX:
                system(name, "0")
        self._apply_rules(self._config)
        self._make_interface()
        run_tool("ip", "-batch", "-", text="link set lo up\n" + _TURNING)
        self._configure(self._config)

    def _configure(self, config: GatewayConfig) -> None:
        if not self._six and any(address.version == 6 for address in config.inside):
            run_tool("ip", "-6", "-batch", "-", text=_TURNING)
            self._six = True
        self._backlog.give_back()
        try:
            super()._configure(config)
        finally:
            if self._daemon is not None:
                self._backlog.borrow(self._daemon.pid, INSIDE[1])

    def _ruleset(self, config: GatewayConfig) -> str:
        return nftables.turning_ruleset(config, self._interface)

    def _settings_text(self, config: GatewayConfig) -> str:
        return nftables.wireguard_settings(replace(config, listen=INSIDE))

    def _destination(self, writer: asyncio.StreamWriter) -> tuple[Address, int]:
        host, port = writer.get_extra_info("sockname")[:2]
        return addresses.of_socket(host), int(port)

    def _listeners(self, config: GatewayConfig) -> list[socket.socket]:
        return [_turned_socket(family, socket.SOCK_STREAM) for family in _families()]

    async def _serve(self, config: GatewayConfig) -> None:
        await super()._serve(config)
        if not self._turned:
            loop = asyncio.get_running_loop()
            for family in _families():
                sock = self._do(_turned_socket, family, socket.SOCK_DGRAM)
                loop.add_reader(sock, self._come, sock)
                self._turned.append(sock)
                self._raw[family] = self._do(_raw_socket, family, _ICMP[family])

    async def stop(self) -> None:
        self._entrance.close()
        self._backlog.give_back()
        for sock in self._turned:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        for sock in self._raw.values():
            sock.close()
        await super().stop()

    def _leave_place(self) -> None:
        # What else was made ends with the namespace, and that with the process.
        self._do(self._end_wireguard_go)

    # Datagrams. Each flow has a socket of its own that bears the target's address; only what comes
    # before it is there comes to the one for all.

    def _come(self, sock: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, control, _, source = sock.recvmsg(_LARGEST, _ANCILLARY)
            except OSError:
                return
            # A source port of 0 would stand for any of the peer's.
            if source[1] and (target := _target(control)) is not None:
                ends = (source[0], source[1]), target
                flow = self._flows.get(ends) or self._begin(ends, socket.AddressFamily(sock.family))
                if flow is not None:
                    flow.add(data)

    def _begin(self, ends: Ends, family: socket.AddressFamily) -> _PeersEnd | None:
        source = addresses.of_socket(ends[0][0])
        served = self._peers.get(source)
        if served is None:
            return None
        gate = served.gate
        flow = gate.flow("udp", addresses.of_socket(ends[1][0]), ends[1][1])
        decision = gate.decide(flow, source)
        if decision.verdict is not Verdict.ALLOW:
            # The kernel had let it pass: the limits are this process's, too.
            self._answer(ends, Why.PROHIBITED)
            return None
        try:
            stream = _PeersEnd(self._do(_bound_socket, family, ends))
        except OSError as error:
            self._answer(ends, Why.PROHIBITED)
            gate.log.tell(flow.end("allow", f"broken: {error}"))
            return None
        self._flows[ends] = stream

        async def work() -> str:
            try:
                return await join_datagrams(stream, flow, gate.own(flow), endless=True)
            except OwnAddress:
                self._answer(ends, Why.PROHIBITED)
                raise
            except (NotReached, OSError):
                self._answer(ends, Why.PORT)
                raise

        async def joined() -> None:
            try:
                await gate.join(flow, decision, work())
            finally:
                del self._flows[ends]
                stream.close()

        self._spawn(joined())
        return stream

    def _answer(self, ends: Ends, why: Why) -> None:
        source, target = ends
        raw = self._raw[socket.AF_INET6 if ":" in source[0] else socket.AF_INET]
        with contextlib.suppress(OSError):
            raw.sendto(unreachable(source, target, why), (source[0], 0))


class _PeersEnd:
    """The peer's end of a UDP flow, as `join_datagrams` wants it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self._held = 0
        asyncio.get_running_loop().add_reader(sock, self._come)

    def _come(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                self.add(self._sock.recv(_LARGEST))
            except OSError:
                return

    def add(self, data: bytes) -> None:
        """One that came; lost, as UDP loses datagrams, if too many wait."""
        if self._held + len(data) + _OVERHEAD <= _MOST_HELD:
            self._held += len(data) + _OVERHEAD
            self._waiting.put_nowait(data)

    async def read(self, _: int, /) -> bytes:
        data = await self._waiting.get()
        self._held -= len(data) + _OVERHEAD
        return data

    def write(self, data: bytes, /) -> None:
        with contextlib.suppress(OSError):
            self._sock.send(data)

    async def drain(self) -> None:
        """Nothing waits: what the kernel does not take is lost."""

    def write_eof(self) -> None:
        """A UDP flow has no end that could be told."""

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()


def _families() -> list[socket.AddressFamily]:
    """Those that this machine has: IPv6 may be off."""
    found = []
    for family in _TRANSPARENT:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM):
            found.append(family)
    return found


def _datagram_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _raw_socket(family: socket.AddressFamily, protocol: int) -> socket.socket:
    """One that only speaks."""
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return sock


def _transparent(family: socket.AddressFamily, kind: int) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    level, transparent, _ = _TRANSPARENT[family]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_STREAM:  # beside a service of the same number
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(level, transparent, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(level, socket.IPV6_V6ONLY, 1)
    return sock


def _turned_socket(family: socket.AddressFamily, kind: int) -> socket.socket:
    """Where what is turned arrives, whatever address it was sent to."""
    sock = _transparent(family, kind)
    level, _, told = _TRANSPARENT[family]
    if kind == socket.SOCK_DGRAM:
        sock.setsockopt(level, told, 1)
    sock.bind((_EVERYWHERE[family], nftables.ASKED_PORT))
    return sock


def _bound_socket(family: socket.AddressFamily, ends: Ends) -> socket.socket:
    """One that speaks for a flow's target, to its source."""
    sock = _transparent(family, socket.SOCK_DGRAM)
    try:
        sock.bind(ends[1])
        sock.connect(ends[0])
    except OSError:
        sock.close()
        raise
    return sock


def _target(control: list[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """Where a datagram was sent to, of its control message: a sockaddr_in or sockaddr_in6."""
    for level, kind, raw in control:
        for family, (at, _, told) in _TRANSPARENT.items():
            if (level, kind) == (at, told):
                begin, end = (4, 8) if family == socket.AF_INET else (8, 24)
                return str(addresses.unpacked(raw[begin:end])), int.from_bytes(raw[2:4], "big")
    return None
