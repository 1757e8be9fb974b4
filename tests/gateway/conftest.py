"""A small Internet in network namespaces, and a gateway in the middle of it.

::

    client                     gateway                      world
    10.99.0.2 (wireguard-go)   10.99.0.1                    203.0.113.7, .8, 2001:db8::7
    192.0.2.2 ------ veth ---- 192.0.2.1                    dnsmasq on 198.51.100.2:53
                               198.51.100.1 ------ veth --- 198.51.100.2

Everything is made in a user namespace of the test's own, so it needs no root, and ends with the
processes that hold it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import itertools
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import dns.message
import pytest
from tests.waiting import GENEROUS, lull, until

from wgcell.gateway import words
from wgcell.gateway.model.document import written
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.source import Source

_HOLDER = """
import socket, sys
ours = socket.socket(fileno=int(sys.argv[1]))
ours.send(b"up")
while ask := ours.recv(100):
    with socket.socket(*map(int, ask.split())) as made:
        socket.send_fds(ours, [b"x"], [made.fileno()])
"""


class Net:
    """One network namespace. ``parent`` lends its user namespace, so that links can join them."""

    def __init__(self, parent: Net | None = None) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(GENEROUS)
        unshare = ["unshare", "-nm"] if parent else ["unshare", "-rnm"]
        setup = 'mount -t tmpfs none /run && mkdir /run/wireguard && exec "$@"'
        argv = [*(parent.enter if parent else ()), *unshare, "sh", "-c", setup, "sh"]
        argv += [sys.executable, "-c", _HOLDER, str(theirs.fileno())]
        self._holder = subprocess.Popen(argv, pass_fds=(theirs.fileno(),))
        theirs.close()
        assert self._ours.recv(2) == b"up"
        self._children: list[subprocess.Popen[Any]] = []
        self.pid = self._holder.pid
        self.enter = ("nsenter", "--preserve-credentials", "-U", "-n", "-m", "-t", str(self.pid))
        self.run("ip", "link", "set", "lo", "up")
        # No port that the kernel chooses is one that a test has chosen.
        self.run("sh", "-c", "echo 10000 19999 > /proc/sys/net/ipv4/ip_local_port_range")

    def run(self, *argv: str, check: bool = True, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.enter, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=GENEROUS,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        child = subprocess.Popen([*self.enter, *argv], **options)
        self._children.append(child)
        return child

    def socket(
        self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, protocol: int = 0
    ) -> socket.socket:
        self._ours.send(f"{int(family)} {int(kind)} {protocol}".encode())
        _, fds, _, _ = socket.recv_fds(self._ours, 1, 1)
        made = socket.socket(fileno=fds[0])
        made.settimeout(20)
        return made

    def close(self) -> None:
        for child in self._children:
            # nsenter has become the program itself: its pid is the child's.
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for child in self._children:
            try:
                child.wait(GENEROUS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe:
                    pipe.close()
        self._ours.close()
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait()


def link(
    one: Net, name: str, address: str, other: Net, other_name: str, other_address: str
) -> None:
    one.run(
        "ip",
        "link",
        "add",
        name,
        "type",
        "veth",
        "peer",
        "name",
        other_name,
        "netns",
        str(other.pid),
    )
    for net, device, place in ((one, name, address), (other, other_name, other_address)):
        net.run("ip", "addr", "add", place, "dev", device)
        net.run("ip", "link", "set", device, "up")


ENGINES = ("embedded", "namespace", "kernel")
NO_DAD = {True: ("nodad",), False: ()}
"""An address of IPv6 is there at once."""
WORLD = ("203.0.113.7", "203.0.113.8", "2001:db8::7")
RESOLVER = "198.51.100.2"
_DNS = (
    "--local=/example.com/",
    "--host-record=api.example.com,203.0.113.7,2001:db8::7,3600",
    "--host-record=b.example.com,203.0.113.8,3600",
    "--host-record=shared.example.com,203.0.113.7,3600",
    "--host-record=brief.example.com,203.0.113.8,1",
    "--host-record=inside.example.com,198.51.100.2,3600",
    "--host-record=rebind.example.com,192.168.1.1,3600",
    "--host-record=far.example.com,203.0.113.7,2001:db8:f::1,3600",
    "--host-record=farther.example.com,2001:db8:f::2,3600",
    "--txt-record=api.example.com,hello",
    "--cname=www.example.com,api.example.com",
    "--cname=deep.example.com,www.example.com",
    *(f"--host-record=many.example.com,203.0.113.{n},3600" for n in range(10, 90)),
)


class Topology:
    """The three namespaces, with a DNS server and whatever servers a test starts in the world."""

    def __init__(self) -> None:
        self._ending = contextlib.ExitStack()
        self.gateway = self._ending.enter_context(contextlib.closing(Net()))
        self.client = self._ending.enter_context(contextlib.closing(Net(self.gateway)))
        self.world = self._ending.enter_context(contextlib.closing(Net(self.gateway)))
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        link(self.client, "left", "192.0.2.2/24", self.gateway, "right", "192.0.2.1/24")
        link(self.gateway, "left", "198.51.100.1/24", self.world, "right", "198.51.100.2/24")
        for address in WORLD:
            self.world.run("ip", "addr", "add", address, "dev", "lo", *NO_DAD[":" in address])
        self.gateway.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.2")
        self.gateway.run("ip", "-6", "addr", "add", "2001:db8:1::1/64", "dev", "left", "nodad")
        self.world.run("ip", "-6", "addr", "add", "2001:db8:1::2/64", "dev", "right", "nodad")
        self.gateway.run("ip", "-6", "route", "add", "2001:db8::7", "via", "2001:db8:1::2")
        self.world.start(
            *("dnsmasq", "-k", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root"),
            *("--group=", "--pid-file=", "--log-facility=-", f"--listen-address={RESOLVER}"),
            *("--bind-interfaces", "--edns-packet-max=4096", *_DNS),
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        self._ending.close()


class Server:
    """A TCP server in the world that answers each connection by ``talk`` in a thread."""

    def __init__(
        self, net: Net, address: str, port: int, talk: Callable[[socket.socket], None]
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = net.socket(family=family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, port))
        self._listener.listen(1024)
        self._listener.settimeout(None)
        self._talk = talk
        self._ended = False
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        talking = []
        while not self._ended:
            with contextlib.suppress(OSError):  # its shutdown, at the end
                client, _ = self._listener.accept()
                client.settimeout(8)
                self._clients.append(client)
                talking.append(threading.Thread(target=self._one, args=(client,), daemon=True))
                talking[-1].start()
        for thread in talking:
            thread.join()

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._talk(client)

    def close(self) -> None:
        self._ended = True
        self._listener.shutdown(socket.SHUT_RDWR)
        for client in self._clients:
            with contextlib.suppress(OSError):  # it may be closed by now
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@contextlib.contextmanager
def serving(
    net: Net, places: Iterable[tuple[str, int]], talk: Callable[[socket.socket], None]
) -> Iterator[None]:
    """A `Server` at each of ``places`` meanwhile: none is left if another can't be started."""
    with contextlib.ExitStack() as ending:
        for place in places:
            ending.enter_context(contextlib.closing(Server(net, *place, talk)))
        yield


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


@pytest.fixture
def gateway() -> Iterator[Callable[..., Gateway]]:
    """Starts gateways on loopback; they end with the test."""
    started: list[Gateway] = []

    def start(engine: str = "embedded", **changes: Any) -> Gateway:
        started.append(Gateway(config_of(**changes), argv=[engine]))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    made = Topology()
    yield made
    made.close()


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
