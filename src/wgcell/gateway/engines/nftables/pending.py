"""Pending connections: a peer's ``connect()`` succeeds only after its target has accepted.

A listening socket answers a SYN by itself, so a peer would be connected to a dead target. Therefore
nftables drops the SYN of a flow that this process proxies, and copies it here (NFLOG).

1. The process connects to the target.
2. If the target accepts, the process puts the same packet back by a packet socket on the loopback
   interface of the same network, under the mark `RELEASED`. The rules see it again, and the kernel
   answers it.
3. If the target does not accept, the mark is `RESET` or `UNREACHABLE`, and nftables rejects the
   packet with a reset or an ICMP message.

A lost copy costs a second: the peer sends its SYN again (RFC 6298, 2.1). A SYN that comes again
while its flow is pending changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType

from wgcell.gateway.engines.nftables import netlink
from wgcell.gateway.engines.nftables.table import RELEASED, RESET, UNREACHABLE
from wgcell.gateway.proxy.splice import Connection
from wgcell.net import linux

__all__ = ["PendingSyn", "PendingSyns"]

HANDSHAKE = 10.0
"""Seconds that the peer may take to complete the handshake once its target has accepted."""
_LOOPBACK = "lo"
_NO_HARDWARE_ADDRESS = bytes(6)
"""The loopback interface's own hardware address."""
_AT_ONCE = 64
"""Reads before the other sockets' turn."""

FourTuple = tuple[object, ...]
"""The peer's address and port, the target's address and port."""


class PendingSyn:
    """One SYN. Leaving its context rejects it, unless it was released or rejected by then."""

    def __init__(self, pending: PendingSyns, packet: netlink.FirstPacket) -> None:
        self.packet = packet
        self.accepted = False
        """Whether `release` has returned."""
        self._pending = pending
        self._connection: asyncio.Future[Connection] | None = None
        self._rejected = False

    def __enter__(self) -> PendingSyn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pending.forget(self)
        if self._connection is None and not self._rejected:
            self.reject()
        elif self._connection is not None and self._connection.done() and not self.accepted:
            # The connection came at the moment in which its flow was cancelled.
            with contextlib.suppress(asyncio.CancelledError):
                self._connection.result()[1].transport.abort()

    def reject(self, *, reset: bool = True) -> None:
        """Have the kernel answer the peer: with a reset, or that the host is unreachable."""
        self._rejected = True
        self._pending.put_back(self.packet.raw, RESET if reset else UNREACHABLE)

    def repeat(self, packet: netlink.FirstPacket) -> None:
        """The peer has sent its SYN again, or has begun anew from the same port."""
        self.packet = packet
        if self._connection is not None:
            self._pending.put_back(self.packet.raw, RELEASED)

    async def release(self) -> Connection:
        """The peer's connection, once its handshake is over. Raises TimeoutError after 10 s."""
        self._connection = asyncio.get_running_loop().create_future()
        self._pending.put_back(self.packet.raw, RELEASED)
        async with asyncio.timeout(HANDSHAKE):
            connection = await self._connection
        self.accepted = True
        return connection

    def accept(self, connection: Connection) -> bool:
        """This is the peer's connection. False if nothing waits for one."""
        if self._connection is None or self._connection.done():
            return False
        self._connection.set_result(connection)
        return True


class PendingSyns:
    """All pending SYNs. The sockets belong to the network namespace in which it was made.

    ``group`` is the NFLOG group. Raises OSError where the process may not have the sockets.
    """

    def __init__(self, group: int) -> None:
        self._pending: dict[FourTuple, PendingSyn] = {}
        self._copies = netlink.open_log(group)
        self._back = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)

    def fileno(self) -> int:
        """Readable when there are copies."""
        return self._copies.fileno()

    def close(self) -> None:
        """Close the sockets."""
        self._copies.close()
        self._back.close()

    def read(self) -> Iterator[PendingSyn]:
        """The SYNs that are new."""
        for _ in range(_AT_ONCE):
            try:
                data = self._copies.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: copies were lost, and the peers will send their SYNs again
            for packet in netlink.parse(data):
                # `netlink` reads no extension headers, behind which the kernel may find TCP.
                if isinstance(packet, netlink.FirstPacket) and packet.protocol == "tcp":
                    ends = packet.source, packet.source_port, packet.address, packet.port
                    if ends in self._pending:
                        self._pending[ends].repeat(packet)
                    else:
                        self._pending[ends] = syn = PendingSyn(self, packet)
                        yield syn

    def find(self, *ends: object) -> PendingSyn | None:
        """The pending SYN between these `FourTuple`."""
        return self._pending.get(ends)

    def forget(self, syn: PendingSyn) -> None:
        """``syn`` is pending no more."""
        packet = syn.packet
        ends = packet.source, packet.source_port, packet.address, packet.port
        if self._pending.get(ends) is syn:
            del self._pending[ends]

    def put_back(self, packet: bytes, mark: int) -> None:
        """Have the kernel take ``packet`` as if it had just come, under ``mark``."""
        place = _LOOPBACK, linux.ETHERTYPES[packet[0] >> 4], 0, 0, _NO_HARDWARE_ADDRESS
        with contextlib.suppress(OSError):  # then it is lost, as packets may be
            self._back.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._back.sendto(packet, place)
