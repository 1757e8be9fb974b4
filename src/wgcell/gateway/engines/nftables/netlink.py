"""The kernel's messages about flows: first packets by NFLOG, ends by conntrack.

Messages of netlink (linux/netlink.h, nfnetlink_log.h, nfnetlink_conntrack.h) become `FirstPacket`
and `FlowDestroyed`. The kernel wrote the messages, but the guest wrote the packets in them: parsing
raises nothing, whatever they hold.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = [
    "FirstPacket",
    "FlowDestroyed",
    "KernelFlow",
    "forget",
    "open_log",
    "open_sockets",
    "parse",
    "sweep",
    "tracked",
]

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST = 1
_NLM_F_DUMP = 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ULOG = 4
_CTNETLINK = 1
_ULOG_PACKET, _ULOG_CONFIG = 0, 1
_CT_GET, _CT_DELETE = 1, 2
_CFG_CMD, _CFG_MODE, _CFG_THRESHOLD = 1, 2, 5
_CFG_BIND = 1
_COPY_PACKET = 2
_COPIED = 128
"""Bytes of a packet: an IPv6 header, and the ports."""
_ALL = 0xFFFF
"""The same: all of it."""
_PREFIX, _PAYLOAD = 10, 9
_GROUP_DESTROY = 3
_ORIG, _REPLY, _COUNT_ORIG, _COUNT_REPLY, _ID = 1, 2, 9, 10, 12
_NESTED = 0x8000
_PATIENCE = 5.0
"""Seconds for the kernel to list its table."""
_FAMILIES = {4: 2, 6: 10}
"""AF_INET and AF_INET6, by IP's version."""
_TYPE = 0x3FFF
_RECEIVE_BUFFER = 1 << 20
_PROTOCOLS = {6: "tcp", 17: "udp"}
_OTHERS = {1: "icmp", 58: "icmpv6"}


@dataclass(frozen=True, slots=True)
class FirstPacket:
    """A flow's first packet, and the prefix of the rule that logged it."""

    prefix: str
    source: Address
    source_port: int
    address: Address
    port: int
    protocol: str
    """``tcp``, ``udp``, ``icmp``, ``icmpv6``, or ``ip`` and a number."""
    raw: bytes = field(default=b"", repr=False, compare=False)
    """As much of the packet as was copied."""


@dataclass(frozen=True, slots=True)
class FlowDestroyed:
    """The end of a flow, with the bytes that the kernel counted, headers included."""

    source: Address
    source_port: int
    address: Address
    port: int
    protocol: str
    bytes_out: int
    bytes_in: int


@dataclass(frozen=True, slots=True)
class KernelFlow:
    """A flow that the kernel tracks, as its first packet had it."""

    source: Address
    source_port: int
    address: Address
    port: int
    protocol: str
    """``tcp`` or ``udp``."""
    answers_from: Address
    """Where its answers come from: another than ``address`` if it was redirected."""
    identity: bytes = field(default=b"", repr=False, compare=False)
    """The kernel's own words for it."""


def open_sockets(group: int) -> tuple[socket.socket, socket.socket]:
    """A socket for NFLOG's ``group``, and one for the ends of conntrack. Raises OSError."""
    return open_log(group, copied=_COPIED), _open(1 << (_GROUP_DESTROY - 1))


def _open(groups: int = 0) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    sock.bind((0, groups))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    return sock


def open_log(group: int, *, copied: int = _ALL) -> socket.socket:
    """A socket for NFLOG's ``group``: at most ``copied`` bytes of each packet. Raises OSError."""
    log = _open()
    for body in (
        _attribute(_CFG_CMD, bytes([_CFG_BIND])),
        _attribute(_CFG_MODE, struct.pack(">IBB", copied, _COPY_PACKET, 0)),
        # Each packet at once, not by the hundred or the second.
        _attribute(_CFG_THRESHOLD, struct.pack(">I", 1)),
    ):
        head = struct.pack(">BBH", 0, 0, group)
        size = 16 + len(head) + len(body)
        kind = _ULOG << 8 | _ULOG_CONFIG
        log.send(struct.pack("=IHHII", size, kind, _NLM_F_REQUEST, 1, 0) + head + body)
    return log


def sweep(ends: socket.socket) -> None:
    """Have conntrack go through its table, where it drops and reports expired flows.

    By itself it may take a minute to notice them. `parse` skips the table's
    entries, which come too.
    """
    kind = _CTNETLINK << 8 | _CT_GET
    ends.send(struct.pack("=IHHIIBBH", 20, kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0, 0, 0, 0))


def tracked(sources: Collection[Address]) -> list[KernelFlow]:
    """The flows from ``sources`` that the kernel tracks now, whoever forwards them.

    It reads the kernel's whole table, some 100 ms for 100,000 flows. Raises OSError.
    """
    begins = [one.packed for one in sources]
    found: list[KernelFlow] = []
    with _open() as sock:
        sock.setblocking(True)
        sock.settimeout(_PATIENCE)
        sweep(sock)
        while True:
            data = sock.recv(1 << 17)
            for kind, body in _messages(data):
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel lists no flows")
                # Most of a large table is no peer's: those are not taken to pieces.
                if any(begin in body for begin in begins):
                    flow = _tracked_flow(_attributes(body))
                    if flow is not None and flow.source in sources:
                        found.append(flow)


def forget(flows: Iterable[KernelFlow]) -> None:
    """Have the kernel forget ``flows``: their next packets are compared with the rules. Raises
    OSError."""
    with _open() as sock:
        for flow in flows:
            head = struct.pack(">BBH", _FAMILIES[flow.address.version], 0, 0)
            kind = _CTNETLINK << 8 | _CT_DELETE
            size = 16 + len(head) + len(flow.identity)
            sock.send(
                struct.pack("=IHHII", size, kind, _NLM_F_REQUEST, 1, 0) + head + flow.identity
            )


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the attributes of each message in one datagram of netlink."""
    while len(data) >= 16:
        size, kind = struct.unpack_from("=IH", data)
        if not 16 <= size <= len(data):
            return
        yield kind, data[20:size]
        data = data[(size + 3) & ~3 :]


def _attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if not 4 <= size <= len(data):
            break
        found[kind & _TYPE] = data[4:size]
        data = data[(size + 3) & ~3 :]
    return found


def parse(data: bytes) -> Iterator[FirstPacket | FlowDestroyed]:
    """The flows in one datagram of netlink. Never raises; malformed messages are skipped."""
    for kind, body in _messages(data):
        found: FirstPacket | FlowDestroyed | None = None
        if kind == _ULOG << 8 | _ULOG_PACKET:
            found = _first_packet(_attributes(body))
        elif kind == _CTNETLINK << 8 | _CT_DELETE:
            found = _flow_end(_attributes(body))
        if found is not None:
            yield found


def _first_packet(attributes: dict[int, bytes]) -> FirstPacket | None:
    prefix = attributes.get(_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace")
    packet = attributes.get(_PAYLOAD, b"")
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        protocol, source, address = packet[9], packet[12:16], packet[16:20]
        ports = packet[(packet[0] & 15) * 4 :][:4]
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, source, address, ports = packet[6], packet[8:24], packet[24:40], packet[40:44]
    else:
        return None
    name = _PROTOCOLS.get(protocol) or _OTHERS.get(protocol, f"ip{protocol}")
    first, second = (
        struct.unpack(">HH", ports) if len(ports) == 4 and protocol in _PROTOCOLS else (0, 0)
    )
    ends = addresses.unpacked(source), first, addresses.unpacked(address), second
    return FirstPacket(prefix, *ends, name, packet)


Ends = tuple[Address, int, Address, int, str]
"""The source and its port, the destination and its port, and the protocol."""


def _ends(raw: bytes) -> Ends | None:
    """What a tuple of conntrack says; None if it is neither TCP nor UDP."""
    tuple_ = _attributes(raw)
    ip, proto = _attributes(tuple_.get(1, b"")), _attributes(tuple_.get(2, b""))
    # CTA_IP_V4_SRC, _DST, V6_SRC, _DST are 1 to 4; CTA_PROTO_NUM, SRC_PORT, DST_PORT 1 to 3.
    ends = [ip[kind] for kind in (1, 2, 3, 4) if len(ip.get(kind, b"")) in (4, 16)]
    if len(ends) != 2 or len(proto.get(1, b"")) != 1:
        return None
    protocol = _PROTOCOLS.get(proto[1][0])
    if protocol is None or len(proto.get(2, b"")) != 2 or len(proto.get(3, b"")) != 2:
        return None
    return (
        addresses.unpacked(ends[0]),
        int.from_bytes(proto[2], "big"),
        addresses.unpacked(ends[1]),
        int.from_bytes(proto[3], "big"),
        protocol,
    )


def _flow_end(attributes: dict[int, bytes]) -> FlowDestroyed | None:
    ends = _ends(attributes.get(_ORIG, b""))
    if ends is None:
        return None
    counts = []
    for kind in (_COUNT_ORIG, _COUNT_REPLY):
        raw = _attributes(attributes.get(kind, b"")).get(2, b"")
        counts.append(int.from_bytes(raw, "big") if len(raw) == 8 else 0)
    return FlowDestroyed(*ends, *counts)


def _tracked_flow(attributes: dict[int, bytes]) -> KernelFlow | None:
    ends, back = (_ends(attributes.get(kind, b"")) for kind in (_ORIG, _REPLY))
    if ends is None or back is None:
        return None
    # The identity: another flow between the same ends is another entry.
    identity = _attribute(_ORIG | _NESTED, attributes[_ORIG])
    identity += _attribute(_ID, attributes[_ID]) if _ID in attributes else b""
    return KernelFlow(*ends, answers_from=back[0], identity=identity)
