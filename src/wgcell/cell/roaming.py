"""The way to the endpoint: a socket to it at the start, and a fresh one when either side moves.

`wgcell.cell.renewal` decides when a fresh socket is wanted and where it may lead; here are the
sockets and the handshakes. An address that has not consented gets the supervisor's own handshakes
and nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

from wgcell.cell import consent, endpoint, renewal
from wgcell.cell.core.events import AddressMet, Event, PathSeen
from wgcell.cell.ending import in_thread
from wgcell.cell.renewal import Renewal
from wgcell.cell.wgquick import VpnConfig
from wgcell.errors import ConsentError, EndpointError
from wgcell.net.addresses import Address

__all__ = ["LogBounded", "Roaming", "first_consenting", "fitting", "reach"]


class LogBounded(Protocol):
    """`wgcell.cell.events.EventLog.log_bounded`."""

    def __call__(self, event: str, **fields: object) -> object: ...


class TakesSockets(Protocol):
    """A relay: it is given fresh sockets to the endpoint."""

    def replace_udp(self, fresh: socket.socket, *, met: bool) -> None:
        """Send there from now on; ``met`` if the address is another than before."""


async def reach(
    address: Address, vpn: VpnConfig, log: LogBounded, *, consenting: bool = True
) -> socket.socket:
    """A socket to ``address``, which has consented on it if that is asked.

    Raises EndpointError where there is no way, and ConsentError.
    """
    sock = endpoint.connect(address, vpn.endpoint_port)
    if consenting:
        try:
            log("consent_asked", endpoint=endpoint.shown(address, vpn.endpoint_port))
            await consent.obtain(sock, vpn.private_key, vpn.peer_public_key, vpn.preshared_key)
        except BaseException:
            sock.close()
            raise
    return sock


async def first_consenting(
    vetted: tuple[Address, ...], vpn: VpnConfig, log: LogBounded
) -> tuple[Address, socket.socket]:
    """The first of the endpoint's addresses that consents, and the socket on which it did.

    A name may lead to any number of strangers: no more are asked than in a renewal.
    Raises EndpointError where this host has no way to any, and ConsentError.
    """
    refusals: list[EndpointError | ConsentError] = []
    for address in (vetted or (ip_address(vpn.endpoint_host),))[: renewal.MOST_ASKED]:
        try:
            return address, await reach(address, vpn, log)
        except (EndpointError, ConsentError) as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    worst = next((one for one in refusals if isinstance(one, ConsentError)), refusals[0])
    raise type(worst)("; ".join(one.message for one in refusals), hint=worst.hint)


def fitting(vpn: VpnConfig, address: Address, path: int) -> int:
    """The MTU of the tunnel to ``address`` whose path carries ``path`` bytes a packet."""
    return endpoint.tunnel_mtu(path, address.version, vpn.mtu, carries_ipv6=vpn.carries_ipv6)


def _way(address: Address, port: int) -> tuple[str | None, int]:
    """The address this host would send from now, and the path's MTU; None and 0 without a way."""
    try:
        with endpoint.connect(address, port) as asked:
            return str(asked.getsockname()[0]), endpoint.path_mtu(asked)
    except EndpointError:
        return None, 0


@dataclass(slots=True)
class Roaming:
    """One cell's way. ``feed`` gives the core an event, ``log`` writes one into the record."""

    relay: TakesSockets
    vpn: VpnConfig
    way: Renewal
    log: LogBounded
    feed: Callable[[Event], None]
    vet_again: Callable[[], tuple[Address, ...]] | None = None

    async def follow(self, unanswered: Callable[[], int]) -> None:
        """Look at the way every `renewal.LOOK` seconds: its MTU, and whether a socket is due.

        ``unanswered`` counts the guest's latest initiations that nobody has answered.
        """
        while True:
            await asyncio.sleep(renewal.LOOK)
            source, path = _way(self.way.address, self.vpn.endpoint_port)
            fits = fitting(self.vpn, self.way.address, path)
            self.feed(PathSeen(path, fits, may_grow=self.way.moved(source)))
            if self.way.due(source, unanswered(), time.monotonic()):
                await self.renew(source)

    async def renew(self, source: str | None) -> None:
        """A fresh socket for the relay, where one may be had."""
        found: tuple[Address, ...] = (self.way.address,)
        refusals, asked = [], False
        try:
            if self.vet_again is not None:
                found = await in_thread(self.vet_again)  # a stranger's name may hang
        except EndpointError as error:
            refusals, found = [error.message], ()
        for address in self.way.order(found, source):
            met = self.way.must_consent(address)
            try:
                fresh = await reach(address, self.vpn, self.log, consenting=met)
            except (EndpointError, ConsentError) as error:
                refusals.append(error.message)
                asked = asked or isinstance(error, ConsentError)
                continue
            self._hand_over(fresh, address, met=met)
            return
        self.way.refused(time.monotonic(), asked=asked)
        self.log("endpoint_refused", reason="; ".join(refusals))

    def _hand_over(self, fresh: socket.socket, address: Address, *, met: bool) -> None:
        own = str(fresh.getsockname()[0])
        self.way.renewed(address, own, time.monotonic())
        if met:
            self.feed(AddressMet())
        self.relay.replace_udp(fresh, met=met)
        where = endpoint.shown(address, self.vpn.endpoint_port)
        self.log("socket_renewed", endpoint=where, source=own, met=met)
