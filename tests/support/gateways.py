"""Gateway processes and their peers: a gateway's events as they come, and tunnels to it."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import ipaddress
import itertools
import json
import os
import queue
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dns.message
import dns.rcode
from tests.support.networks import NO_DAD, RESOLVER, Net, Topology
from tests.support.waiting import GENEROUS, lull, until

from wgcell.gateway import words
from wgcell.gateway.model.document import written
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.source import Source

LOOPBACK = ipaddress.ip_address("127.0.0.1")
ENGINES = ("embedded", "namespace", "kernel")


_ANSWERS = ("policy_changed", "order_refused", "rules_listed")


class Gateway:
    """A gateway process and its events, read as they come."""

    def __init__(
        self, config: dict[str, Any], prefix: tuple[str, ...] = (), argv: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.engine = argv[0] if argv else "embedded"
        self._stopped = False
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "wgcell.gateway", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        try:
            self.tell(config)
            first = self._events.get(timeout=GENEROUS)
            assert first is not None, "the gateway has ended"
        except BaseException:
            self.kill()
            raise
        self.first = first

    @property
    def _pipe(self) -> int:
        assert self.process.stdout
        return self.process.stdout.fileno()

    def tell(self, config: dict[str, Any]) -> None:
        self.say(words.ORDERS.line(order_of(config)))

    def order(self, order: words.Order) -> dict[str, Any]:
        """Give it an order about its rules; the answer."""
        self.say(words.ORDERS.line(order))
        while (event := self.event())["event"] not in _ANSWERS:
            pass
        return event

    def say(self, line: bytes) -> None:
        """Whatever ``line`` is."""
        assert self.process.stdin
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def _read(self) -> None:
        unfinished = b""
        while select.select([self._pipe], [], []):
            with self._reading:
                data = os.read(self._pipe, 65536)
                *lines, unfinished = (unfinished + data).split(b"\n")
                for line in lines:
                    self._events.put(json.loads(line))
            if not data:
                self._events.put(None)
                return

    def event(self, kind: str = "", timeout: float = GENEROUS) -> dict[str, Any]:
        """The next event, or the next of ``kind``."""
        end = time.monotonic() + timeout
        while True:
            found = self._events.get(timeout=max(0.01, end - time.monotonic()))
            assert found is not None, "the gateway has ended"
            assert found["event"] not in {"fault", "stumble"} - {kind}, found
            if not kind or found["event"] == kind:
                return found

    def inside(self) -> tuple[str, ...]:
        """What enters the network where its tunnel ends, from where it was started."""
        if self.engine == "kernel":
            return ()
        pid = self.process.pid
        threads = [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
        ours = os.readlink(f"/proc/{pid}/ns/net")
        thread = next(t for t in threads if os.readlink(f"{t}/ns/net") != ours)
        places = (f"--user={thread}/ns/user", f"--net={thread}/ns/net", f"--mount={thread}/ns/mnt")
        return ("nsenter", "--preserve-credentials", *places)

    def _all_read(self) -> bool:
        unread = array.array("i", [0])
        with self._reading:
            fcntl.ioctl(self._pipe, termios.FIONREAD, unread)
        return not unread[0]

    def drain(self) -> list[dict[str, Any]]:
        """All that has been told by now: what is told before an answer is, once that has come."""
        if not self._stopped:
            until(self._all_read)
        found = []
        with contextlib.suppress(queue.Empty):
            while event := self._events.get_nowait():
                found.append(event)
        return found

    def told(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """What is told until it is ``enough``, and what comes a moment later."""
        found: list[dict[str, Any]] = []

        def looked() -> bool:
            found.extend(self.drain())
            return enough(found)

        until(looked)
        lull(0.2)
        return found + self.drain()

    def close(self) -> int:
        if not self._stopped:
            self._stopped = True
            assert self.process.stdin
            assert self.process.stdout
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            try:
                self.process.wait(GENEROUS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._thread.join(GENEROUS)
            self.process.stdout.close()
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.close()


SERVER, CLIENT = generate_private_key(), generate_private_key()


def config_of(**changes: Any) -> dict[str, Any]:
    """A gateway for one peer, ``cell``, on a free port of loopback; and ``changes``."""
    peer = {"public_key": public_key(CLIENT), "address": "10.99.0.2"}
    return {"listen": "127.0.0.1:0", "private_key": SERVER, "peers": {"cell": peer}, **changes}


def order_of(config: dict[str, Any]) -> words.Configure:
    """``config``, a file's tables, as what a gateway is given."""
    return written(config, Source("a test", ""))


_TABLES = itertools.count(100)


class Tunnel:
    """A peer: wireguard-go in the client's namespace, with routes of its own.

    ``also`` is a second address, of IPv6, beside one of IPv4.
    """

    def __init__(
        self,
        net: Net,
        name: str,
        private_key: str,
        address: str,
        server_key: str,
        port: int,
        preshared_key: str = "",
        also: str = "",
    ) -> None:
        self.net, self.name, self.address, self.also = net, name, address, also
        six = ":" in address
        self.family = socket.AF_INET6 if six else socket.AF_INET
        self.resolver = "fd99::1" if six else "10.99.0.1"
        self._daemon = net.start(
            "wireguard-go", "-f", name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        control = f"/proc/{net.pid}/root/run/wireguard/{name}.sock"

        def answers() -> bool:
            """Not asked by wg, which deletes a socket that refuses it before it listens."""
            ended = self._daemon.poll()
            assert ended is None, f"no {name}: exit code {ended}"
            with socket.socket(socket.AF_UNIX) as sock:
                return sock.connect_ex(control) == 0

        try:
            # It answers. What else it says hangs on a race of its own: a port is there once it
            # takes the interface, which is still down, for up.
            until(answers)
            self._set_up(private_key, server_key, port, preshared_key)
        except BaseException:
            self._daemon.kill()
            self._daemon.wait()
            raise

    def _set_up(self, private_key: str, server_key: str, port: int, preshared_key: str) -> None:
        net, address, also, name = self.net, self.address, self.also, self.name
        everywhere, host, ip = (
            ("::/0", "128", "-6") if ":" in address else ("0.0.0.0/0", "32", "-4")
        )
        lines = [f"[Interface]\nPrivateKey = {private_key}\n[Peer]\nPublicKey = {server_key}"]
        lines += [f"PresharedKey = {preshared_key}"] if preshared_key else []
        everywhere += ", ::/0" if also else ""
        lines += [f"AllowedIPs = {everywhere}", f"Endpoint = 192.0.2.1:{port}"]
        net.run("wg", "setconf", name, "/dev/stdin", stdin="\n".join(lines) + "\n")
        table = str(next(_TABLES))
        net.run("ip", "link", "set", name, "mtu", "1420", "up")
        self._families = {ip: f"{address}/{host}", **({"-6": f"{also}/128"} if also else {})}
        # The latest tunnel of an address is the one that its packets take.
        preference = str(1000 - int(table))
        for family, place in self._families.items():
            net.run("ip", "addr", "add", place, "dev", name, *NO_DAD[family == "-6"])
            net.run("ip", family, "route", "add", "default", "dev", name, "table", table)
            rule = ("pref", preference, "from", place, "table", table)
            net.run("ip", family, "rule", "add", *rule)
        self.table = table

    def close(self) -> None:
        for family in self._families:
            self.net.run("ip", family, "rule", "del", "table", self.table)
        self._daemon.terminate()
        self._daemon.wait(GENEROUS)

    def own(self, address: str) -> tuple[socket.AddressFamily, str]:
        """The family of ``address``, and our own one of that family."""
        if self.also and ":" in address:
            return socket.AF_INET6, self.also
        return self.family, self.address

    def connect(self, address: str, port: int, timeout: float = 20) -> socket.socket:
        family, own = self.own(address)
        made = self.net.socket(family=family)
        made.settimeout(timeout)
        try:
            made.bind((own, 0))
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def talk(
        self, address: str, port: int, data: bytes = b"x", timeout: float = 20
    ) -> bytes | None:
        """What the other side answers to ``data``; None if the flow is refused, in any way."""
        try:
            with self.connect(address, port, timeout) as stream:
                stream.sendall(data)
                return stream.recv(65536) or None
        except ConnectionError:
            return None
        except OSError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES):
                return None
            raise

    def datagram(
        self, address: str, port: int, data: bytes = b"x", timeout: float = 4
    ) -> bytes | None:
        family, own = self.own(address)
        with self.net.socket(socket.SOCK_DGRAM, family) as sock:
            sock.settimeout(timeout)
            sock.bind((own, 0))
            sock.connect((address, port))
            try:
                sock.send(data)
                return sock.recv(65536)
            except (OSError, TimeoutError):
                return None

    def ask(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)
        raw = self.datagram(self.resolver, 53, query.to_wire(), timeout=20)
        assert raw is not None, "no answer"
        return dns.message.from_wire(raw)


ALICE = generate_private_key()


RULES = ["allow api.example.com:1-65535", "allow shared.example.com:443", "allow b.example.com:443"]


@contextlib.contextmanager
def between(
    topology: Topology, port: int = 52000, engine: str = "embedded", **changes: Any
) -> Iterator[tuple[Gateway, Tunnel]]:
    peer = {"public_key": public_key(ALICE), "address": "10.99.0.2", "port": port}
    config = {
        "listen": f"192.0.2.1:{port}",
        "private_key": SERVER,
        "rules": RULES,
        "resolver": [RESOLVER],
        "protected": ["198.51.100.0/24"],
        "peers": {"alice": peer},
        **changes,
    }
    argv = [engine, f"wgc{port}"]
    with contextlib.closing(Gateway(config, topology.gateway.enter, argv)) as gateway:
        assert gateway.first["event"] == "ready", gateway.first
        key = public_key(SERVER)
        tunnel = Tunnel(topology.client, f"hosts{port}", ALICE, "10.99.0.2", key, port)
        with contextlib.closing(tunnel):
            yield gateway, tunnel


@contextlib.contextmanager
def changed(gateway: Gateway, **changes: Any) -> Iterator[None]:
    """The same gateway under another policy, meanwhile."""
    gateway.tell({**gateway.config, **changes})
    gateway.event("applied")
    try:
        yield
    finally:
        gateway.tell(gateway.config)
        gateway.event("applied")
