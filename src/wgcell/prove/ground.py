"""Where the battery is played: a host with one cable, and a LAN of decoys at its other end.

::

    namespace of the host                          namespace of the decoys
    relay, QEMU, the battery itself                198.51.100.10:51820  endpoint (boringtun)
                                                   198.51.100.11:51820  an endpoint that is silent
    lo                                             192.0.2.10  192.0.2.254  192.168.1.1  10.0.0.1
    lan0 192.0.2.1/24  <------ veth ------>  lan1  169.254.169.254  203.0.113.7 …  live: they answer
         default via 192.0.2.254                   ARP, ping, and on TCP and UDP ports

No IPv6 and no ARP of the kernels' own, so that a quiet cable carries nothing at all: every packet
that the captures in both namespaces see is the cell's doing.

Both namespaces are this process's own, made as root or in a user namespace of this user's, and
they are gone with it. Where they can't be made, `InProcessGround` stands at the relay's only
socket instead: it sees all that the relay sends there, and nothing that takes another way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Protocol

import mitmproxy_rs

from wgcell import programs
from wgcell.errors import HostError
from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key
from wgcell.prove import packets
from wgcell.prove.oracle import Capture, Packet

__all__ = ["ENDPOINT", "LIVE_HOSTS", "Ground", "InProcessGround", "NamespaceGround", "prepare"]

ENDPOINT = "198.51.100.10"
SILENT_ENDPOINT = "198.51.100.11"
PORT = 51820
HOST = "192.0.2.1"
LIVE_HOSTS = (
    *("192.0.2.10", "192.0.2.254", "192.168.1.1", "10.0.0.1", "172.16.0.1"),
    *("169.254.169.254", "203.0.113.7", "198.51.100.53"),
)
LIVE_TCP = (22, 53, 80, 443)
LIVE_UDP = (53, 67, 123, 443, 1900, 5353, 51820)
HANDSHAKES = 8
"""How many each peer's key is used for: boringtun, as mitmproxy_rs runs it, answers a peer's
first ten and sends cookies from then on."""

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CAPABILITIES = (12, 13, 21)  # CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _new_network() -> None:
    """A user namespace where we need one, and an empty network namespace."""
    if os.geteuid() == 0:
        _call("unshare", _CLONE_NEWNET)
        return
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
    # Mapped to ourselves: what we start runs as this user without a capability, as it always does.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _keep_capabilities() -> None:
    """Run between fork and exec: capabilities outlive the exec of a user who is not root."""
    head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _call("capget", head, sets)
    sets[2] |= sum(1 << number for number in _CAPABILITIES)
    _call("capset", head, sets)
    for number in _CAPABILITIES:
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)


def _ip(lines: list[str], keep: int) -> None:
    program = programs.find("ip")
    if program is None:
        raise HostError("ip is not installed", hint="apt-get install iproute2")
    done = subprocess.run(
        [program, "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=(keep,),
        env=programs.environment(),
        preexec_fn=_keep_capabilities,
    )
    if done.returncode != 0:
        raise HostError(f"the decoy LAN could not be made: {done.stderr.strip()}")


def _no_ipv6() -> None:
    for which in ("all", "default"):
        setting = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if setting.exists():
            setting.write_text("1")


class Ground(Protocol):
    """What a runner needs of it."""

    sees: str
    """What the oracle sees, for the report."""
    whole: bool
    """Whether every way out is watched, and not only the relay's socket."""
    endpoint: tuple[str, int]
    wire: socket.socket | None
    """A raw socket on the host's card: what a plain tap would be joined to."""

    async def start(self) -> None:
        """Start the endpoint."""

    async def stop(self) -> None:
        """Stop it."""

    def next_key(self) -> bytes:
        """The private key of a peer that the endpoint knows."""

    def endpoint_public_key(self) -> bytes:
        """The endpoint's."""

    def tunnel_socket(self, *, silent: bool = False) -> socket.socket:
        """A connected UDP socket, as the supervisor makes it."""

    def open_socket(self) -> socket.socket:
        """A UDP socket that takes datagrams of anyone: the control of inbound cases."""

    def from_endpoint(self, port: int, payload: bytes) -> None:
        """A datagram from the endpoint's address and port, to ``port`` of the host."""

    def from_stranger(self, port: int, payload: bytes) -> None:
        """A datagram from someone else, to ``port`` of the host."""

    def from_wire(self, frame: bytes) -> bool:
        """A frame as it stands, from the LAN; False if there is no LAN."""

    def collect(self) -> list[Packet]:
        """What was seen since the last time."""

    def lost(self) -> int:
        """How much was not."""


class _Keys:
    _server: mitmproxy_rs.wireguard.WireGuardServer | None = None

    async def stop(self) -> None:
        """Stop the endpoint."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def __init__(self, relays: int) -> None:
        """Keys for so many relays, each of which may make two handshakes or three."""
        self._endpoint = generate_private_key()
        self._peers = [generate_private_key() for _ in range(relays * 3 // HANDSHAKES + 8)]
        self._next = 0

    def next_key(self) -> bytes:
        """The next peer's private key."""
        self._next += 1
        return decode_key(self._peers[self._next % len(self._peers)])

    def endpoint_public_key(self) -> bytes:
        """The endpoint's public key."""
        return decode_key(public_key(self._endpoint))

    def serve(
        self, host: str, port: int
    ) -> Coroutine[object, None, mitmproxy_rs.wireguard.WireGuardServer]:
        """Begin to start boringtun; to be awaited."""

        async def end(stream: mitmproxy_rs.Stream) -> None:
            stream.close()  # type: ignore[no-untyped-call]

        peers = [public_key(key) for key in self._peers]
        return mitmproxy_rs.wireguard.start_wireguard_server(
            host, port, self._endpoint, peers, end, end
        )


class NamespaceGround(_Keys):
    """The two namespaces. Made while this process has one thread, and once only."""

    whole = True

    def __init__(self, relays: int) -> None:
        super().__init__(relays)
        _new_network()
        self._host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _call("unshare", _CLONE_NEWNET)
        self._decoys = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _call("setns", self._host, 0)
        self.endpoint = (ENDPOINT, PORT)
        self._cable()
        targets = frozenset(map(socket.inet_aton, (ENDPOINT, SILENT_ENDPOINT)))
        self._captures = [Capture("host", True, targets, PORT)]
        self.wire: socket.socket | None = self._raw("lan0")
        with self._among_decoys():
            self._captures.append(Capture("LAN", False, targets, PORT))
            self._lan = self._raw("lan1")
            self._sinks = list(self._live())
            self._strange = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._strange.bind(("192.0.2.10", 40123))
        addresses = ", ".join(("lo", "lan0", "lan1"))
        self.sees = f"every interface of two network namespaces ({addresses})"

    @contextlib.contextmanager
    def _among_decoys(self) -> Iterator[None]:
        """Sockets made within belong to the decoys' namespace for good."""
        _call("setns", self._decoys, 0)
        try:
            yield
        finally:
            _call("setns", self._host, 0)

    def _cable(self) -> None:
        _no_ipv6()
        there = f"/proc/self/fd/{self._decoys}"
        mac, their_mac = "02:00:00:00:02:01", "02:00:00:00:02:fe"
        _ip(
            [
                f"link add lan0 address {mac} type veth peer name lan1 address {their_mac}"
                f" netns {there}",
                "link set lo up",
                # Segments as they stand on a wire: a capture must see each datagram alone.
                "link set lan0 mtu 65535 gso_max_segs 1",
                "link set lan0 up",
                f"addr add {HOST}/24 dev lan0",
                *(
                    f"neigh replace {host} lladdr {their_mac} nud permanent dev lan0"
                    for host in ("192.0.2.254", "192.0.2.10")
                ),
                "route add default via 192.0.2.254",
            ],
            self._decoys,
        )
        with self._among_decoys():
            _no_ipv6()
            addresses = (ENDPOINT, SILENT_ENDPOINT, *LIVE_HOSTS)
            _ip(
                [
                    "link set lo up",
                    "link set lan1 mtu 65535",
                    "link set lan1 up",
                    "addr add 192.0.2.254/24 dev lan1",
                    *(f"addr replace {address}/32 dev lan1" for address in addresses),
                    f"neigh replace {HOST} lladdr {mac} nud permanent dev lan1",
                ],
                self._decoys,
            )

    def _raw(self, interface: str) -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        raw.bind((interface, 0))
        raw.setblocking(False)
        return raw

    def _live(self) -> Iterator[socket.socket]:
        """Decoys that take connections and datagrams; the kernel answers ARP and ping for them."""
        for port in LIVE_TCP:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind(("0.0.0.0", port))  # noqa: S104 - in a namespace of our own
            listener.listen(16)
            yield listener
        for host in LIVE_HOSTS:
            for port in LIVE_UDP:
                yield self._sink(host, port)
        yield self._sink(SILENT_ENDPOINT, PORT)

    def _sink(self, host: str, port: int) -> socket.socket:
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind((host, port))
        return sink

    async def start(self) -> None:
        """Start boringtun among the decoys: its threads are born there."""
        with self._among_decoys():
            starting = self.serve(ENDPOINT, PORT)
        self._server = await starting

    def tunnel_socket(self, *, silent: bool = False) -> socket.socket:
        """A connected UDP socket of the host's namespace."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.connect((SILENT_ENDPOINT if silent else ENDPOINT, PORT))
        return made

    def open_socket(self) -> socket.socket:
        """A UDP socket of the host's namespace that is bound, not connected."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.bind((HOST, 0))
        return made

    def from_endpoint(self, port: int, payload: bytes) -> None:
        """Spoofed on the wire, as anyone on the path could."""
        self.from_wire(_datagram_frame(ENDPOINT, PORT, HOST, port, payload))

    def from_stranger(self, port: int, payload: bytes) -> None:
        """From another host of the LAN."""
        self._strange.sendto(payload, (HOST, port))

    def from_wire(self, frame: bytes) -> bool:
        """A frame from the decoys' end of the cable."""
        self._lan.send(frame)
        return True

    def collect(self) -> list[Packet]:
        """All that either capture saw."""
        for sink in self._sinks:
            if sink.type & socket.SOCK_DGRAM:
                with contextlib.suppress(BlockingIOError):
                    while sink.recv(1, socket.MSG_DONTWAIT):
                        pass
        return [packet for capture in self._captures for packet in capture.collect()]

    def lost(self) -> int:
        """What the captures missed."""
        return sum(capture.lost() for capture in self._captures)


class InProcessGround(_Keys):
    """No right to make namespaces: the oracle is a socket of ours in front of the endpoint."""

    whole = False
    wire: socket.socket | None = None

    def __init__(self, why: str, relays: int) -> None:
        super().__init__(relays)
        self.sees = f"the relay's only socket, in this process ({why})"
        self._seen: list[Packet] = []
        self._fronts: dict[int, tuple[socket.socket, socket.socket | None]] = {}

    async def start(self) -> None:
        """Start boringtun on loopback."""
        self._server = await self.serve("127.0.0.1", 0)
        self.endpoint = self._server.getsockname()[:2]

    def tunnel_socket(self, *, silent: bool = False) -> socket.socket:
        """Connected to a socket of ours, which records and passes on."""
        made, front = _loopback(), _loopback()
        made.connect(front.getsockname())
        front.connect(made.getsockname())
        back = None if silent else _loopback()
        if back is not None:
            back.connect(self.endpoint)
        self._fronts[made.getsockname()[1]] = (front, back)
        loop = asyncio.get_running_loop()
        loop.add_reader(front, self._outward, front, back)
        if back is not None:
            loop.add_reader(back, self._inward, back, front)
        return made

    def _outward(self, front: socket.socket, back: socket.socket | None) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = front.recv(1 << 16)
                self._seen.append(Packet("relay's socket", True, data, data))
                if back is not None:
                    back.send(data)

    def _inward(self, back: socket.socket, front: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                front.send(back.recv(1 << 16))

    def open_socket(self) -> socket.socket:
        """Bound, not connected."""
        return _loopback()

    def from_endpoint(self, port: int, payload: bytes) -> None:
        """From the socket that the relay's is connected to."""
        front = self._fronts.get(port)
        with contextlib.suppress(OSError):
            if front is not None:
                front[0].send(payload)
            else:
                self.from_stranger(port, payload)

    def from_stranger(self, port: int, payload: bytes) -> None:
        """From a socket that is nobody's endpoint."""
        with _loopback() as stranger, contextlib.suppress(OSError):
            stranger.sendto(payload, ("127.0.0.1", port))

    def from_wire(self, frame: bytes) -> bool:
        """There is no wire here."""
        return False

    def collect(self) -> list[Packet]:
        """What passed the relay's socket."""
        for front, back in self._fronts.values():
            self._outward(front, back)
        seen, self._seen = self._seen, []
        return seen

    def lost(self) -> int:
        """A socket that is read each time it has something loses nothing that matters."""
        return 0


def _loopback() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    made.bind(("127.0.0.1", 0))
    return made


def _datagram_frame(
    source: str, source_port: int, destination: str, port: int, payload: bytes
) -> bytes:
    a, b = socket.inet_aton(source), socket.inet_aton(destination)
    datagram = packets.udp(
        payload, source=a, destination=b, source_port=source_port, destination_port=port
    )
    packet = packets.ipv4(datagram, source=a, destination=b)
    return packets.ethernet(
        packet,
        destination=bytes.fromhex("020000000201"),
        source=bytes.fromhex("0200000002fe"),
    )


def _refused() -> str:
    """Why namespaces can't be made here; empty if they can. Tried by a child, which then ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _new_network()
            _call("unshare", _CLONE_NEWNET)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
                pass
        except OSError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    why = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return why


def prepare(relays: int) -> Ground:
    """The best ground this machine gives, for so many relays; call it before any thread starts.

    Raises HostError if namespaces may be made but not furnished.
    """
    why = _refused()
    if why:
        return InProcessGround(f"no namespaces here: {why}", relays)
    return NamespaceGround(relays)
