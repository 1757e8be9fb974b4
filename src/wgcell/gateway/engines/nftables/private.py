"""A private network namespace as the host context. Needs no root.

WireGuard and nftables work in the namespace, which has no link to anywhere. All allowed TCP and UDP
is redirected to this process (TPROXY), which proxies it to ordinary sockets outside the namespace.
So a peer reaches no more than the user of this process may reach. The kernel refuses everything
else, with a reset or an ICMP message. If the rules failed, there would be no route out.

Peers send to a port outside the namespace: the ingress passes their datagrams to WireGuard.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ParamSpec, TypeVar

from wgcell.errors import HostError
from wgcell.gateway.engines.nftables import tproxy, transparent
from wgcell.gateway.engines.nftables.commands import run_tool, sysctl
from wgcell.gateway.engines.nftables.device import Device
from wgcell.gateway.engines.nftables.host import Place
from wgcell.gateway.engines.nftables.netns import PrivateNetns
from wgcell.gateway.engines.nftables.table import TPROXY_MARK
from wgcell.gateway.ingress.backpressure import Backpressure
from wgcell.gateway.ingress.demultiplexer import INSIDE, Demultiplexer
from wgcell.gateway.model import wgquick
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.keys import decode_key, public_key
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["PrivateHost", "prepare_namespace"]

P = ParamSpec("P")
T = TypeVar("T")

_INTERFACE = "wgcell0"
_TABLE = 100
"""The routing table that delivers a redirected packet to this process."""
_ROUTES = f"""\
rule add fwmark {TPROXY_MARK} lookup {_TABLE}
route add local default dev lo table {_TABLE}
"""
_CONF = ("src_valid_mark", "rp_filter", "route_localnet", "accept_redirects", "forwarding")
_ZERO = (
    # Every refusal gets its ICMP message: by default Linux limits them to each destination.
    "net/ipv4/icmp_ratelimit",
    # A namespace begins with the settings of the machine (ip-sysctl.rst, devconf_inherit_init_net).
    # With some of them, as those of wg-quick, no redirected packet would arrive.
    *(f"net/ipv4/conf/{of}/{name}" for of in ("all", "default", "lo") for name in _CONF),
)
_ZERO_IPV6 = (
    "net/ipv6/icmp/ratelimit",
    *(f"net/ipv6/conf/{of}/disable_ipv6" for of in ("all", "default", "lo")),
)


class PrivateHost:
    """The namespace and its ingress. Must be made before the process has a second thread.

    Raises HostError where there can be no namespace, and OSError if the port is taken.
    """

    name = "namespace"
    any_address = True
    proxies_udp = True
    router = True
    interface = _INTERFACE

    def __init__(self, config: GatewayConfig) -> None:
        self._backpressure = Backpressure()
        self._ingress = Demultiplexer(
            lambda: self.run(_datagram_socket), self._backpressure.has_room
        )
        # Before this process is root in its namespace, and has fewer rights outside.
        self._ingress.open(config.listen)
        try:
            self._netns = PrivateNetns()
        except BaseException:
            self._ingress.close()
            raise
        self._routes_ipv6 = False

    def run(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``work``, done in the namespace."""
        return self._netns.run(work, *args, **options)

    async def run_aside(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The same in the namespace's second thread."""
        return await self._netns.run_aside(work, *args, **options)

    def claim(self, config: GatewayConfig) -> None:
        """The port is this gateway's since it was made; now peers may come in."""
        self._admit(config)

    def _admit(self, config: GatewayConfig) -> None:
        self._ingress.admit(decode_key(public_key(config.private_key)))

    def prepare(self, config: GatewayConfig, device: Device) -> None:
        """Set the namespace's sysctls and routes."""
        prepare_namespace()

    def place(self, config: GatewayConfig) -> tuple[str, int]:
        """Where the ingress listens."""
        return self._ingress.place

    def ruleset(self, config: GatewayConfig) -> str:
        """The table that redirects everything allowed."""
        return tproxy.ruleset(config, self.interface)

    def settings(self, config: GatewayConfig) -> str:
        """The text for wg(8): WireGuard listens where only the ingress reaches it."""
        return wgquick.wireguard_settings(replace(config, listen=INSIDE))

    def redirect_sockets(self, config: GatewayConfig) -> list[socket.socket]:
        """One of each family, for any address."""
        return [
            transparent.redirect_socket(family, socket.SOCK_STREAM)
            for family in transparent.families()
        ]

    def destination(self, accepted: socket.socket, place: Place) -> tuple[Address, int]:
        """TPROXY leaves the destination as it is."""
        return addresses.of_socket(place[0]), int(place[1])

    @contextmanager
    def changing(self, before: GatewayConfig, after: GatewayConfig) -> Iterator[None]:
        """Listen at another port and admit by another key; back to the old ones if it fails."""
        stood = self._ingress.place
        try:
            if after.listen != before.listen:
                self._ingress.open(after.listen)
            self._admit(after)
            yield
        except BaseException:
            self._admit(before)
            if self._ingress.place != stood:
                self._ingress.open(stood)
            raise

    @contextmanager
    def configuring(self, config: GatewayConfig, device: Device) -> Iterator[None]:
        """WireGuard may bind another socket meanwhile, whose fill level is then watched."""
        if not self._routes_ipv6 and any(address.version == 6 for address in config.inside):
            run_tool("ip", "-6", "-batch", "-", text=_ROUTES)
            self._routes_ipv6 = True
        self._backpressure.give_back()
        try:
            yield
        finally:
            if device.pid is not None:
                self._backpressure.borrow(device.pid, INSIDE[1])

    def close(self, device: Device) -> None:
        """Everything else ends with the namespace, and the namespace with the process."""
        self._ingress.close()
        self._backpressure.give_back()
        self.run(device.end_daemon)


def prepare_namespace() -> None:
    """Set the sysctls and the routes of the calling thread's namespace. Raises HostError."""
    for name in _ZERO:
        sysctl(name, "0")
    with contextlib.suppress(HostError):  # a machine without IPv6
        for name in _ZERO_IPV6:
            sysctl(name, "0")
    run_tool("ip", "-batch", "-", text="link set lo up\n" + _ROUTES)


def _datagram_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
