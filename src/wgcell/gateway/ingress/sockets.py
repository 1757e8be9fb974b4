"""The UDP sockets of the ingress: many at one port, and many datagrams in one system call."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct

from wgcell.net import addresses, linux

__all__ = [
    "CONTROL_SIZE",
    "SockAddr",
    "ancillary",
    "bound_socket",
    "enlarge_buffers",
    "forget",
    "report_destination",
    "send",
]

SockAddr = tuple[str, int, *tuple[int, ...]]
"""An address as the kernel gives it: host and port, and for IPv6 two numbers more."""

_BUFFER = 4 << 20
"""Bytes asked of the kernel; it gives at most net.core.rmem_max."""
_NO_SEGMENTS = frozenset({errno.EMSGSIZE, errno.EINVAL, errno.EIO})
_DESTINATION = {
    socket.AF_INET: (socket.IPPROTO_IP, linux.IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}
CONTROL_SIZE = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
"""Bytes of the control messages that `ancillary` reads."""


def report_destination(sock: socket.socket) -> None:
    """Have each datagram carry its destination address."""
    level, option = _DESTINATION[socket.AddressFamily(sock.family)]
    sock.setsockopt(level, option, 1)


def ancillary(control: list[tuple[int, int, bytes]]) -> tuple[int, str]:
    """The size of the datagrams that the kernel has coalesced, 0 if it has not; and the destination
    address, empty if it is unknown."""
    size, destination = 0, ""
    for level, kind, raw in control:
        if (level, kind) == (socket.IPPROTO_UDP, linux.UDP_GRO):
            size = struct.unpack("i", raw[:4])[0]
        elif (level, kind) == (socket.IPPROTO_IP, linux.IP_PKTINFO):
            destination = str(addresses.unpacked(raw[8:12]))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            destination = str(addresses.unpacked(raw[:16]))
    return size, destination


def bound_socket(
    place: SockAddr, *, beside: bool = False, to: SockAddr | None = None
) -> socket.socket:
    """A socket at ``place``, which no other process shares; ``beside`` another of this process.

    Connected ``to`` an address, it receives what comes from there. A datagram that comes from
    elsewhere between the two steps still has its own source.

    Raises OSError that says what is taken.
    """
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(place)
        # Only now: the first bind must fail if another gateway is there.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if to is not None:
            sock.connect(to)
    except OSError as error:
        sock.close()
        where = f"{place[0]}, UDP port {place[1]}"
        raise OSError(error.errno, f"can't listen on {where}: {error.strerror}") from None
    enlarge_buffers(sock)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_UDP, linux.UDP_GRO, 1)
    return sock


def enlarge_buffers(sock: socket.socket) -> None:
    """Ask for 4 MiB of each buffer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


def forget(sock: socket.socket) -> None:
    """Close a socket that the event loop may be reading."""
    asyncio.get_running_loop().remove_reader(sock)
    sock.close()


def send(sock: socket.socket, data: bytes, size: int, place: SockAddr | None = None) -> bool:
    """Send datagrams of ``size`` bytes, of which the last may be shorter, in one system call.

    False if the kernel refused that, and they left one by one. A datagram that the kernel does not
    take is lost, as UDP loses datagrams.
    """
    to = () if place is None else (place,)
    if len(data) > size:
        segment = (socket.IPPROTO_UDP, linux.UDP_SEGMENT, struct.pack("H", size))
        try:
            sock.sendmsg([data], [segment], 0, *to)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_SEGMENTS:
                # An ICMP error of an earlier datagram, in place of sending this one.
                with contextlib.suppress(OSError):
                    sock.sendmsg([data], [segment], 0, *to)
                return True
        else:
            return True
    for begin in range(0, len(data), size):
        with contextlib.suppress(OSError):
            sock.sendmsg([data[begin : begin + size]], [], 0, *to)
    return len(data) <= size
