"""The kernel engine: WireGuard in the kernel, or wireguard-go where it has none, and nftables.

The same configuration as the embedded engine's, for a requester's server. It needs root. The way
of every change: policy -> text -> one atomic apply -> a look at what is there. The table stands
before the interface does, so there is no moment at which the tunnel is open and the policy is not.

What the text can't do is done here: the resolver inside the tunnel, which fills the sets behind
names (see `engines.nftables.sets`); flows that a name allows, which the kernel turns to this
process, and services: they are judged, compared and joined as the embedded engine's flows are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from wgcell import programs
from wgcell.errors import HostError
from wgcell.gateway.engines.nftables import netlink, ruleset
from wgcell.gateway.engines.nftables.pending import Accepted, Held, Holding
from wgcell.gateway.engines.nftables.sets import Openings, Served
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.policy import LEARNED, Decision
from wgcell.gateway.model.rules import Verdict
from wgcell.gateway.peer.admission import DNS_PORT, Gate
from wgcell.gateway.peer.events import Flow, FlowLog, Report
from wgcell.gateway.proxy.tcp import Joining, NotReached, Target, reach
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["INTERFACE", "KernelEngine", "quietly", "run_tool", "system"]

P = ParamSpec("P")
T = TypeVar("T")

INTERFACE = "wgcell0"
_TOOLS = {"ip": "iproute2", "nft": "nftables", "wg": "wireguard-tools"}
_PATIENCE = 10.0
"""Seconds for a tool to end."""
_APPEARS = 5.0
"""Seconds for wireguard-go to make its interface."""
_DNS_IDLE = 30.0
"""Seconds that a peer may take for its queries over one TCP connection."""
_TAKES_REST = 30.0
"""Seconds that a peer may take for the last bytes of what is over."""
_TUN = "/dev/net/tun"
"""Where wireguard-go gets its interface."""
_MOST_OPEN = 4096
_BACKLOG = 1024
_ORIGINAL_DST = 80
"""SO_ORIGINAL_DST (linux/netfilter_ipv4.h); IP6T_SO_ORIGINAL_DST has the same number."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's: what is closed is reset."""
LOOK_EVERY = 2.0
"""Seconds between two looks for flows that are over, and summaries of what was not told."""
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ACCOUNTING = "net/netfilter/nf_conntrack_acct"
_MARKS_COUNT = "net/ipv4/conf/lo/src_valid_mark"
_BACK = f"fwmark {ruleset.RELEASED} lookup {ruleset.HOLD_GROUP}"
"""The rule by which a SYN that comes back comes from where it should: a machine may drop what its
routes expect elsewhere (rp_filter of 1; Linux, Documentation/networking/ip-sysctl.rst)."""


def run_tool(*argv: str, text: str = "") -> str:
    """A tool's output. Raises HostError with its words."""
    found = [programs.path_of(argv[0]), *argv[1:]]
    try:
        done = subprocess.run(
            found,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
            env=programs.environment(),
        )
    except OSError as error:
        raise HostError(f"{argv[0]} can't be started: {error}") from error
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(argv[:4])}: no end within {_PATIENCE:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise HostError(f"{' '.join(argv[:4])}: {said[0] if said else 'failed'}")
    return done.stdout


def quietly(*argv: str) -> None:
    """Run a tool; whether it fails is no matter."""
    found = [programs.path_of(argv[0]), *argv[1:]]
    subprocess.run(found, capture_output=True, check=False, env=programs.environment())


def system(name: str, value: str = "") -> str:
    """A kernel setting as it is, and then set, if there is a ``value``. Raises HostError."""
    path = Path("/proc/sys") / name
    try:
        before = path.read_text().strip()
        if value and before != value:
            path.write_text(value)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    return before


class KernelEngine:
    """One gateway of this machine's.

    ``preexec`` is run in wireguard-go, to die with this one; ``give_up`` is called when it has died
    by itself: there is no tunnel any more, and whoever waits for this process should learn it.
    """

    name = "kernel"
    beside = False
    """Whether what is turned here is accepted at any address, as a service may be."""

    def __init__(
        self,
        config: GatewayConfig,
        report: Report,
        *,
        interface: str = INTERFACE,
        preexec: Callable[[], None] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._report = report
        self._interface = interface
        self._preexec = preexec
        self._give_up = give_up
        self._daemon: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, str] = {}
        self._pidfd = self._lock = -1
        self._router = True
        self._addresses: set[Address] = set()
        self._peers: dict[Address, Served] = {}
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open: dict[tuple[object, ...], tuple[Flow, FlowLog]] = {}
        self._openings = Openings(self._nft, interface, report)
        self._holding: Holding | None = None
        self._joining: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Be up, and report ``ready``. Raises HostError, naming the mend; nothing stays then."""
        try:
            for tool, package in _TOOLS.items():
                if programs.find(tool) is None:
                    raise HostError(f"{tool} is missing", mend=f"apt-get install {package}")
            self._take_place()
            self._do(self._stand_up)
            await self._admit(self._config)
            loop = asyncio.get_running_loop()
            log, ends = self._do(netlink.open_sockets, ruleset.LOG_GROUP)
            for sock in (log, ends):
                loop.add_reader(sock, self._hear, sock)
            self._holding = self._do(Holding, ruleset.HOLD_GROUP)
            loop.add_reader(self._holding, self._hold_come, self._holding)
            self._tasks = [asyncio.create_task(self._look_around(ends))]
            if self._daemon is not None:
                self._pidfd = os.pidfd_open(self._daemon.pid)
                loop.add_reader(self._pidfd, self._wireguard_go_died)
        except BaseException:
            await self.stop()
            raise
        host, port = self._place()
        ports = {peer.name: port for peer in self._config.peers}
        what = {"engine": self.name, "reason": ""}
        self._report({"event": "ready", "host": host, "port": port, "peers": ports, **what})

    # What another ground than this machine's own network changes.

    def _do(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """``work``'s result, done in the network that the tunnel ends in."""
        return work(*args, **options)

    async def _later(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The same, without holding up anybody."""
        return await asyncio.to_thread(work, *args, **options)

    def _take_place(self) -> None:
        if os.geteuid() != 0:
            raise HostError("the kernel engine needs root", mend="the others do not")
        self._hold()

    def _place(self) -> tuple[str, int]:
        """Where peers come to."""
        return self._config.listen

    def _stand_up(self) -> None:
        self._forward()
        self._apply_rules(self._config)
        quietly("ip", "link", "delete", self._interface)
        quietly("ip", "rule", "del", *_BACK.split())
        run_tool("ip", "rule", "add", *_BACK.split())
        self._make_interface()
        self._configure(self._config)

    def _ruleset(self, config: GatewayConfig) -> str:
        return ruleset.ruleset(config, self._interface, router=self._router)

    def _settings_text(self, config: GatewayConfig) -> str:
        return ruleset.wireguard_settings(config)

    def _listeners(self, config: GatewayConfig) -> list[socket.socket]:
        """Where flows are accepted that are turned here."""
        return [_listening(address, ruleset.ASKED_PORT) for address in config.addresses]

    def _destination(self, writer: asyncio.StreamWriter) -> tuple[Address, int]:
        """Where the peer meant to connect to: what is turned here was meant for elsewhere."""
        host, port = writer.get_extra_info("sockname")[:2]
        accepted, address = writer.get_extra_info("socket"), addresses.of_socket(host)
        if port != ruleset.ASKED_PORT:
            return address, port
        if address.version == 4:
            raw = accepted.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DST, 16)
            return addresses.unpacked(raw[4:8]), int.from_bytes(raw[2:4], "big")
        raw = accepted.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, 28)
        return addresses.unpacked(raw[8:24]), int.from_bytes(raw[2:4], "big")

    def _hold(self) -> None:
        """One engine an interface. The lock ends with the process, however it ends."""
        self._lock = os.open(f"/run/wgcell-{self._interface}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = -1
            raise HostError(
                f"another gateway runs on {self._interface} already",
                mend="stop it, or choose another name with --interface",
            ) from None

    def _forward(self) -> None:
        """Have this machine forward, and remember what it did before.

        One that was killed has put nothing back: what it found is in the lock's file.
        """
        try:
            found = json.loads(os.pread(self._lock, 4096, 0) or b"{}")
        except ValueError:
            found = {}
        versions = {address.version for address in self._config.inside} | {4}
        for name in [_FORWARDING[version] for version in sorted(versions)]:
            self._settings[name] = str(found.get(name) or system(name))
        for name in (_ACCOUNTING, _MARKS_COUNT):
            with contextlib.suppress(HostError):
                self._settings[name] = str(found.get(name) or system(name))
        os.pwrite(self._lock, json.dumps(self._settings).encode(), 0)
        for name in self._settings:
            system(name, "1")
        # Made a router by us, this machine forwards for the tunnel and for nobody else.
        self._router = self._settings[_FORWARDING[4]] == "1"

    def _make_interface(self) -> None:
        name = self._interface
        try:
            run_tool("ip", "link", "add", name, "type", "wireguard")
        except HostError:
            self._start_wireguard_go()
        run_tool("ip", "link", "set", name, "mtu", "1420", "up")

    def _start_wireguard_go(self) -> None:
        program = programs.find("wireguard-go")
        if program is None:
            raise HostError(
                "this kernel has no WireGuard, and wireguard-go is missing",
                mend="apt-get install wireguard-go",
            )
        try:
            os.close(os.open(_TUN, os.O_RDWR))
        except OSError as error:
            gone = error.errno == errno.ENOENT
            mend = "modprobe tun" if gone else f"chmod 0666 {_TUN}, which is what udev does with it"
            raise HostError(
                f"this kernel has no WireGuard, and {_TUN}: {error.strerror}", mend=mend
            ) from None
        # One that was killed has left its socket behind.
        Path(f"/run/wireguard/{self._interface}.sock").unlink(missing_ok=True)
        self._daemon = subprocess.Popen(
            [program, "-f", self._interface],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=programs.environment(),
            preexec_fn=self._preexec,
        )
        end = time.monotonic() + _APPEARS
        control = Path(f"/run/wireguard/{self._interface}.sock")
        # Not /sys/class/net: that shows the namespace in which it was mounted.
        while not (control.exists() and self._interface in {n for _, n in socket.if_nameindex()}):
            if self._daemon.poll() is not None or time.monotonic() > end:
                raise HostError(f"wireguard-go made no interface {self._interface}")
            time.sleep(0.002)

    def _apply_rules(self, config: GatewayConfig) -> None:
        """Text, applied, and looked at. What was answered leads on.

        It is one transaction, unless there is more to carry over than one may hold: then nothing
        new passes from the first to the last.
        """
        text, name = self._ruleset(config), self._interface
        carried = []
        for peer in config.peers:
            known = self._known(peer, config)
            if known is not None:
                carried += known.carried(peer)
        first, *parts = ruleset.portions(text)
        elements = ruleset.remember(name, carried, empty=True)
        if not parts and len(elements) <= 1:
            run_tool("nft", "-f", "-", text="".join([first, *elements]))
        else:
            shut = first + ruleset.shut(name, router=self._router)
            for part in (shut, *parts, *elements, ruleset.unshut(name)):
                run_tool("nft", "-f", "-", text=part)
        seen = json.loads(
            run_tool("nft", "-t", "-j", "list", "table", *ruleset.table_name(name).split())
        )
        wrong = _difference(text, seen)
        if wrong:
            raise HostError(f"nftables did not take the policy: {wrong}")

    async def apply(self, config: GatewayConfig) -> None:
        """Make it so. A peer that is gone is cut off; a changed rule holds for new flows, and for
        open ones that a name has allowed.

        Raises HostError.
        """
        async with self._openings.paused:
            try:
                self._do(self._apply_rules, config)
                self._do(self._configure, config)
            except HostError:
                self._back()
                raise
            await self._admit(config)

    def _back(self) -> None:
        """After half of a change. One policy's rules with the other's names may open what neither
        does, so the rules are what they were, or all ends; the rest the next change mends, too."""
        try:
            self._do(self._apply_rules, self._config)
        except HostError as error:
            self._report({"event": "fault", "detail": f"no way back: {error.message}"})
            self._give_up()
        with contextlib.suppress(HostError):
            self._do(self._configure, self._config)

    async def _admit(self, config: GatewayConfig) -> None:
        served: dict[Address, Served] = {}
        for peer in config.peers:
            known = self._known(peer, config)
            if known is None:
                known = Served(peer, config, self._report, self._openings)
            else:
                known.gate.change(peer)
            served |= dict.fromkeys(peer.addresses, known)
        for address, one in self._peers.items():
            if served.get(address) is not one:
                one.close()
        # The servers hold this very table of peers.
        self._peers.clear()
        self._peers.update(served)
        await self._serve(config)
        self._config = config

    def _configure(self, config: GatewayConfig) -> None:
        """The keys, the addresses and the routes."""
        name = self._interface
        verb = "syncconf" if self._peers else "setconf"
        run_tool("wg", verb, name, "/dev/stdin", text=self._settings_text(config))
        wanted = {*config.addresses, *(service.address for service in config.services)}
        for address in self._addresses - wanted:
            quietly("ip", "addr", "del", f"{address}/{address.max_prefixlen}", "dev", name)
        # Until all is done any of them may be there.
        self._addresses |= wanted
        # If nobody says otherwise, an IPv6 address is tentative for a moment, and can't be bound.
        lines = [
            f"addr replace {address}/{address.max_prefixlen} dev {name}"
            + (" nodad" if address.version == 6 else "")
            for address in sorted(wanted, key=str)
        ]
        theirs = [address for peer in config.peers for address in peer.addresses]
        for address in theirs:
            place = f"{address}/{address.max_prefixlen}"
            lines.append(f"route replace {place} dev {name}")
            lines.append(f"route replace {place} dev lo table {ruleset.HOLD_GROUP}")
        run_tool("ip", "-batch", "-", text="\n".join([*lines, ""]))
        self._addresses = wanted
        for address in set(self._peers) - set(theirs):
            place = f"{address}/{address.max_prefixlen}"
            quietly("ip", "route", "del", place, "dev", name)
            quietly("ip", "route", "del", place, "table", str(ruleset.HOLD_GROUP))

    async def _nft(self, text: str) -> None:
        await self._later(run_tool, "nft", "-f", "-", text=text)

    def _known(self, peer: Peer, config: GatewayConfig) -> Served | None:
        """Who serves this peer already, if nothing but its policy has changed."""
        known = self._peers.get(peer.address)
        same = (config.addresses, config.resolver) == (
            self._config.addresses,
            self._config.resolver,
        )
        if known is None or not same or known.gate.peer.addresses != peer.addresses:
            return None
        return known if known.gate.peer.name == peer.name else None

    async def _serve(self, config: GatewayConfig) -> None:
        if self._servers and (config.addresses, config.services) == (
            self._config.addresses,
            self._config.services,
        ):
            return
        self._end_servers()
        await asyncio.sleep(0)  # a transport's socket is closed in the loop's next round
        questions, others = self._do(self._open_servers, config)
        for sock in questions:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(self._peers), sock=sock
            )
            self._datagrams.append(transport)
        talks = [self._dns_over_tcp] * len(questions) + [self._accepted] * len(others)
        for sock, talk in zip(others, talks, strict=False):
            self._servers.append(await asyncio.start_server(talk, sock=sock, backlog=_BACKLOG))

    def _open_servers(
        self, config: GatewayConfig
    ) -> tuple[list[socket.socket], list[socket.socket]]:
        """The resolver's UDP sockets; and as many TCP sockets, the services' and the listeners."""
        questions = []
        for address in config.addresses:
            sock = socket.socket(_family(address), socket.SOCK_DGRAM)
            sock.bind((str(address), DNS_PORT))
            sock.setblocking(False)
            questions.append(sock)
        places = {(service.address, service.port) for service in config.services}
        others = [_listening(address, DNS_PORT) for address in config.addresses]
        others += [_listening(*place, beside=self.beside) for place in sorted(places, key=str)]
        return questions, others + self._listeners(config)

    def _end_servers(self) -> None:
        for transport in self._datagrams:
            transport.close()
        self._datagrams = []
        for server in self._servers:
            server.close()
        self._servers = []

    async def _dns_over_tcp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        served = self._peers.get(_source(writer))
        try:
            if served is not None:
                gate = served.gate
                flow = gate.flow("tcp", *self._destination(writer))
                with gate.counted(flow, Decision(Verdict.ALLOW, "", "")) as counted:
                    async with asyncio.timeout(_DNS_IDLE):
                        while counted:
                            size = int.from_bytes(await reader.readexactly(2), "big")
                            query = await reader.readexactly(size)
                            answer = await gate.nameserver.reply(query, tcp=True)
                            if not answer:
                                break
                            writer.write(len(answer).to_bytes(2, "big") + answer)
                            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            pass  # the peer's end, its patience, or ours
        finally:
            writer.transport.abort()

    # Flows that this process joins: services', and those that the kernel turns here.

    def _hold_come(self, holding: Holding) -> None:
        for held in holding.come():
            self._spawn(self._through(held))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _through(self, held: Held) -> None:
        """Decided, and joined, or refused in the network's own words."""
        packet = held.packet
        served = self._peers.get(packet.source)
        with held:
            if served is not None:
                gate = served.gate
                flow = gate.flow("tcp", packet.address, packet.port)
                decision = gate.decide(flow, packet.source)
                if decision.verdict is Verdict.ALLOW:
                    work = self._joined(held, flow, decision, gate)
                    with contextlib.suppress(asyncio.CancelledError):  # by a changed policy
                        await gate.join(flow, decision, work)

    async def _joined(self, held: Held, flow: Flow, decision: Decision, gate: Gate) -> str:
        """Why the flow ended. Raises NotReached, Refused (OwnAddress) and OSError."""
        try:
            target = await reach(flow, decision, gate.own(flow))
        except NotReached as error:
            held.refuse(refused=error.refused)
            raise
        try:
            connection = await held.released()
        except TimeoutError:
            return "the peer did not complete its handshake"
        finally:
            if not held.accepted:
                target[1].transport.abort()
        return await _to_its_end(Joining(_Accepted(*connection), flow), target, connection)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The peer's end of a flow that was held: its target has accepted."""
        peer = writer.get_extra_info("peername")
        if peer is not None and self._holding is not None:
            source = addresses.of_socket(peer[0]), int(peer[1])
            with contextlib.suppress(OSError):  # it may have ended already
                held = self._holding.of(*source, *self._destination(writer))
                if held is not None and held.accept((reader, writer)):
                    return  # whoever waits for it ends it
        _reset(writer)

    # Seeing.

    def _hear(self, sock: socket.socket) -> None:
        for _ in range(64):
            try:
                raw = sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: more was said than there was room for
            for found in netlink.parse(raw):
                if isinstance(found, netlink.Seen):
                    self._seen(found)
                else:
                    self._gone(found)

    def _seen(self, packet: netlink.Seen) -> None:
        served = self._peers.get(packet.source)
        begin, _, rest = packet.prefix.partition(":")
        if served is None or begin != ruleset.PREFIX:
            return
        verdict, _, rest = rest.partition(":")
        gate, number = served.gate, rest.rpartition(":")[2]
        names = gate.names.names(packet.address, time.monotonic())
        flow = gate.flow(packet.protocol, packet.address, packet.port)
        again = gate.peer.policy.evaluate(packet.address, packet.port, packet.protocol, names)
        rule, reason = "", "a rule allows it"
        if verdict == "allow":
            if number.isdigit() and int(number) < len(gate.peer.policy.rules):
                flow.rule = gate.peer.policy.rules[int(number)].text
            elif number == LEARNED:
                flow.rule, reason = again.rule, again.reason
                _, rule = gate.explained(flow, again)
            flow.names = again.names
            if len(self._open) < _MOST_OPEN:
                self._open[_key(packet)] = flow, gate.log
        elif again.verdict is Verdict.ALLOW:
            reason = "too many flows, or too many new ones a second"
        else:
            again, rule = gate.explained(flow, again)
            flow.rule, reason = again.rule, again.reason
        gate.log.tell({**flow.event("flow", verdict, reason), "mend": rule})

    def _gone(self, gone: netlink.Gone) -> None:
        flow, log = self._open.pop(_key(gone), (None, None))
        if flow is not None and log is not None:
            flow.bytes_out, flow.bytes_in = gone.bytes_out, gone.bytes_in
            log.tell(flow.end("allow", "closed"))

    async def _look_around(self, ends: socket.socket) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            with contextlib.suppress(OSError):
                netlink.sweep(ends)
            for served in dict.fromkeys(self._peers.values()):
                served.gate.log.summarise()
                mine = served.gate.peer.name
                await served.gate.prolong(f for f, _ in self._open.values() if f.peer == mine)

    def _wireguard_go_died(self) -> None:
        self._forget_wireguard_go()
        self._report({"event": "fault", "detail": "wireguard-go died, and with it the tunnel"})
        self._give_up()

    def _forget_wireguard_go(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def stop(self) -> None:
        """End what is open, and take away what was made."""
        self._forget_wireguard_go()
        self._end_servers()
        if self._holding is not None:
            asyncio.get_running_loop().remove_reader(self._holding)
            self._holding.close()
        for task in self._tasks:
            task.cancel()
        self._leave_place()
        for served in dict.fromkeys(self._peers.values()):
            served.close()

    def _leave_place(self) -> None:
        """Take away the interface, then the table, then put back what was changed."""
        if self._lock < 0:
            return
        quietly("ip", "link", "delete", self._interface)
        quietly("ip", "rule", "del", *_BACK.split())
        for version in ("-4", "-6"):
            quietly("ip", version, "route", "flush", "table", str(ruleset.HOLD_GROUP))
        self._end_wireguard_go()
        for name, value in self._settings.items():
            with contextlib.suppress(HostError):
                system(name, value)
        quietly("nft", "delete", "table", *ruleset.table_name(self._interface).split())
        os.ftruncate(self._lock, 0)
        os.close(self._lock)
        self._lock = -1

    def _end_wireguard_go(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(3)


async def _to_its_end(joining: Joining, target: Target, connection: Accepted) -> str:
    """Until the peer has taken all of it as well: it is an open flow for as long as that takes."""
    _, writer = connection
    ended = ""
    try:
        ended = await joining.run(target)
        if ended == "closed":
            writer.close()
            with contextlib.suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(_TAKES_REST):
                    await writer.wait_closed()
    finally:
        if ended == "closed":
            writer.transport.abort()
        else:
            _reset(writer)
    return ended


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # the peer was faster
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class _Accepted:
    """A connection that was accepted, as `Joining` wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.read, self.write = reader.read, writer.write
        self.drain, self.write_eof = writer.drain, writer.write_eof


class _Datagrams(asyncio.DatagramProtocol):
    """The resolver's UDP side; a source that is no peer's is not answered."""

    def __init__(self, peers: dict[Address, Served]) -> None:
        self._peers = peers
        self._transport: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        served = next((s for a, s in self._peers.items() if str(a) == address[0]), None)
        if served is not None:
            task = asyncio.get_running_loop().create_task(self._answer(served, data, address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, served: Served, data: bytes, address: tuple[Any, ...]) -> None:
        if answer := await served.gate.nameserver.reply(data):
            self._transport.sendto(answer, address)


def _source(writer: asyncio.StreamWriter) -> Address:
    return addresses.of_socket(writer.get_extra_info("peername")[0])


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _listening(address: Address, port: int, *, beside: bool = False) -> socket.socket:
    """``beside``: others of this process's listen on that number, at any address."""
    return socket.create_server((str(address), port), family=_family(address), reuse_port=beside)


def _key(flow: netlink.Seen | netlink.Gone) -> tuple[object, ...]:
    return flow.source, flow.source_port, flow.address, flow.port, flow.protocol


def _difference(text: str, seen: dict[str, Any]) -> str:
    """What of a ruleset's text is not in nft's own listing of the table; empty if all is there."""
    chains = {item["chain"]["name"]: item["chain"] for item in seen["nftables"] if "chain" in item}
    counted: dict[str, int] = {}
    for item in seen["nftables"]:
        if "rule" in item:
            name = item["rule"]["chain"]
            counted[name] = counted.get(name, 0) + 1
    for name in ("input", "forward"):
        if chains.get(name, {}).get("policy") != "drop":
            return f"chain {name} does not drop by default"
    chain = ""
    expected: dict[str, int] = {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith("chain "):
            chain = line.split()[1]
            expected[chain] = 0
        elif line == "}":
            chain = ""
        elif chain and not line.startswith("type "):
            expected[chain] += 1
    for name, count in expected.items():
        if counted.get(name, 0) != count:
            return f"chain {name} has {counted.get(name, 0)} rules, not {count}"
    return ""
