"""A peer's SYN is held until its target has accepted: ``connect()`` succeeds only then.

A listening socket answers a SYN by itself, so a peer would be connected to a target that is dead.
Therefore nftables drops the SYN of a flow that this process joins, and copies it here by NFLOG.
Once the target has accepted, the very packet is put back, by a packet socket on the loopback
interface of the same network, under the mark `RELEASED`: the rules are asked again, and the kernel
answers it. If the target does not accept, the mark is another one, and nftables refuses the packet
in the network's own words.

A copy that is lost costs a second: the peer sends its SYN again (RFC 6298, 2.1). A SYN that comes
again while its flow is held changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType

from wgcell.gateway.engines.nftables import netlink
from wgcell.gateway.engines.nftables.ruleset import RELEASED, RESET, UNREACHABLE

__all__ = ["Accepted", "Held", "Holding"]

HANDSHAKE = 10.0
"""Seconds that the peer may take to complete the handshake once its target has accepted."""
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
"""linux/if_ether.h: ETH_P_IP, ETH_P_IPV6."""
_LOOPBACK = "lo"
_NOBODY = bytes(6)
"""The loopback interface's own hardware address."""
_AT_ONCE = 64

Accepted = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Ends = tuple[object, ...]
"""The peer's address and port, the target's address and port."""


class Held:
    """One SYN. Leaving its context refuses it, unless it was released or refused by then."""

    def __init__(self, holding: Holding, packet: netlink.Seen) -> None:
        self.packet = packet
        self.accepted = False
        """Whether `released` has returned."""
        self._holding = holding
        self._accepted: asyncio.Future[Accepted] | None = None
        self._refused = False

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holding.forget(self)
        if self._accepted is None and not self._refused:
            self.refuse()
        elif self._accepted is not None and self._accepted.done() and not self.accepted:
            # It came at the moment in which its flow was ended.
            with contextlib.suppress(asyncio.CancelledError):
                self._accepted.result()[1].transport.abort()

    def refuse(self, *, refused: bool = True) -> None:
        """Have the peer's kernel told so: a reset, or that the target can't be reached."""
        self._refused = True
        self._holding.put_back(self.packet.raw, RESET if refused else UNREACHABLE)

    def again(self, packet: netlink.Seen) -> None:
        """The peer has sent it again, or has begun anew from the same port."""
        self.packet = packet
        if self._accepted is not None:
            self._holding.put_back(self.packet.raw, RELEASED)

    async def released(self) -> Accepted:
        """The peer's connection, once its handshake is over. Raises TimeoutError."""
        self._accepted = asyncio.get_running_loop().create_future()
        self._holding.put_back(self.packet.raw, RELEASED)
        async with asyncio.timeout(HANDSHAKE):
            connection = await self._accepted
        self.accepted = True
        return connection

    def accept(self, connection: Accepted) -> bool:
        """This is the peer's connection; false if nobody waits for one."""
        if self._accepted is None or self._accepted.done():
            return False
        self._accepted.set_result(connection)
        return True


class Holding:
    """Every SYN that is held. The sockets belong to the network in which it was made.

    Raises OSError where the process may not have them.
    """

    def __init__(self, group: int) -> None:
        self._held: dict[Ends, Held] = {}
        self._copies = netlink.open_log(group)
        self._back = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)

    def fileno(self) -> int:
        """Readable when there are copies."""
        return self._copies.fileno()

    def close(self) -> None:
        """Hold no more."""
        self._copies.close()
        self._back.close()

    def come(self) -> Iterator[Held]:
        """What is to be held from now on."""
        for _ in range(_AT_ONCE):
            try:
                data = self._copies.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: the peers of those that are lost send them again
            for packet in netlink.parse(data):
                # Another protocol is what the kernel has found behind headers that we do not read.
                if isinstance(packet, netlink.Seen) and packet.protocol == "tcp":
                    ends = packet.source, packet.source_port, packet.address, packet.port
                    if ends in self._held:
                        self._held[ends].again(packet)
                    else:
                        self._held[ends] = held = Held(self, packet)
                        yield held

    def of(self, *ends: object) -> Held | None:
        """What is held between these ends."""
        return self._held.get(ends)

    def forget(self, held: Held) -> None:
        """It is held no more."""
        packet = held.packet
        ends = packet.source, packet.source_port, packet.address, packet.port
        if self._held.get(ends) is held:
            del self._held[ends]

    def put_back(self, packet: bytes, mark: int) -> None:
        """Have the kernel take ``packet`` as if it had just come, under ``mark``."""
        place = _LOOPBACK, _ETHERTYPE[packet[0] >> 4], 0, 0, _NOBODY
        with contextlib.suppress(OSError):  # as if it were lost on the way
            self._back.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._back.sendto(packet, place)
