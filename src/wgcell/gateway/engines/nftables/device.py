"""The WireGuard interface: the kernel's own, or wireguard-go's where the kernel has none.

Every method but `watch` and `forget` runs in the network namespace where the interface is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

from wgcell import programs
from wgcell.errors import HostError
from wgcell.gateway.engines.nftables.commands import run_tool, try_tool
from wgcell.gateway.engines.nftables.table import HOLD_GROUP
from wgcell.gateway.model.config import GatewayConfig
from wgcell.net.addresses import Address

__all__ = ["Device"]

_APPEARS = 5.0
"""Seconds for wireguard-go to make its interface."""
_ENDS = 3.0
"""Seconds for wireguard-go to end."""
_TUN = "/dev/net/tun"
"""The device from which wireguard-go gets its interface."""


class Device:
    """The interface ``name``. ``preexec`` is called in wireguard-go before its exec."""

    def __init__(self, name: str, preexec: Callable[[], None] | None = None) -> None:
        self.name = name
        self._preexec = preexec
        self._daemon: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._addresses: set[Address] = set()

    @property
    def pid(self) -> int | None:
        """The process id of wireguard-go; None if the kernel has WireGuard."""
        return None if self._daemon is None else self._daemon.pid

    def make(self) -> None:
        """Make the interface. Raises HostError with a hint."""
        try:
            run_tool("ip", "link", "add", self.name, "type", "wireguard")
        except HostError:
            self._start_daemon()
        run_tool("ip", "link", "set", self.name, "mtu", "1420", "up")

    def _start_daemon(self) -> None:
        program = programs.find("wireguard-go")
        if program is None:
            raise HostError(
                "this kernel has no WireGuard, and wireguard-go is missing",
                hint="apt-get install wireguard-go",
            )
        try:
            os.close(os.open(_TUN, os.O_RDWR))
        except OSError as error:
            gone = error.errno == errno.ENOENT
            hint = "modprobe tun" if gone else f"chmod 0666 {_TUN}, which is what udev does with it"
            raise HostError(
                f"this kernel has no WireGuard, and {_TUN}: {error.strerror}", hint=hint
            ) from None
        control = Path(f"/run/wireguard/{self.name}.sock")
        # A wireguard-go that was killed has left its socket behind.
        control.unlink(missing_ok=True)
        self._daemon = subprocess.Popen(
            [program, "-f", self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=programs.environment(),
            preexec_fn=self._preexec,
        )
        end = time.monotonic() + _APPEARS
        # Not /sys/class/net: that shows the namespace in which it was mounted.
        while not (_accepts(control) and self.name in {n for _, n in socket.if_nameindex()}):
            if self._daemon.poll() is not None or time.monotonic() > end:
                raise HostError(f"wireguard-go made no interface {self.name}")
            time.sleep(0.002)

    def configure(
        self, config: GatewayConfig, settings: str, known_peers: Collection[Address]
    ) -> None:
        """Set the keys, the addresses and the routes of ``config``. Raises HostError.

        ``settings`` is the text for wg(8). ``known_peers`` are the addresses of the peers so far:
        none at the first time.
        """
        verb = "syncconf" if known_peers else "setconf"
        run_tool("wg", verb, self.name, "/dev/stdin", text=settings)
        wanted = {*config.addresses, *(service.address for service in config.services)}
        for address in self._addresses - wanted:
            try_tool("ip", "addr", "del", _host(address), "dev", self.name)
        # If a step fails, any of these addresses may be there.
        self._addresses |= wanted
        # Without "nodad" an IPv6 address is tentative for a moment, and can't be bound.
        lines = [
            f"addr replace {_host(address)} dev {self.name}"
            + (" nodad" if address.version == 6 else "")
            for address in sorted(wanted, key=str)
        ]
        peers = [address for peer in config.peers for address in peer.addresses]
        for address in peers:
            lines.append(f"route replace {_host(address)} dev {self.name}")
            lines.append(f"route replace {_host(address)} dev lo table {HOLD_GROUP}")
        run_tool("ip", "-batch", "-", text="\n".join([*lines, ""]))
        self._addresses = wanted
        for address in set(known_peers) - set(peers):
            try_tool("ip", "route", "del", _host(address), "dev", self.name)
            try_tool("ip", "route", "del", _host(address), "table", str(HOLD_GROUP))

    def delete(self) -> None:
        """Take the interface away, also one that a killed gateway has left behind."""
        try_tool("ip", "link", "delete", self.name)

    def end_daemon(self) -> None:
        """End wireguard-go, and wait up to 3 s for it."""
        if self._daemon is not None:
            self._daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(_ENDS)

    def watch(self, died: Callable[[], None]) -> None:
        """Call ``died`` from the event loop when wireguard-go dies by itself."""
        if self._daemon is not None:
            self._pidfd = os.pidfd_open(self._daemon.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, died)

    def forget(self) -> None:
        """End `watch`."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _accepts(control: Path) -> bool:
    """Whether wireguard-go listens on its socket.

    wg(8) deletes a socket that refuses it, taking it for a dead process's. So it must not come
    between bind() and listen(): wireguard-go would miss its socket, and end.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(control))
        except OSError:
            return False
    return True


def _host(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"
