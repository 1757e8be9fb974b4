"""The testbed with two network namespaces: every interface of both is captured."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from wgcell.net import linux
from wgcell.prove.battery import packets
from wgcell.prove.testbed import namespaces
from wgcell.prove.testbed.base import (
    ENDPOINT,
    HOST,
    LIVE_HOSTS,
    LIVE_TCP,
    LIVE_UDP,
    PORT,
    SILENT_ENDPOINT,
)
from wgcell.prove.testbed.capture import Capture, Packet
from wgcell.prove.testbed.endpoint import Endpoint

__all__ = ["LanTestbed"]

_HOST_MAC, _LAN_MAC = "02:00:00:00:02:01", "02:00:00:00:02:fe"
_ROUTER, _STRANGER = "192.0.2.254", "192.0.2.10"


class LanTestbed:
    """The two namespaces. To be made once, while this process has one thread."""

    complete = True

    def __init__(self, relays: int) -> None:
        self.endpoint = Endpoint(relays)
        self._host = namespaces.new_user_and_network()
        self._decoys = namespaces.new_network()
        namespaces.enter(self._host)
        self._make_cable()
        endpoints = frozenset(map(socket.inet_aton, (ENDPOINT, SILENT_ENDPOINT)))
        self._captures = [Capture("host", True, endpoints, PORT)]
        self.wire: socket.socket | None = _raw_socket("lan0")
        with self._among_decoys():
            self._captures.append(Capture("LAN", False, endpoints, PORT))
            self._lan = _raw_socket("lan1")
            self._sinks = list(_live_sockets())
            self._stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._stranger.bind((_STRANGER, 40123))
        interfaces = ", ".join(("lo", "lan0", "lan1"))
        self.sees = f"every interface of two network namespaces ({interfaces})"

    def _among_decoys(self) -> contextlib.AbstractContextManager[None]:
        return namespaces.inside(self._decoys, back=self._host)

    def _make_cable(self) -> None:
        namespaces.disable_ipv6()
        namespaces.configure_links(_host_links(f"/proc/self/fd/{self._decoys}"), self._decoys)
        with self._among_decoys():
            namespaces.disable_ipv6()
            namespaces.configure_links(_lan_links(), self._decoys)

    async def start(self) -> None:
        """Start boringtun among the decoys: its threads are born in their namespace."""
        with self._among_decoys():
            starting = self.endpoint.listen(ENDPOINT, PORT)
        await starting

    def tunnel_socket(self, *, silent: bool = False) -> socket.socket:
        """A connected UDP socket of the host's namespace."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.connect((SILENT_ENDPOINT if silent else ENDPOINT, PORT))
        return made

    def unconnected_socket(self) -> socket.socket:
        """A bound UDP socket of the host's namespace."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.bind((HOST, 0))
        return made

    def send_as_endpoint(self, port: int, payload: bytes) -> None:
        """Send a spoofed datagram, as anyone on the path could."""
        self.send_on_lan(_spoofed(ENDPOINT, PORT, HOST, port, payload))

    def send_as_stranger(self, port: int, payload: bytes) -> None:
        """Send from another host of the LAN."""
        self._stranger.sendto(payload, (HOST, port))

    def send_on_lan(self, frame: bytes) -> bool:
        """Send from the decoys' end of the cable."""
        self._lan.send(frame)
        return True

    def collect(self) -> list[Packet]:
        """All packets of both captures."""
        for sink in self._sinks:
            if sink.type & socket.SOCK_DGRAM:
                _empty(sink)
        return [packet for capture in self._captures for packet in capture.collect()]

    def lost(self) -> int:
        """How many packets the captures have missed."""
        return sum(capture.lost() for capture in self._captures)


def _host_links(decoys: str) -> list[str]:
    """The host's end, for ip(8). ``decoys`` is the path of the other end's namespace."""
    return [
        f"link add lan0 address {_HOST_MAC} type veth peer name lan1 address {_LAN_MAC}"
        f" netns {decoys}",
        "link set lo up",
        # No segmentation offload: a capture must see each datagram alone, as on a wire.
        "link set lan0 mtu 65535 gso_max_segs 1",
        "link set lan0 up",
        f"addr add {HOST}/24 dev lan0",
        *(
            f"neigh replace {neighbour} lladdr {_LAN_MAC} nud permanent dev lan0"
            for neighbour in (_ROUTER, _STRANGER)
        ),
        f"route add default via {_ROUTER}",
    ]


def _lan_links() -> list[str]:
    """The decoys' end, for ip(8)."""
    addresses = (ENDPOINT, SILENT_ENDPOINT, *LIVE_HOSTS)
    return [
        "link set lo up",
        "link set lan1 mtu 65535",
        "link set lan1 up",
        f"addr add {_ROUTER}/24 dev lan1",
        *(f"addr replace {address}/32 dev lan1" for address in addresses),
        f"neigh replace {HOST} lladdr {_HOST_MAC} nud permanent dev lan1",
    ]


def _raw_socket(interface: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(linux.ETH_P_ALL))
    raw.bind((interface, 0))
    raw.setblocking(False)
    return raw


def _live_sockets() -> Iterator[socket.socket]:
    """Decoys that take connections and datagrams. The kernel answers ARP and ping for them."""
    for port in LIVE_TCP:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("0.0.0.0", port))  # noqa: S104 - in a namespace of our own
        listener.listen(16)
        yield listener
    for host in LIVE_HOSTS:
        for port in LIVE_UDP:
            yield _sink(host, port)
    yield _sink(SILENT_ENDPOINT, PORT)


def _sink(host: str, port: int) -> socket.socket:
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind((host, port))
    return sink


def _empty(sink: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sink.recv(1, socket.MSG_DONTWAIT):
            pass


def _spoofed(source: str, source_port: int, destination: str, port: int, payload: bytes) -> bytes:
    """A frame from the LAN to the host, with a datagram in it."""
    a, b = socket.inet_aton(source), socket.inet_aton(destination)
    datagram = packets.udp(
        payload, source=a, destination=b, source_port=source_port, destination_port=port
    )
    return packets.ethernet(
        packets.ipv4(datagram, source=a, destination=b),
        destination=bytes.fromhex(_HOST_MAC.replace(":", "")),
        source=bytes.fromhex(_LAN_MAC.replace(":", "")),
    )
