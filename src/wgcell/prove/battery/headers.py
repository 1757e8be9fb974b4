"""Frames with one defect below WireGuard: Ethernet, ARP, IPv4, IPv6, ICMP, UDP and other transports.

One table for each protocol: a row has the case's name, what the guest does, the verdict that is due
and the probe. A row's frame has one defect, and is otherwise one that would pass.
"""

from __future__ import annotations

import os

from wgcell.prove.battery import packets
from wgcell.prove.battery.case import EVERYWHERE, Case, Injection, Probe
from wgcell.prove.battery.probes import (
    KILL,
    PASS,
    Build,
    ethernet_with,
    ethertype,
    group,
    ip,
    ip6,
    ipv4_with,
    ipv6,
    mac,
    message,
    ping,
    protocol,
    single,
    tunnel,
    udp_to,
    udp_with,
)
from wgcell.relay import link

__all__ = ["HEADER_CASES"]

_LAN_HOST = "192.0.2.10"

# The link.

_LINK_LOCAL = mac("01:80:c2:00:00:0e")
_LINK = (
    ("lldp", "announces itself by LLDP", KILL, ethertype(0x88CC, bytes.fromhex("0207040277670000020000"), _LINK_LOCAL)),
    ("stp", "speaks spanning tree (802.3 length, LLC)", KILL, single(lambda a: packets.ethernet(bytes.fromhex("424203") + os.urandom(35), kind=38, destination=mac("01:80:c2:00:00:00")))),
    ("802.1x", "starts EAPOL", KILL, ethertype(0x888E, bytes.fromhex("01010000"), mac("01:80:c2:00:00:03"))),
    ("pppoe", "looks for a PPPoE server", KILL, ethertype(0x8863, bytes.fromhex("110900000000"), packets.BROADCAST)),
    ("pause", "sends an 802.3x pause frame", KILL, ethertype(0x8808, bytes.fromhex("0001ffff") + bytes(40), mac("01:80:c2:00:00:01"))),
    ("vlan", "puts a VLAN tag before a right packet", KILL, ethernet_with(tags=bytes.fromhex("81000005"))),
    ("qinq", "puts two VLAN tags before a right packet", KILL, ethernet_with(tags=bytes.fromhex("88a8000281000005"))),
    ("802.3-length", "writes a length where the type belongs", KILL, ethernet_with(kind=124)),
    ("ethertype-unknown", "uses an unknown ethertype around a right packet", KILL, ethernet_with(kind=0x88B5)),
    ("ethertype-ipv6", "calls a right IPv4 packet IPv6", KILL, ethernet_with(kind=0x86DD)),
    ("source-mac-foreign", "sends from another MAC address", KILL, ethernet_with(source=mac("02:77:67:00:00:99"))),
    ("source-mac-gateway", "sends from the gateway's own MAC address", KILL, ethernet_with(source=link.GATEWAY_MAC)),
    ("source-mac-multicast", "sends from a multicast MAC address", KILL, ethernet_with(source=mac("03:77:67:00:00:02"))),
    ("to-broadcast", "sends a right packet to the broadcast address", KILL, ethernet_with(destination=packets.BROADCAST)),
    ("to-multicast", "sends a right packet to a multicast MAC address", KILL, ethernet_with(destination=mac("01:00:5e:00:00:01"))),
    ("to-other-mac", "sends a right packet to another MAC address", KILL, ethernet_with(destination=mac("02:00:00:00:02:fe"))),
    ("runt", "sends 13 bytes", KILL, single(lambda a: os.urandom(13))),
    ("runt-header", "sends an Ethernet header and 19 bytes", KILL, single(lambda a: tunnel(a.payload())[:14] + b"\x45" + os.urandom(18))),
    ("over-long", "sends a frame of 9014 bytes that is right otherwise", KILL, single(lambda a: packets.ethernet(packets.ipv4(packets.udp(a.transport(9000 - 28)))))),
    ("over-long-by-one", "sends one byte more than a frame holds", KILL, single(lambda a: packets.ethernet(packets.ipv4(packets.udp(a.transport(1473)))))),
    ("bytes-behind", "hides bytes behind the packet's end", KILL, single(lambda a: tunnel(a.payload()) + os.urandom(12))),
    ("bytes-behind-udp-agrees", "hides bytes behind the packet's end, with a UDP length that covers them", KILL, single(lambda a: (lambda d: packets.ethernet(packets.ipv4(d, length=20 + len(d) - 12)))(packets.udp(a.payload() + os.urandom(12))))),
)  # fmt: skip
_STREAM = (
    ("stream-zero", "claims a frame of no bytes, a right frame behind it", KILL, single(lambda a: bytes(4) + _prefixed(tunnel(a.payload())))),
    ("stream-huge", "claims a frame of 4 GiB, a right frame behind it", KILL, single(lambda a: b"\xff" * 4 + _prefixed(tunnel(a.payload())))),
    ("stream-long", "claims a frame of 128 KiB", KILL, single(lambda a: (1 << 17).to_bytes(4, "big") + os.urandom(64))),
    ("behind-rogue", "writes a rogue frame and a right one in one piece", KILL, single(lambda a: _prefixed(packets.ethernet(os.urandom(30), kind=0x88B5)) + _prefixed(tunnel(a.payload())))),
)  # fmt: skip


def _prefixed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


# ARP, neighbour discovery.


def _arp(operation: int, **changes: object) -> Build:
    return single(
        lambda attacker: packets.ethernet(
            packets.arp(operation, **changes) + os.urandom(18),  # type: ignore[arg-type]
            kind=0x0806,
            destination=packets.BROADCAST,
        )
    )


_NEIGHBOURS = (
    ("arp-request", "asks for the gateway by ARP", KILL, _arp(1)),
    ("arp-scan", "scans the LAN by ARP", KILL, lambda a: Probe(tuple(_arp(1, target=ip(f"192.0.2.{n}"))(a).frames[0] for n in range(1, 9)))),
    ("arp-gratuitous", "announces itself by ARP", KILL, _arp(1, target=link.GUEST_ADDRESS)),
    ("arp-forged-reply", "claims the LAN's gateway address by ARP", KILL, _arp(2, sender=ip("192.0.2.254"), target=ip("192.0.2.1"))),
    ("ipv6-ns", "solicits a neighbour", KILL, ipv6(58, bytes.fromhex("87000000") + bytes(20), "ff02::1:ff00:1", "33:33:ff:00:00:01")),
    ("ipv6-na", "advertises itself as a neighbour", KILL, ipv6(58, bytes.fromhex("88000000a0000000") + bytes(16), "ff02::1")),
    ("ipv6-rs", "solicits a router", KILL, ipv6(58, bytes.fromhex("8500000000000000"), "ff02::2", "33:33:00:00:00:02")),
    ("ipv6-ra", "advertises itself as a router", KILL, ipv6(58, bytes.fromhex("86000000400807080000000000000000"), "ff02::1")),
    ("ipv6-mld", "reports multicast membership", KILL, ipv6(0, bytes.fromhex("3a000502000001008f00000000000001"), "ff02::16", "33:33:00:00:00:16")),
    ("ipv6-dad", "looks for a duplicate of its address", KILL, ipv6(58, bytes.fromhex("87000000") + bytes(20), "ff02::1:ff00:2", "33:33:ff:00:00:02")),
)  # fmt: skip

# IPv4.

_IPV4 = (
    ("lan-ping", "pings a host of the LAN", KILL, ping(_LAN_HOST)),
    ("lan-udp", "sends the tunnel's bytes to a host of the LAN", KILL, udp_to(_LAN_HOST, 51820, source_port=51820)),
    ("lan-right-but-address", "changes nothing but the destination address", KILL, ipv4_with(destination=ip(_LAN_HOST))),
    ("host-ping", "pings the machine it runs on", KILL, single(lambda a: packets.ethernet(packets.ipv4(packets.icmp(8, 0, os.urandom(24)), protocol=1, destination=a.host)))),
    ("loopback", "sends to 127.0.0.1", KILL, ipv4_with(destination=ip("127.0.0.1"))),
    ("metadata", "asks the cloud's metadata service", KILL, udp_to("169.254.169.254", 80, b"GET /latest/meta-data/ HTTP/1.0\r\n\r\n")),
    ("private-10", "sends to 10.0.0.1", KILL, ipv4_with(destination=ip("10.0.0.1"))),
    ("private-172", "sends to 172.16.0.1", KILL, ipv4_with(destination=ip("172.16.0.1"))),
    ("private-192", "sends to 192.168.1.1", KILL, ipv4_with(destination=ip("192.168.1.1"))),
    ("internet", "sends straight to the Internet", KILL, ipv4_with(destination=ip("203.0.113.7"))),
    ("endpoint-itself", "addresses the endpoint by its real address", KILL, ipv4_with(destination=ip("198.51.100.10"))),
    ("multicast", "sends to 224.0.0.1", KILL, ipv4_with(destination=ip("224.0.0.1"))),
    ("broadcast", "sends to 255.255.255.255", KILL, ipv4_with(destination=ip("255.255.255.255"))),
    ("link-broadcast", "sends to the link's broadcast address", KILL, ipv4_with(destination=ip("192.168.64.3"))),
    ("spoofed-lan", "sends as a host of the LAN", KILL, ipv4_with(source=ip(_LAN_HOST))),
    ("spoofed-gateway", "sends as its own gateway", KILL, ipv4_with(source=link.GATEWAY_ADDRESS)),
    ("spoofed-zero", "sends from 0.0.0.0", KILL, ipv4_with(source=bytes(4))),
    ("options", "adds a record-route option", KILL, ipv4_with(options=bytes.fromhex("0707040000000000"))),
    ("source-route", "adds a loose source route", KILL, ipv4_with(options=bytes.fromhex("83070492000201") + b"\0")),
    ("version-6", "says version 6 in an IPv4 header", KILL, ipv4_with(version_ihl=0x65)),
    ("version-0", "says version 0 in an IPv4 header", KILL, ipv4_with(version_ihl=0x05)),
    ("ihl-4", "says a header of 16 bytes", KILL, ipv4_with(version_ihl=0x44)),
    ("ihl-15", "says a header of 60 bytes", KILL, ipv4_with(version_ihl=0x4F)),
    ("length-short", "says a length that ends within the packet", KILL, ipv4_with(length=60)),
    ("length-long", "says a length beyond the frame's end", KILL, ipv4_with(length=1400)),
    ("ip-checksum", "leaves a wrong header checksum", KILL, ipv4_with(checksum=0xDEAD)),
    ("ttl-0", "sends with no time to live", KILL, ipv4_with(ttl=0)),
    ("fragment-first", "sends a first fragment", KILL, ipv4_with(fragment=0x2000)),
    ("fragment-middle", "sends a fragment that overlaps the UDP header", KILL, ipv4_with(fragment=0x2001)),
    ("fragment-last", "sends a last fragment alone", KILL, ipv4_with(fragment=0x0003)),
    ("fragment-tiny", "sends a fragment of 8 bytes", KILL, single(lambda a: packets.ethernet(packets.ipv4(os.urandom(8), fragment=0x2000)))),
    ("evil-bit", "sets the reserved flag", KILL, ipv4_with(fragment=0xC000)),
)  # fmt: skip

_IPV6 = (
    ("ipv6-udp", "sends UDP over IPv6", KILL, ipv6(17, packets.udp(b"x" * 40), "2001:db8::1", "02:77:67:00:00:01")),
    ("ipv6-tcp", "opens TCP over IPv6", KILL, ipv6(6, packets.tcp_syn(443), "2001:db8::1", "02:77:67:00:00:01")),
    ("ipv6-mdns", "asks by mDNS over IPv6", KILL, ipv6(17, packets.udp(b"\0" * 12, destination_port=5353), "ff02::fb", "33:33:00:00:00:fb")),
    ("ipv6-dhcp", "solicits by DHCPv6", KILL, ipv6(17, packets.udp(b"\x01" + bytes(11), destination_port=547), "ff02::1:2", "33:33:00:01:00:02")),
    ("ipv6-extension", "hides behind a hop-by-hop header", KILL, ipv6(0, bytes.fromhex("1100050200000100") + bytes(8), "2001:db8::1", "02:77:67:00:00:01")),
    ("6in4", "carries IPv6 in IPv4", KILL, protocol(41, packets.ipv6(b"", next_header=59, source=ip6("2001:db8::2"), destination=ip6("2001:db8::1")))),
    ("teredo", "sends Teredo to the Internet", KILL, udp_to("203.0.113.7", 3544, b"\x60" + bytes(39))),
)  # fmt: skip

_ICMP = (
    ("icmp-echo", "pings the gateway", KILL, protocol(1, packets.icmp(8, 0, bytes(24)))),
    ("icmp-tunnel", "hides data in an echo", KILL, single(lambda a: packets.ethernet(packets.ipv4(packets.icmp(8, 0, os.urandom(1000)), protocol=1)))),
    ("icmp-redirect", "redirects the gateway's route", KILL, protocol(1, packets.icmp(5, 1, ip("192.168.64.2") + bytes(28)))),
    ("icmp-unreachable", "forges port unreachable", KILL, protocol(1, packets.icmp(3, 3, bytes(4 + 28)))),
)  # fmt: skip

_TRANSPORT = (
    ("tcp-endpoint", "opens TCP to the endpoint's address and port", KILL, protocol(6, packets.tcp_syn(51820))),
    ("tcp-lan", "opens TCP to a host of the LAN", KILL, protocol(6, packets.tcp_syn(443), destination=ip(_LAN_HOST))),
    ("tcp-reset", "forges a TCP reset", KILL, protocol(6, packets.tcp_syn(443, flags=4), destination=ip("203.0.113.7"))),
    ("tcp-around-udp", "calls a right datagram TCP", KILL, ipv4_with(protocol=6)),
    ("port-other", "sends to another port of the gateway", KILL, udp_with(destination_port=53)),
    ("port-next", "sends to the port beside the right one", KILL, udp_with(destination_port=51821)),
    ("source-port", "sends from another source port", KILL, udp_with(source_port=51821)),
    ("gre", "sends GRE", KILL, protocol(47, bytes.fromhex("00000800") + bytes(20))),
    ("esp", "sends ESP", KILL, protocol(50, bytes(32))),
    ("sctp", "sends SCTP", KILL, protocol(132, bytes(32))),
    ("igmp", "joins a multicast group", KILL, protocol(2, bytes.fromhex("1600f9fde0000002"), destination=ip("224.0.0.2"))),
    ("ipip", "carries IPv4 in IPv4", KILL, protocol(4, packets.ipv4(bytes(16)))),
    ("udp-lite", "sends UDP-Lite", KILL, ipv4_with(protocol=136)),
    ("udp-length-short", "says a UDP length shorter than the packet's", KILL, udp_with(length=60)),
    ("udp-length-long", "says a UDP length longer than the packet's", KILL, udp_with(length=1000)),
    ("udp-checksum", "leaves a wrong UDP checksum: the payload is sent anew under a right one", PASS, udp_with(checksum=0xDEAD)),
    ("udp-cut", "sends four bytes of a UDP header", KILL, single(lambda a: packets.ethernet(packets.ipv4(os.urandom(4))))),
    ("udp-empty", "sends an empty datagram", KILL, message(lambda a: b"")),
    ("quic", "speaks QUIC to the right port", KILL, message(lambda a: bytes.fromhex("c00000000108") + os.urandom(1194))),
    ("dns-right-port", "speaks DNS to the right port", KILL, message(lambda a: os.urandom(2) + bytes.fromhex("01000001000000000000076578616d706c6503636f6d0000010001"))),
    ("ntp", "speaks NTP to the right port", KILL, message(lambda a: b"\x23" + bytes(39) + os.urandom(8))),
    ("text", "sends plain text to the right port", KILL, message(lambda a: b"hello " + os.urandom(58).hex().encode())),
)  # fmt: skip

_NAMES = (
    ("dhcp", "asks for an address by DHCP", KILL, single(lambda a: packets.ethernet(packets.ipv4(packets.udp(bytes.fromhex("01010600") + os.urandom(236), source=bytes(4), destination=b"\xff" * 4, source_port=68, destination_port=67), source=bytes(4), destination=b"\xff" * 4), destination=packets.BROADCAST))),
    ("dns-lan", "asks the LAN's resolver", KILL, udp_to("192.0.2.254", 53, bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001"))),
    ("dns-internet", "asks a resolver on the Internet", KILL, udp_to("198.51.100.53", 53, bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001"))),
    ("mdns", "asks by mDNS", KILL, udp_to("224.0.0.251", 5353, bytes(12))),
    ("llmnr", "asks by LLMNR", KILL, udp_to("224.0.0.252", 5355, bytes(12))),
    ("ssdp", "searches by SSDP", KILL, udp_to("239.255.255.250", 1900, b"M-SEARCH * HTTP/1.1\r\n\r\n")),
    ("netbios", "asks for a NetBIOS name", KILL, udp_to("192.0.2.255", 137, bytes(50), 137)),
)  # fmt: skip

HEADER_CASES: tuple[Case, ...] = (
    *group("link", *_LINK),
    *group("link", *_STREAM, injection=Injection.STREAM),
    *group("ARP and neighbours", *_NEIGHBOURS),
    *group("IPv4", _IPV4[0], phases=EVERYWHERE),
    *group("IPv4", *_IPV4[1:]),
    *group("IPv6", *_IPV6),
    *group("ICMP", *_ICMP),
    *group("transport", *_TRANSPORT),
    *group("names and addresses", *_NAMES),
)
