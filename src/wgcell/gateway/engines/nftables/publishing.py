"""The published ports: listeners outside, each joined to a port of a peer through the tunnel.

A listening socket is made outside, in the machine's own network, before the engine has a network of
its own. A connection to the peer is opened in the network of the tunnel's end, from the gateway's
own address there. So no packet of a client's enters the tunnel, and none of the peer's leaves it:
both ends are sockets of this process, which joins their bytes.

The clients are this machine's or its network's, the peer is hostile. Either may stop reading, or
open connections without end: there are at most `MOST_JOINED`, each with two small buffers.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

from wgcell.errors import HostError
from wgcell.gateway import words
from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.sets import Peers, ServedPeer
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.published import Published
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.admission import CUT_OFF
from wgcell.gateway.peer.events import flow_end, flow_event
from wgcell.gateway.proxy.joined import join
from wgcell.gateway.proxy.splice import Connection, Unreachable, reset
from wgcell.gateway.tasks import Tasks
from wgcell.net import addresses

__all__ = ["MOST_JOINED", "Listening", "Publisher", "listening"]

MOST_JOINED = 256
"""Connections to published ports, of all peers together. Each takes two descriptors."""
CONNECT_TIMEOUT = 10.0
"""Seconds that a peer may take to accept."""
_BACKLOG = 128
"""Connections that wait for accept(2)."""
_BUFFER = 1 << 15
"""Bytes of one direction that are read before the other end has taken them; asyncio may read twice
as many."""

Listening = Mapping[tuple[str, Published], socket.socket]
"""The socket of each published port, by the peer's name and the port."""


def listening(config: GatewayConfig) -> Listening:
    """A listening socket for each published port of ``config``.

    Called before the process has a network of its own, and fewer rights outside. Raises HostError
    that says which port is taken.
    """
    made: dict[tuple[str, Published], socket.socket] = {}
    try:
        for peer in config.peers:
            for one in peer.published:
                made[peer.name, one] = _listener(one)
    except BaseException:
        for sock in made.values():
            sock.close()
        raise
    return made


def _listener(one: Published) -> socket.socket:
    family = socket.AF_INET6 if one.address.version == 6 else socket.AF_INET
    try:
        return socket.create_server(one.place, family=family, backlog=_BACKLOG)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise HostError(
            f"can't publish {one.text}: {addresses.written(*one.place)}: {why}",
            hint="choose another port, or 0 for any that is free",
        ) from None


class Publisher:
    """Joins the connections to the published ports of one gateway."""

    def __init__(self, host: HostContext, peers: Peers, listening: Listening) -> None:
        self._host = host
        self._peers = peers
        self._listening = listening
        self._tasks = Tasks()
        self._servers: list[asyncio.Server] = []
        self._joined = 0

    async def start(self, config: GatewayConfig) -> list[words.Published]:
        """Accept connections. Returns where, for each published port."""
        places = []
        peers = {peer.name: peer for peer in config.peers}
        for (name, one), sock in self._listening.items():
            peer = peers[name]

            def come(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                peer: Peer = peer,
                one: Published = one,
            ) -> None:
                self._tasks.spawn(self._serve(peer, one, (reader, writer)))

            server = await asyncio.start_server(come, sock=sock, limit=_BUFFER)
            self._servers.append(server)
            address, port = sock.getsockname()[:2]
            places.append(words.Published(name, address, port, one.inside))
        return places

    async def close(self) -> None:
        """Accept no more, and end what is joined."""
        for server in self._servers:
            server.close()
        for sock in self._listening.values():
            sock.close()
        await self._tasks.cancel()

    async def _serve(self, peer: Peer, one: Published, client: Connection) -> None:
        served = self._peers.get(peer.address)
        source = client[1].get_extra_info("peername")
        if served is None or source is None:  # either is gone already
            reset(client[1])
            return
        flow = served.admission.new_flow("tcp", peer.address, one.inside)
        flow.rule = f"publish {one.text}"
        origin = f"a published port, from {addresses.written(*source[:2])}"
        if self._joined >= MOST_JOINED:
            full = f"{MOST_JOINED} connections to published ports are open already"
            served.admission.events.add(flow_event(flow, Action.REFUSE.value, full))
            reset(client[1])
            return
        self._joined += 1
        served.admission.events.add(flow_event(flow, Action.ALLOW.value, origin))
        try:
            await self._join(served, flow, client)
        finally:
            self._joined -= 1

    async def _join(self, served: ServedPeer, flow: Flow, client: Connection) -> None:
        verdict, reason = Action.ALLOW.value, CUT_OFF
        try:
            inside = await self._connect(served.admission.peer, flow)
            reason = await join(inside, client, sent=flow.count_out, received=flow.count_in)
        except Unreachable as error:
            verdict, reason = words.FAILED, str(error)
        except OSError as error:
            reason = f"broken: {error}"
        finally:
            reset(client[1])
            served.admission.events.add(flow_end(flow, verdict, reason))

    async def _connect(self, peer: Peer, flow: Flow) -> Connection:
        """A connection to the peer, through the tunnel. Raises `Unreachable`."""
        place = str(flow.address), flow.port
        sock = self._host.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, place)
                return await asyncio.open_connection(sock=sock, limit=_BUFFER)
        except OSError as error:  # TimeoutError is one
            sock.close()
            raise Unreachable("the cell's port", *place, error) from None
        except BaseException:
            sock.close()
            raise
