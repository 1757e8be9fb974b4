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

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.support.waiting import GENEROUS

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
