"""The listening sockets inside the tunnel: the resolver's, the services', and the redirect ones."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.sets import Peers, ServedPeer
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.policy import Decision
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.admission import DNS_PORT
from wgcell.gateway.tasks import Tasks
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["Listeners", "listening_socket"]

_DNS_IDLE = 30.0
"""Seconds that a peer may take for its queries over one TCP connection."""
_BACKLOG = 1024
"""Connections that wait for accept(2)."""

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listeners:
    """The listeners of one engine. ``accepted`` gets the connections of services and redirects."""

    def __init__(self, host: HostContext, peers: Peers, accepted: Accept) -> None:
        self._host = host
        self._peers = peers
        self._accepted = accepted
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._listening: object = None
        """The part of the configuration that the listeners stand for."""

    async def listen(self, config: GatewayConfig) -> None:
        """Listen as ``config`` says; nothing happens if it changes nothing here. Raises OSError."""
        if self._listening == (config.addresses, config.services):
            return
        self.close()
        await asyncio.sleep(0)  # a transport closes its socket in the next round of the loop
        questions, others = self._host.run(self._open, config)
        for sock in questions:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Resolver(self._peers), sock=sock
            )
            self._datagrams.append(transport)
        talks = [self._dns_over_tcp] * len(questions) + [self._accepted] * len(others)
        for sock, talk in zip(others, talks, strict=False):
            self._servers.append(await asyncio.start_server(talk, sock=sock, backlog=_BACKLOG))
        self._listening = config.addresses, config.services

    def _open(self, config: GatewayConfig) -> tuple[list[socket.socket], list[socket.socket]]:
        """The resolver's UDP sockets; and as many TCP sockets, the services' and the redirects'."""
        questions = []
        for address in config.addresses:
            sock = socket.socket(_family(address), socket.SOCK_DGRAM)
            sock.bind((str(address), DNS_PORT))
            sock.setblocking(False)
            questions.append(sock)
        places = sorted({(one.address, one.port) for one in config.services}, key=str)
        beside = self._host.any_address
        others = [listening_socket(address, DNS_PORT) for address in config.addresses]
        others += [listening_socket(*place, reuse_port=beside) for place in places]
        return questions, others + self._host.redirect_sockets(config)

    def close(self) -> None:
        """Listen no more."""
        self._listening = None
        for transport in self._datagrams:
            transport.close()
        self._datagrams = []
        for server in self._servers:
            server.close()
        self._servers = []

    async def _dns_over_tcp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Queries one after the other, each behind its length of two bytes (RFC 7766)."""
        served = self._peers.get(addresses.of_socket(writer.get_extra_info("peername")[0]))
        try:
            if served is not None:
                admission = served.admission
                sock, sockname = map(writer.get_extra_info, ("socket", "sockname"))
                flow = admission.new_flow("tcp", *self._host.destination(sock, sockname[:2]))
                with admission.counted(flow, Decision(Action.ALLOW, "", "")) as counted:
                    async with asyncio.timeout(_DNS_IDLE):
                        while counted:
                            size = int.from_bytes(await reader.readexactly(2), "big")
                            query = await reader.readexactly(size)
                            answer = await admission.nameserver.reply(query, tcp=True)
                            if not answer:
                                break
                            writer.write(len(answer).to_bytes(2, "big") + answer)
                            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            pass  # the peer has ended it, its time is over, or its flows are cancelled
        finally:
            writer.transport.abort()


class _Resolver(asyncio.DatagramProtocol):
    """The resolver over UDP. It does not answer a source that is no peer's."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks = Tasks()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own is none by its class (3.11), and has its methods.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[object, ...]) -> None:
        served = next((s for a, s in self._peers.items() if str(a) == address[0]), None)
        if served is not None:
            self._tasks.spawn(self._answer(served, data, address))

    async def _answer(self, served: ServedPeer, data: bytes, address: tuple[object, ...]) -> None:
        answer = await served.admission.nameserver.reply(data)
        if answer and self._transport is not None:
            self._transport.sendto(answer, address)


def listening_socket(address: Address, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket. ``reuse_port``: others of this process listen on that port, at any
    address. Raises OSError."""
    place = (str(address), port)
    return socket.create_server(place, family=_family(address), reuse_port=reuse_port)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
