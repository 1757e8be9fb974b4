"""The cases. One table: what the guest does, the wall that must stop it, and how it must end.

Each frame has one defect and is otherwise what would pass, payload included, so that a relay in
which a single check is missing lets it out, and the capture sees it. A case found later by anyone
is a file in ``tests/prove/regressions/``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from wgcell.prove import packets as make
from wgcell.prove.verdict import Phase, Verdict
from wgcell.relay import link
from wgcell.wire import wireguard

__all__ = ["CASES", "Case", "Play", "Probe", "Scene", "tunnel"]

KILL, DROP, PASS = Verdict.KILL, Verdict.DROP, Verdict.PASS
EVERYWHERE = tuple(Phase)
LIVE = (Phase.RUNNING, Phase.REKEY)
MTU = 1420
_LAN_HOST = "192.0.2.10"


def _ip(text: str) -> bytes:
    return socket.inet_aton(text)


def _ip6(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def tunnel(payload: bytes) -> bytes:
    """The one kind of frame that may leave, around ``payload``."""
    return make.ethernet(make.ipv4(make.udp(payload)))


@dataclass(slots=True)
class Scene:
    """What an attacker in the guest knows: everything. Indices are those of a real handshake.

    ``theirs`` is the endpoint's index of the live session, None where there is none; ``host`` is
    the address of the machine itself, on the LAN; ``port`` is the relay's, which who is on the
    path knows too.
    """

    guest_key: bytes
    endpoint_key: bytes
    host: bytes
    ours: int = 0
    theirs: int | None = None
    counter: int = 0
    port: int = 0

    def next_counter(self) -> int:
        """The next transport counter."""
        self.counter += 1
        return self.counter

    @property
    def receiver(self) -> int:
        """The index that a transport message of the guest's carries."""
        return 1 if self.theirs is None else self.theirs

    def transport(self, size: int = 96, counter: int | None = None) -> bytes:
        """Junk behind a header that is in step."""
        number = self.next_counter() if counter is None else counter
        return make.transport(self.receiver, number, os.urandom(size), size=size)

    def initiation(self, *, key: bytes = b"", mac2: bytes = bytes(16), size: int = 148) -> bytes:
        """An initiation of the guest's: junk under a right mac1."""
        index = int.from_bytes(os.urandom(4), "little")
        return make.initiation(
            index, key or self.endpoint_key, os.urandom(256), mac2=mac2, size=size
        )

    def payload(self) -> bytes:
        """Whatever of the guest's would pass now."""
        return self.initiation() if self.theirs is None else self.transport()


@dataclass(frozen=True, slots=True)
class Probe:
    """What is sent: ``first`` is honest and passes, ``frames`` are what the case is about."""

    frames: tuple[bytes, ...]
    first: tuple[bytes, ...] = ()


class Play(Enum):
    """How a probe's frames get where they go."""

    FRAMES = "frames"
    """Each into the NIC, behind its length."""
    STREAM = "stream"
    """Bytes of the stream itself, as a compromised QEMU could write them."""
    ENDPOINT = "endpoint"
    """Datagrams to the relay's port, from the endpoint's address and port."""
    STRANGER = "stranger"
    """Datagrams to the relay's port, from another host."""
    WIRE = "wire"
    """Frames that the LAN sends to the host."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the battery.

    ``wait``: seconds between the live session and the probe; such a case is played by ``--long``.
    """

    name: str
    group: str
    does: str
    verdict: Verdict
    probe: Callable[[Scene], Probe]
    play: Play = Play.FRAMES
    wall: str = "relay"
    phases: tuple[Phase, ...] = (Phase.RUNNING,)
    wait: float = 0.0

    @property
    def long_phases(self) -> tuple[Phase, ...]:
        """Every phase in which it means something."""
        if self.group == "WireGuard" and self.phases == (Phase.RUNNING,) and not self.wait:
            return LIVE
        anywhere = self.play in (Play.FRAMES, Play.STREAM) and self.group != "WireGuard"
        if anywhere and self.verdict is PASS:
            # Through a relay that is dead nothing passes.
            return tuple(phase for phase in Phase if phase is not Phase.KILLED)
        return EVERYWHERE if anywhere else self.phases


Build = Callable[[Scene], bytes]
Row = tuple[str, str, Verdict, Callable[[Scene], Probe]]


def _one(build: Build) -> Callable[[Scene], Probe]:
    return lambda scene: Probe((build(scene),))


def _ether(**changes: object) -> Callable[[Scene], Probe]:
    """A frame that would pass, with ``changes`` to its Ethernet header."""
    return _one(lambda s: make.ethernet(make.ipv4(make.udp(s.payload())), **changes))  # type: ignore[arg-type]


def _packet(udp: dict[str, object] | None = None, **changes: object) -> Callable[[Scene], Probe]:
    """A frame that would pass, with ``changes`` to its IPv4 header and ``udp`` to the UDP header.

    The UDP checksum stays that of the link's own addresses: a relay that does not look at an
    address would find it right.
    """

    def build(scene: Scene) -> bytes:
        datagram = make.udp(scene.payload(), **(udp or {}))  # type: ignore[arg-type]
        return make.ethernet(make.ipv4(datagram, **changes))  # type: ignore[arg-type]

    return _one(build)


def _datagram(**changes: object) -> Callable[[Scene], Probe]:
    return _packet(udp=changes)


def _other(
    kind: int, payload: bytes, destination: bytes = link.GATEWAY_MAC
) -> Callable[[Scene], Probe]:
    """A frame that carries something else than IPv4."""
    return _one(
        lambda s: make.ethernet(payload + os.urandom(8), kind=kind, destination=destination)
    )


def _carried(protocol: int, payload: bytes, **changes: object) -> Callable[[Scene], Probe]:
    """An IPv4 packet of another protocol; eight random bytes make it known again."""
    return _one(
        lambda s: make.ethernet(
            make.ipv4(payload + os.urandom(8), protocol=protocol, **changes)  # type: ignore[arg-type]
        )
    )


def _to(
    host: str, port: int, payload: bytes = b"", source_port: int = 40000
) -> Callable[[Scene], Probe]:
    """An ordinary UDP datagram to a host outside the tunnel."""
    there = _ip(host)

    def build(scene: Scene) -> bytes:
        body = (payload or scene.payload()) + os.urandom(8)
        datagram = make.udp(body, destination=there, source_port=source_port, destination_port=port)
        return make.ethernet(make.ipv4(datagram, destination=there))

    return _one(build)


def _ping(host: str, source: bytes = link.GUEST_ADDRESS) -> Callable[[Scene], Probe]:
    there = _ip(host)
    return _one(
        lambda s: make.ethernet(
            make.ipv4(
                make.icmp(8, 0, b"\0\1\0\1" + os.urandom(24)),
                protocol=1,
                source=source,
                destination=there,
            )
        )
    )


def _v6(
    next_header: int, body: bytes, destination: str, mac: str = "33:33:00:00:00:01"
) -> Callable[[Scene], Probe]:
    source, there = _ip6("fe80::77:67ff:fe00:2"), _ip6(destination)
    return _one(
        lambda s: make.ethernet(
            make.ipv6(
                body + os.urandom(8), next_header=next_header, source=source, destination=there
            ),
            kind=0x86DD,
            destination=_mac(mac),
        )
    )


def _bare(message: Callable[[Scene], bytes]) -> Callable[[Scene], Probe]:
    """A right frame around a message."""
    return _one(lambda s: tunnel(message(s)))


def _group(
    name: str,
    *rows: Row,
    play: Play = Play.FRAMES,
    wall: str = "relay",
    phases: tuple[Phase, ...] = (Phase.RUNNING,),
) -> tuple[Case, ...]:
    return tuple(
        Case(case, name, does, verdict, probe, play, wall, phases)
        for case, does, verdict, probe in rows
    )


# The link.

_LINK_LOCAL = _mac("01:80:c2:00:00:0e")
_LINK = (
    ("lldp", "announces itself by LLDP", KILL, _other(0x88CC, bytes.fromhex("0207040277670000020000"), _LINK_LOCAL)),
    ("stp", "speaks spanning tree (802.3 length, LLC)", KILL, _one(lambda s: make.ethernet(bytes.fromhex("424203") + os.urandom(35), kind=38, destination=_mac("01:80:c2:00:00:00")))),
    ("802.1x", "starts EAPOL", KILL, _other(0x888E, bytes.fromhex("01010000"), _mac("01:80:c2:00:00:03"))),
    ("pppoe", "looks for a PPPoE server", KILL, _other(0x8863, bytes.fromhex("110900000000"), make.BROADCAST)),
    ("pause", "sends an 802.3x pause frame", KILL, _other(0x8808, bytes.fromhex("0001ffff") + bytes(40), _mac("01:80:c2:00:00:01"))),
    ("vlan", "puts a VLAN tag before a right packet", KILL, _ether(tags=bytes.fromhex("81000005"))),
    ("qinq", "puts two VLAN tags before a right packet", KILL, _ether(tags=bytes.fromhex("88a8000281000005"))),
    ("802.3-length", "writes a length where the type belongs", KILL, _ether(kind=124)),
    ("ethertype-unknown", "uses an unknown ethertype around a right packet", KILL, _ether(kind=0x88B5)),
    ("ethertype-ipv6", "calls a right IPv4 packet IPv6", KILL, _ether(kind=0x86DD)),
    ("source-mac-foreign", "sends from another MAC address", KILL, _ether(source=_mac("02:77:67:00:00:99"))),
    ("source-mac-gateway", "sends from the gateway's own MAC address", KILL, _ether(source=link.GATEWAY_MAC)),
    ("source-mac-multicast", "sends from a multicast MAC address", KILL, _ether(source=_mac("03:77:67:00:00:02"))),
    ("to-broadcast", "sends a right packet to the broadcast address", KILL, _ether(destination=make.BROADCAST)),
    ("to-multicast", "sends a right packet to a multicast MAC address", KILL, _ether(destination=_mac("01:00:5e:00:00:01"))),
    ("to-other-mac", "sends a right packet to another MAC address", KILL, _ether(destination=_mac("02:00:00:00:02:fe"))),
    ("runt", "sends 13 bytes", KILL, _one(lambda s: os.urandom(13))),
    ("runt-header", "sends an Ethernet header and 19 bytes", KILL, _one(lambda s: tunnel(s.payload())[:14] + b"\x45" + os.urandom(18))),
    ("over-long", "sends a frame of 9014 bytes that is right otherwise", KILL, _one(lambda s: make.ethernet(make.ipv4(make.udp(s.transport(9000 - 28)))))),
    ("over-long-by-one", "sends one byte more than a frame holds", KILL, _one(lambda s: make.ethernet(make.ipv4(make.udp(s.transport(1473)))))),
    ("bytes-behind", "hides bytes behind the packet's end", KILL, _one(lambda s: tunnel(s.payload()) + os.urandom(12))),
    ("bytes-behind-udp-agrees", "hides bytes behind the packet's end, with a UDP length that covers them", KILL, _one(lambda s: (lambda d: make.ethernet(make.ipv4(d, length=20 + len(d) - 12)))(make.udp(s.payload() + os.urandom(12))))),
)  # fmt: skip
_STREAM = (
    ("stream-zero", "claims a frame of no bytes, a right frame behind it", KILL, _one(lambda s: bytes(4) + _prefixed(tunnel(s.payload())))),
    ("stream-huge", "claims a frame of 4 GiB, a right frame behind it", KILL, _one(lambda s: b"\xff" * 4 + _prefixed(tunnel(s.payload())))),
    ("stream-long", "claims a frame of 128 KiB", KILL, _one(lambda s: (1 << 17).to_bytes(4, "big") + os.urandom(64))),
    ("behind-rogue", "writes a rogue frame and a right one in one piece", KILL, _one(lambda s: _prefixed(make.ethernet(os.urandom(30), kind=0x88B5)) + _prefixed(tunnel(s.payload())))),
)  # fmt: skip


def _prefixed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


# ARP, neighbour discovery.


def _arp(operation: int, **changes: object) -> Callable[[Scene], Probe]:
    return _one(
        lambda s: make.ethernet(
            make.arp(operation, **changes) + os.urandom(18),  # type: ignore[arg-type]
            kind=0x0806,
            destination=make.BROADCAST,
        )
    )


_NEIGHBOURS = (
    ("arp-request", "asks for the gateway by ARP", KILL, _arp(1)),
    ("arp-scan", "scans the LAN by ARP", KILL, lambda s: Probe(tuple(_arp(1, target=_ip(f"192.0.2.{n}"))(s).frames[0] for n in range(1, 9)))),
    ("arp-gratuitous", "announces itself by ARP", KILL, _arp(1, target=link.GUEST_ADDRESS)),
    ("arp-forged-reply", "claims the LAN's gateway address by ARP", KILL, _arp(2, sender=_ip("192.0.2.254"), target=_ip("192.0.2.1"))),
    ("ipv6-ns", "solicits a neighbour", KILL, _v6(58, bytes.fromhex("87000000") + bytes(20), "ff02::1:ff00:1", "33:33:ff:00:00:01")),
    ("ipv6-na", "advertises itself as a neighbour", KILL, _v6(58, bytes.fromhex("88000000a0000000") + bytes(16), "ff02::1")),
    ("ipv6-rs", "solicits a router", KILL, _v6(58, bytes.fromhex("8500000000000000"), "ff02::2", "33:33:00:00:00:02")),
    ("ipv6-ra", "advertises itself as a router", KILL, _v6(58, bytes.fromhex("86000000400807080000000000000000"), "ff02::1")),
    ("ipv6-mld", "reports multicast membership", KILL, _v6(0, bytes.fromhex("3a000502000001008f00000000000001"), "ff02::16", "33:33:00:00:00:16")),
    ("ipv6-dad", "looks for a duplicate of its address", KILL, _v6(58, bytes.fromhex("87000000") + bytes(20), "ff02::1:ff00:2", "33:33:ff:00:00:02")),
)  # fmt: skip

# IPv4.

_IPV4 = (
    ("lan-ping", "pings a host of the LAN", KILL, _ping(_LAN_HOST)),
    ("lan-udp", "sends the tunnel's bytes to a host of the LAN", KILL, _to(_LAN_HOST, 51820, source_port=51820)),
    ("lan-right-but-address", "changes nothing but the destination address", KILL, _packet(destination=_ip(_LAN_HOST))),
    ("host-ping", "pings the machine it runs on", KILL, _one(lambda s: make.ethernet(make.ipv4(make.icmp(8, 0, os.urandom(24)), protocol=1, destination=s.host)))),
    ("loopback", "sends to 127.0.0.1", KILL, _packet(destination=_ip("127.0.0.1"))),
    ("metadata", "asks the cloud's metadata service", KILL, _to("169.254.169.254", 80, b"GET /latest/meta-data/ HTTP/1.0\r\n\r\n")),
    ("private-10", "sends to 10.0.0.1", KILL, _packet(destination=_ip("10.0.0.1"))),
    ("private-172", "sends to 172.16.0.1", KILL, _packet(destination=_ip("172.16.0.1"))),
    ("private-192", "sends to 192.168.1.1", KILL, _packet(destination=_ip("192.168.1.1"))),
    ("internet", "sends straight to the Internet", KILL, _packet(destination=_ip("203.0.113.7"))),
    ("endpoint-itself", "addresses the endpoint by its real address", KILL, _packet(destination=_ip("198.51.100.10"))),
    ("multicast", "sends to 224.0.0.1", KILL, _packet(destination=_ip("224.0.0.1"))),
    ("broadcast", "sends to 255.255.255.255", KILL, _packet(destination=_ip("255.255.255.255"))),
    ("link-broadcast", "sends to the link's broadcast address", KILL, _packet(destination=_ip("192.168.64.3"))),
    ("spoofed-lan", "sends as a host of the LAN", KILL, _packet(source=_ip(_LAN_HOST))),
    ("spoofed-gateway", "sends as its own gateway", KILL, _packet(source=link.GATEWAY_ADDRESS)),
    ("spoofed-zero", "sends from 0.0.0.0", KILL, _packet(source=bytes(4))),
    ("options", "adds a record-route option", KILL, _packet(options=bytes.fromhex("0707040000000000"))),
    ("source-route", "adds a loose source route", KILL, _packet(options=bytes.fromhex("83070492000201") + b"\0")),
    ("version-6", "says version 6 in an IPv4 header", KILL, _packet(version_ihl=0x65)),
    ("version-0", "says version 0 in an IPv4 header", KILL, _packet(version_ihl=0x05)),
    ("ihl-4", "says a header of 16 bytes", KILL, _packet(version_ihl=0x44)),
    ("ihl-15", "says a header of 60 bytes", KILL, _packet(version_ihl=0x4F)),
    ("length-short", "says a length that ends within the packet", KILL, _packet(length=60)),
    ("length-long", "says a length beyond the frame's end", KILL, _packet(length=1400)),
    ("ip-checksum", "leaves a wrong header checksum", KILL, _packet(checksum=0xDEAD)),
    ("ttl-0", "sends with no time to live", KILL, _packet(ttl=0)),
    ("fragment-first", "sends a first fragment", KILL, _packet(fragment=0x2000)),
    ("fragment-middle", "sends a fragment that overlaps the UDP header", KILL, _packet(fragment=0x2001)),
    ("fragment-last", "sends a last fragment alone", KILL, _packet(fragment=0x0003)),
    ("fragment-tiny", "sends a fragment of 8 bytes", KILL, _one(lambda s: make.ethernet(make.ipv4(os.urandom(8), fragment=0x2000)))),
    ("evil-bit", "sets the reserved flag", KILL, _packet(fragment=0xC000)),
)  # fmt: skip

_IPV6 = (
    ("ipv6-udp", "sends UDP over IPv6", KILL, _v6(17, make.udp(b"x" * 40), "2001:db8::1", "02:77:67:00:00:01")),
    ("ipv6-tcp", "opens TCP over IPv6", KILL, _v6(6, make.tcp_syn(443), "2001:db8::1", "02:77:67:00:00:01")),
    ("ipv6-mdns", "asks by mDNS over IPv6", KILL, _v6(17, make.udp(b"\0" * 12, destination_port=5353), "ff02::fb", "33:33:00:00:00:fb")),
    ("ipv6-dhcp", "solicits by DHCPv6", KILL, _v6(17, make.udp(b"\x01" + bytes(11), destination_port=547), "ff02::1:2", "33:33:00:01:00:02")),
    ("ipv6-extension", "hides behind a hop-by-hop header", KILL, _v6(0, bytes.fromhex("1100050200000100") + bytes(8), "2001:db8::1", "02:77:67:00:00:01")),
    ("6in4", "carries IPv6 in IPv4", KILL, _carried(41, make.ipv6(b"", next_header=59, source=_ip6("2001:db8::2"), destination=_ip6("2001:db8::1")))),
    ("teredo", "sends Teredo to the Internet", KILL, _to("203.0.113.7", 3544, b"\x60" + bytes(39))),
)  # fmt: skip

_ICMP = (
    ("icmp-echo", "pings the gateway", KILL, _carried(1, make.icmp(8, 0, bytes(24)))),
    ("icmp-tunnel", "hides data in an echo", KILL, _one(lambda s: make.ethernet(make.ipv4(make.icmp(8, 0, os.urandom(1000)), protocol=1)))),
    ("icmp-redirect", "redirects the gateway's route", KILL, _carried(1, make.icmp(5, 1, _ip("192.168.64.2") + bytes(28)))),
    ("icmp-unreachable", "forges port unreachable", KILL, _carried(1, make.icmp(3, 3, bytes(4 + 28)))),
)  # fmt: skip

_TRANSPORT = (
    ("tcp-endpoint", "opens TCP to the endpoint's address and port", KILL, _carried(6, make.tcp_syn(51820))),
    ("tcp-lan", "opens TCP to a host of the LAN", KILL, _carried(6, make.tcp_syn(443), destination=_ip(_LAN_HOST))),
    ("tcp-reset", "forges a TCP reset", KILL, _carried(6, make.tcp_syn(443, flags=4), destination=_ip("203.0.113.7"))),
    ("tcp-around-udp", "calls a right datagram TCP", KILL, _packet(protocol=6)),
    ("port-other", "sends to another port of the gateway", KILL, _datagram(destination_port=53)),
    ("port-next", "sends to the port beside the right one", KILL, _datagram(destination_port=51821)),
    ("source-port", "sends from another source port", KILL, _datagram(source_port=51821)),
    ("gre", "sends GRE", KILL, _carried(47, bytes.fromhex("00000800") + bytes(20))),
    ("esp", "sends ESP", KILL, _carried(50, bytes(32))),
    ("sctp", "sends SCTP", KILL, _carried(132, bytes(32))),
    ("igmp", "joins a multicast group", KILL, _carried(2, bytes.fromhex("1600f9fde0000002"), destination=_ip("224.0.0.2"))),
    ("ipip", "carries IPv4 in IPv4", KILL, _carried(4, make.ipv4(bytes(16)))),
    ("udp-lite", "sends UDP-Lite", KILL, _packet(protocol=136)),
    ("udp-length-short", "says a UDP length shorter than the packet's", KILL, _datagram(length=60)),
    ("udp-length-long", "says a UDP length longer than the packet's", KILL, _datagram(length=1000)),
    ("udp-checksum", "leaves a wrong UDP checksum: the payload is sent anew under a right one", PASS, _datagram(checksum=0xDEAD)),
    ("udp-cut", "sends four bytes of a UDP header", KILL, _one(lambda s: make.ethernet(make.ipv4(os.urandom(4))))),
    ("udp-empty", "sends an empty datagram", KILL, _bare(lambda s: b"")),
    ("quic", "speaks QUIC to the right port", KILL, _bare(lambda s: bytes.fromhex("c00000000108") + os.urandom(1194))),
    ("dns-right-port", "speaks DNS to the right port", KILL, _bare(lambda s: os.urandom(2) + bytes.fromhex("01000001000000000000076578616d706c6503636f6d0000010001"))),
    ("ntp", "speaks NTP to the right port", KILL, _bare(lambda s: b"\x23" + bytes(39) + os.urandom(8))),
    ("text", "sends plain text to the right port", KILL, _bare(lambda s: b"hello " + os.urandom(58).hex().encode())),
)  # fmt: skip

_NAMES = (
    ("dhcp", "asks for an address by DHCP", KILL, _one(lambda s: make.ethernet(make.ipv4(make.udp(bytes.fromhex("01010600") + os.urandom(236), source=bytes(4), destination=b"\xff" * 4, source_port=68, destination_port=67), source=bytes(4), destination=b"\xff" * 4), destination=make.BROADCAST))),
    ("dns-lan", "asks the LAN's resolver", KILL, _to("192.0.2.254", 53, bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001"))),
    ("dns-internet", "asks a resolver on the Internet", KILL, _to("198.51.100.53", 53, bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001"))),
    ("mdns", "asks by mDNS", KILL, _to("224.0.0.251", 5353, bytes(12))),
    ("llmnr", "asks by LLMNR", KILL, _to("224.0.0.252", 5355, bytes(12))),
    ("ssdp", "searches by SSDP", KILL, _to("239.255.255.250", 1900, b"M-SEARCH * HTTP/1.1\r\n\r\n")),
    ("netbios", "asks for a NetBIOS name", KILL, _to("192.0.2.255", 137, bytes(50), 137)),
)  # fmt: skip

# WireGuard, abused.


def _flip(message: bytes, at: int, value: int) -> bytes:
    return message[:at] + bytes([value]) + message[at + 1 :]


def _duplicate(scene: Scene) -> Probe:
    frame = tunnel(scene.transport())
    return Probe((frame,), first=(frame,))


def _behind(scene: Scene) -> Probe:
    old = scene.next_counter()
    ahead = scene.counter = old + 20_000
    return Probe(
        (tunnel(scene.transport(counter=old)),), first=(tunnel(scene.transport(counter=ahead)),)
    )


def _flood_of_initiations(scene: Scene) -> Probe:
    return Probe(
        tuple(tunnel(scene.initiation()) for _ in range(20)), first=(tunnel(scene.initiation()),)
    )


def _each(
    name: str, numbers: Sequence[int], does: str, message: Callable[[Scene, int], bytes]
) -> Sequence[Row]:
    """One row a number."""

    def probe(number: int) -> Callable[[Scene], Probe]:
        return _bare(lambda s: message(s, number))

    return [(f"{name}-{n}", f"{does} {n}", KILL, probe(n)) for n in numbers]


_JUNK = 200
_WIREGUARD = (
    *_each("type", (0, 5, 255), "sends a message of type", lambda s, n: _flip(s.transport(), 0, n)),
    *_each("reserved", (1, 2, 3), "uses the reserved byte", lambda s, n: _flip(s.payload(), n, 1)),
    *_each("initiation", (147, 149, 1400), "sends an initiation of so many bytes:", lambda s, n: s.initiation(size=n)),
    *_each("response", (91, 93), "sends a response of so many bytes:", lambda s, n: make.response(1, 1, s.endpoint_key, os.urandom(200), size=n)),
    *_each("cookie", (63, 65), "sends a cookie reply of so many bytes:", lambda s, n: make.cookie_reply(s.receiver, os.urandom(80), size=n)),
    ("transport-31", "sends transport of 31 bytes", KILL, _bare(lambda s: s.transport(31))),
    ("transport-unpadded", "sends transport of an odd length, as Linux does on a narrow path", PASS, _bare(lambda s: s.transport(97))),
    ("transport-over-mtu", "sends transport longer than the tunnel's MTU allows", KILL, _bare(lambda s: s.transport(1472))),
    ("initiation-mac1", "sends an initiation with a wrong mac1", KILL, _bare(lambda s: (lambda m: _flip(m, 116, m[116] ^ 1))(s.initiation()))),
    ("initiation-other-key", "sends an initiation for another endpoint's key", KILL, _bare(lambda s: s.initiation(key=os.urandom(32)))),
    ("initiation-own-key", "sends an initiation for its own key", KILL, _bare(lambda s: s.initiation(key=s.guest_key))),
    ("response-mac1", "sends a response with a wrong mac1", KILL, _bare(lambda s: make.response(s.ours, s.receiver, os.urandom(32), os.urandom(48)))),
    ("mac2-no-cookie", "sends a mac2 though no cookie was given", KILL, _bare(lambda s: s.initiation(mac2=os.urandom(16)))),
    ("counter-absurd", "jumps its counter by 2^40", KILL, _bare(lambda s: s.transport(counter=s.counter + (1 << 40)))),
    ("counter-last", "uses the last counter there is", KILL, _bare(lambda s: s.transport(counter=(1 << 64) - 1))),
    ("out-of-step-flood", "sends 300 messages to an index nobody announced", KILL, lambda s: Probe(tuple(tunnel(make.transport(s.receiver ^ 0x5A5A, n, os.urandom(32), size=32)) for n in range(300)))),
    ("unknown-index", "sends transport to an index nobody announced", DROP, _bare(lambda s: make.transport(s.receiver ^ 0x5A5A, 0, os.urandom(48)))),
    ("wrong-direction", "sends transport to its own index", DROP, _bare(lambda s: make.transport(s.ours, 0, os.urandom(48)))),
    ("counter-again", "sends the same transport twice", DROP, _duplicate),
    ("counter-behind", "sends a counter far behind", DROP, _behind),
    ("response-unsolicited", "answers an initiation that never came", DROP, _bare(lambda s: make.response(7, 0x12345678, s.endpoint_key, os.urandom(48)))),
    ("cookie-unsolicited", "sends a cookie reply to no message", DROP, _bare(lambda s: make.cookie_reply(s.receiver ^ 0x5A5A, os.urandom(56)))),
    ("junk-in-step", f"sends {_JUNK} messages of junk behind right headers", PASS, lambda s: Probe(tuple(tunnel(s.transport()) for _ in range(_JUNK)))),
    ("full-size", "sends transport that fills the MTU", PASS, _bare(lambda s: s.transport(MTU + wireguard.SHORTEST_TRANSPORT))),
    ("keepalive", "sends a keepalive", PASS, _bare(lambda s: s.transport(32))),
    ("rekey", "initiates again", PASS, _bare(lambda s: s.initiation())),
)  # fmt: skip

_EARLY = (
    ("transport-before", "sends transport before any handshake", KILL, _bare(lambda s: s.transport())),
    ("response-before", "answers before anyone asked", DROP, _bare(lambda s: make.response(7, 9, s.endpoint_key, os.urandom(48)))),
)  # fmt: skip
_UNANSWERED = (
    ("transport-unanswered", "sends transport though its initiation was not answered", KILL, _bare(lambda s: s.transport())),
    ("initiation-flood", "sends 20 initiations to an endpoint that does not answer", DROP, _flood_of_initiations),
)  # fmt: skip

# Played by others: nothing reaches the guest, no answer goes out, no cell dies of it.


def _forged_response(scene: Scene) -> Probe:
    """The relay can't tell it from a true one, so it passes; the session there is must go on."""
    index = 0x0BADCAFE
    asked = tunnel(make.initiation(index, scene.endpoint_key, os.urandom(108)))
    forged = make.response(5, index, scene.guest_key, os.urandom(48))
    return Probe((forged,), first=(asked,))


_FROM_ENDPOINT = (
    ("in-response-forged", "a forged response to a rekey: a candidate, never a replacement", PASS, _forged_response),
    ("in-junk", "junk from the endpoint's address", DROP, lambda s: Probe(tuple(os.urandom(n) for n in (1, 31, 64, 92, 148, 512)))),
    ("in-transport-unknown", "transport to an index the guest never announced", DROP, lambda s: Probe((make.transport(s.ours ^ 0x5A5A, 0, os.urandom(48)),))),
    ("in-initiation-mac1", "an initiation with a wrong mac1", DROP, lambda s: Probe((make.initiation(1, os.urandom(32), os.urandom(108)),))),
    ("in-response-unsolicited", "a response to no initiation", DROP, lambda s: Probe((make.response(1, s.ours ^ 0x5A5A, s.guest_key, os.urandom(48)),))),
    ("in-cookie-unsolicited", "a cookie reply to no message", DROP, lambda s: Probe((make.cookie_reply(s.ours ^ 0x5A5A, os.urandom(56)),))),
    ("in-oversize", "datagrams longer than the link's frame", DROP, lambda s: Probe(tuple(make.transport(s.ours, n, os.urandom(n), size=n) for n in (1473, 8000, 60000)))),
    ("in-empty", "an empty datagram and one of three bytes", DROP, lambda s: Probe((os.urandom(3), b"\x04\0\0" + os.urandom(1)))),
    ("in-flood", "200 datagrams of junk", DROP, lambda s: Probe(tuple(os.urandom(100) for _ in range(200)))),
)  # fmt: skip
_FROM_STRANGER = (
    ("in-stranger", "WireGuard-shaped datagrams from another host", DROP, lambda s: Probe((make.transport(s.ours, 1, os.urandom(48)), make.initiation(1, s.guest_key, os.urandom(108))))),
)  # fmt: skip


def _from_lan(
    packet: Callable[[Scene], bytes], kind: int = 0x0800, everyone: bool = False
) -> Callable[[Scene], Probe]:
    """A frame of a LAN host's, to the machine's card or to everyone."""
    to = make.BROADCAST if everyone else _mac("02:00:00:00:02:01")
    source = _mac("02:00:00:00:02:fe")
    return lambda s: Probe(
        (make.ethernet(packet(s) + os.urandom(16), kind=kind, destination=to, source=source),)
    )


_ROUTER = _ip("192.0.2.254")
_ENDPOINT = _ip("198.51.100.10")
_FROM_WIRE = (
    ("in-dhcp-121", "a DHCP offer with classless routes (option 121)", DROP, _from_lan(lambda s: make.ipv4(make.udp(bytes.fromhex("02010600") + bytes(232) + bytes.fromhex("63825363350102790800c0000201ff"), source_port=67, destination_port=68, destination=b"\xff" * 4, source=_ROUTER), destination=b"\xff" * 4, source=_ROUTER), everyone=True)),
    ("in-arp-probe", "ARP for the tunnel's address", DROP, _from_lan(lambda s: make.arp(1, sender=_ip("192.0.2.254"), target=_ip("10.99.0.2"), sender_mac=_mac("02:00:00:00:02:fe")), kind=0x0806, everyone=True)),
    ("in-syn-ack", "a SYN/ACK for the tunnel's address (CVE-2019-14899)", DROP, _from_lan(lambda s: make.ipv4(make.tcp_syn(40000, flags=0x12), protocol=6, destination=_ip("10.99.0.2"), source=_ROUTER))),
    ("in-to-guest", "a packet for the guest's address on the link", DROP, _from_lan(lambda s: make.ipv4(make.udp(os.urandom(32), destination=link.GUEST_ADDRESS, source=_ROUTER), destination=link.GUEST_ADDRESS, source=_ROUTER))),
    ("in-icmp-unreachable", "ICMP port unreachable about the tunnel itself, in the endpoint's name", DROP, _from_lan(lambda s: make.ipv4(make.icmp(3, 3, bytes(4) + make.ipv4(make.udp(bytes(8), source=s.host, destination=_ENDPOINT, source_port=s.port), source=s.host, destination=_ENDPOINT)), protocol=1, destination=s.host, source=_ENDPOINT))),
    ("in-ra", "a router advertisement", DROP, _from_lan(lambda s: make.ipv6(bytes.fromhex("86000000400807080000000000000000"), next_header=58, source=_ip6("fe80::1"), destination=_ip6("ff02::1")), kind=0x86DD, everyone=True)),
)  # fmt: skip

CASES: tuple[Case, ...] = (
    *_group("link", *_LINK),
    *_group("link", *_STREAM, play=Play.STREAM),
    *_group("ARP and neighbours", *_NEIGHBOURS),
    *_group("IPv4", _IPV4[0], phases=EVERYWHERE),
    *_group("IPv4", *_IPV4[1:]),
    *_group("IPv6", *_IPV6),
    *_group("ICMP", *_ICMP),
    *_group("transport", *_TRANSPORT),
    *_group("names and addresses", *_NAMES),
    *_group("WireGuard", *_WIREGUARD),
    *_group("WireGuard", *_EARLY, phases=(Phase.BEFORE, Phase.BOOT)),
    *_group("WireGuard", *_UNANSWERED, phases=(Phase.SILENT,)),
    Case(
        "after-180s",
        "WireGuard",
        "goes on in a session that is 191 seconds old",
        DROP,
        _bare(lambda s: s.transport()),
        wait=191,
    ),
    *_group("inbound", *_FROM_ENDPOINT, play=Play.ENDPOINT),
    *_group("inbound", *_FROM_STRANGER, play=Play.STRANGER),
    *_group("inbound", *_FROM_WIRE, play=Play.WIRE, wall="no route"),
)
