"""The machine's own network as the host context. Needs root.

The kernel forwards what an address allows. TCP that the process must look into is redirected (DNAT)
to a port of the gateway's own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from wgcell.errors import HostError
from wgcell.gateway.engines.nftables import forwarding
from wgcell.gateway.engines.nftables.commands import run_tool, sysctl, try_tool
from wgcell.gateway.engines.nftables.device import Device
from wgcell.gateway.engines.nftables.host import Place
from wgcell.gateway.engines.nftables.listeners import listening_socket
from wgcell.gateway.engines.nftables.table import (
    HOLD_GROUP,
    REDIRECT_PORT,
    RELEASED,
    table_name,
)
from wgcell.gateway.model import wgquick
from wgcell.gateway.model.config import GatewayConfig
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["INTERFACE", "MachineHost"]

P = ParamSpec("P")
T = TypeVar("T")

INTERFACE = "wgcell0"
_ORIGINAL_DST = 80
"""SO_ORIGINAL_DST (linux/netfilter_ipv4.h); IP6T_SO_ORIGINAL_DST has the same number."""
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ACCOUNTING = "net/netfilter/nf_conntrack_acct"
_MARK_IN_ROUTES = "net/ipv4/conf/lo/src_valid_mark"
_BACK = f"fwmark {RELEASED} lookup {HOLD_GROUP}"
"""The rule that makes ``lo`` the expected interface of a SYN that is put back. A machine may drop
packets that its routes expect elsewhere (rp_filter of 1; Linux, ip-sysctl.rst)."""


class MachineHost:
    """The machine's network, with the WireGuard interface ``interface``."""

    name = "kernel"
    any_address = False
    proxies_udp = False

    def __init__(self, interface: str = INTERFACE) -> None:
        self.interface = interface
        self.router = True
        self._lock = -1
        self._settings: dict[str, str] = {}

    def run(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``work``."""
        return work(*args, **options)

    async def run_aside(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``work``, done in a thread."""
        return await asyncio.to_thread(work, *args, **options)

    def claim(self, config: GatewayConfig) -> None:
        """Lock the interface. The lock ends with the process, however the process ends."""
        if os.geteuid() != 0:
            raise HostError("the kernel engine needs root", hint="the others do not")
        self._lock = os.open(f"/run/wgcell-{self.interface}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = -1
            raise HostError(
                f"another gateway runs on {self.interface} already",
                hint="stop it, or choose another name with --interface",
            ) from None

    def prepare(self, config: GatewayConfig, device: Device) -> None:
        """Make the machine forward, and take away what a killed gateway has left behind."""
        self._forward(config)
        device.delete()
        try_tool("ip", "rule", "del", *_BACK.split())
        run_tool("ip", "rule", "add", *_BACK.split())

    def _forward(self, config: GatewayConfig) -> None:
        # A gateway that was killed has put nothing back: the settings that it found are in the
        # lock's file.
        try:
            found = json.loads(os.pread(self._lock, 4096, 0) or b"{}")
        except ValueError:
            found = {}
        versions = {address.version for address in config.inside} | {4}
        for name in [_FORWARDING[version] for version in sorted(versions)]:
            self._settings[name] = str(found.get(name) or sysctl(name))
        for name in (_ACCOUNTING, _MARK_IN_ROUTES):
            with contextlib.suppress(HostError):
                self._settings[name] = str(found.get(name) or sysctl(name))
        os.pwrite(self._lock, json.dumps(self._settings).encode(), 0)
        for name in self._settings:
            sysctl(name, "1")
        # A machine that becomes a router only now must forward for the tunnel and nobody else.
        self.router = self._settings[_FORWARDING[4]] == "1"

    def place(self, config: GatewayConfig) -> tuple[str, int]:
        """Where WireGuard itself listens."""
        return config.listen

    def ruleset(self, config: GatewayConfig) -> str:
        """The table that forwards."""
        return forwarding.ruleset(config, self.interface, router=self.router)

    def settings(self, config: GatewayConfig) -> str:
        """The text for wg(8)."""
        return wgquick.wireguard_settings(config)

    def redirect_sockets(self, config: GatewayConfig) -> list[socket.socket]:
        """One at each of the gateway's own addresses."""
        return [listening_socket(address, REDIRECT_PORT) for address in config.addresses]

    def destination(self, accepted: socket.socket, place: Place) -> tuple[Address, int]:
        """The destination before DNAT, of which conntrack knows."""
        address, port = addresses.of_socket(place[0]), int(place[1])
        if port != REDIRECT_PORT:
            return address, port
        if address.version == 4:
            raw = accepted.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DST, 16)
            return addresses.unpacked(raw[4:8]), int.from_bytes(raw[2:4], "big")
        raw = accepted.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, 28)
        return addresses.unpacked(raw[8:24]), int.from_bytes(raw[2:4], "big")

    @contextmanager
    def changing(self, before: GatewayConfig, after: GatewayConfig) -> Iterator[None]:
        """WireGuard's own port changes with its settings."""
        yield

    @contextmanager
    def configuring(self, config: GatewayConfig, device: Device) -> Iterator[None]:
        """Nothing more is to be done here."""
        yield

    def close(self, device: Device) -> None:
        """Take away the interface, then the table, then put back the machine's settings."""
        if self._lock < 0:
            return
        device.delete()
        try_tool("ip", "rule", "del", *_BACK.split())
        for version in ("-4", "-6"):
            try_tool("ip", version, "route", "flush", "table", str(HOLD_GROUP))
        device.end_daemon()
        for name, value in self._settings.items():
            with contextlib.suppress(HostError):
                sysctl(name, value)
        try_tool("nft", "delete", "table", *table_name(self.interface).split())
        os.ftruncate(self._lock, 0)
        os.close(self._lock)
        self._lock = -1
