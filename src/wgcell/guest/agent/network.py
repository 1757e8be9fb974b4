"""The guest's link, and wg0 in the workload's network namespace, its UDP socket in the first."""

from __future__ import annotations

import _socket
import _struct as struct
import os
from binascii import b2a_base64
from fcntl import ioctl

from wgcell.guest.agent import files, kernel, tools
from wgcell.guest.firewall import ENDPOINT, PORT
from wgcell.guest.walls import Wall

__all__ = ["Namespaces", "Probe", "connect", "link_up", "tunnel_up", "wireguard_settings"]

NAME = "workload"
"""The namespace's, for ip."""
_ICMP, _ICMPV6 = 1, 58
_SIOCSIFMTU = 0x8922
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from wgcell.guest.config import GuestConfig

    Result = TypeVar("Result")


class Namespaces:
    """The first network namespace, where the card is, and the workload's, if it has one."""

    def __init__(self) -> None:
        self._first = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._workloads: int | None = None

    @property
    def apart(self) -> bool:
        """Whether the workload has a namespace of its own."""
        return self._workloads is not None

    def find(self) -> None:
        """The workload's has been made."""
        self._workloads = os.open(f"/run/netns/{NAME}", os.O_RDONLY)

    def inside(self, act: Callable[[], Result]) -> Result:
        """Call ``work`` in the workload's namespaces: processes that it starts stay there."""
        if self._workloads is None:
            return act()
        kernel.setns(self._workloads, kernel.NEWNET)
        try:
            return act()
        finally:
            kernel.setns(self._first, kernel.NEWNET)


def link_batch(walls: frozenset[Wall]) -> str:
    """The commands of ip in the first namespace. wg0 is made there, and its UDP socket stays
    there."""
    lines = [
        "link set lo up",
        # The link has one neighbour, known for good; nothing is ever asked.
        "link set eth0 arp off mtu 1500",
        "addr add 192.168.64.2/30 dev eth0",
        "link set eth0 up",
        f"neigh replace {ENDPOINT} lladdr 02:77:67:00:00:01 nud permanent dev eth0",
    ]
    if Wall.NAMESPACE in walls:
        lines += [f"netns add {NAME}", f"link add wg0 netns {NAME} type wireguard"]
    else:
        lines.append("link add wg0 type wireguard")
    return "".join(f"{line}\n" for line in lines)


def tunnel_batch(config: GuestConfig) -> str:
    """The commands of ip in the workload's namespace."""
    lines = [f"addr add {address} dev wg0" for address in config.addresses]
    lines += ["link set lo up", f"link set wg0 mtu {config.mtu} up"]
    lines += [f"route replace {network} dev wg0" for network in config.allowed_ips]
    return "".join(f"{line}\n" for line in lines)


def wireguard_settings(config: GuestConfig) -> str:
    """wg0's, as wg(8) reads them."""
    lines = [
        "[Interface]",
        f"PrivateKey = {_key(config.private_key)}",
        f"ListenPort = {PORT}",
        "[Peer]",
        f"PublicKey = {_key(config.peer_public_key)}",
        f"AllowedIPs = {','.join(config.allowed_ips)}",
        f"Endpoint = {ENDPOINT}:{PORT}",
        f"PersistentKeepalive = {config.keepalive}",
    ]
    if config.preshared_key is not None:
        lines.append(f"PresharedKey = {_key(config.preshared_key)}")
    return "".join(f"{line}\n" for line in lines)


def _key(raw: bytes) -> str:
    return b2a_base64(raw, newline=False).decode("ascii")


def link_up(config: GuestConfig, namespaces: Namespaces) -> None:
    """The card, the namespace, wg0."""
    tools.run("ip", "-batch", "-", given=link_batch(config.walls))
    if Wall.NAMESPACE in config.walls:
        namespaces.find()
    else:
        # Off is for the card: what goes into the tunnel may be IPv6.
        files.write("/proc/sys/net/ipv6/conf/wg0/disable_ipv6", "0")


def tunnel_up(config: GuestConfig) -> None:
    """wg0's keys, addresses and routes; where the workload is."""
    connect(config)
    tools.run("ip", "-batch", "-", given=tunnel_batch(config))
    # An echo needs no raw socket then, which the workload may not have.
    files.write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
    # If a router drops long packets silently, TCP finds out (RFC 4821).
    files.write("/proc/sys/net/ipv4/tcp_mtu_probing", "1")


def connect(config: GuestConfig) -> None:
    """Give wg0 its key and its peer; where the workload is. A peer that it had goes with its
    sessions, in one step: nothing is sent elsewhere meanwhile.
    """
    tools.run("wg", "setconf", "wg0", "/proc/self/fd/0", given=wireguard_settings(config))


def set_mtu(mtu: int) -> None:
    """wg0's MTU, in bytes; where the workload is. Without a process, which the workload may have
    left no room for.
    """
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        # struct ifreq (<linux/if.h>)
        ioctl(any_socket.fileno(), _SIOCSIFMTU, struct.pack("16si20x", b"wg0", mtu))
    finally:
        any_socket.close()


class Probe:
    """Echoes into the tunnel, one each time.

    A WireGuard with nothing to say is silent: an echo makes both ends speak, so that the host can
    see transport both ways; an endpoint that does not answer echoes owes a keepalive within 10 s
    all the same.
    """

    def __init__(self, address: str) -> None:
        self._to = (address, 0)
        six = ":" in address
        self._type = 128 if six else 8
        family, protocol = (_socket.AF_INET6, _ICMPV6) if six else (_socket.AF_INET, _ICMP)
        kind = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK
        self._socket = _socket.socket(family, kind, protocol)
        self._number = 0

    def send(self) -> None:
        """One echo; what comes of it is not looked at."""
        self._number = (self._number + 1) & 0xFFFF
        try:
            self._socket.sendto(
                struct.pack("!BBHHH56x", self._type, 0, 0, 0, self._number), self._to
            )
        except OSError:
            pass

    def close(self) -> None:
        """No more."""
        self._socket.close()
