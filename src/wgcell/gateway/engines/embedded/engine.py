"""The embedded engine: WireGuard in this process (mitmproxy_rs), without root, a server a peer.

See `server` for the way of a flow through it.
"""

from __future__ import annotations

import socket
from dataclasses import replace

from wgcell.errors import PolicyError
from wgcell.gateway import words
from wgcell.gateway.engines.embedded.server import PeerServer
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.peer.events import Report

__all__ = ["EmbeddedEngine"]


class EmbeddedEngine:
    """One gateway. It is an `engines.engine.Engine`.

    ``reason`` says why it is not another engine, for the ``ready`` event.
    """

    def __init__(self, config: GatewayConfig, report: Report, reason: str = "") -> None:
        self._config = config
        self._report = report
        self._reason = reason
        self._servers: dict[str, PeerServer] = {}

    async def start(self) -> None:
        """Listen, and report ``ready``. Raises OSError if a port is taken, and PolicyError for a
        preshared key."""
        await self.apply(self._config)
        host, port = self._config.listen
        if self._servers:
            host, port = next(iter(self._servers.values())).place
        ports = {name: server.place[1] for name, server in self._servers.items()}
        self._report(words.Ready(host, port, ports, "embedded", self._reason))
        for server in self._servers.values():
            server.warm()

    async def apply(self, config: GatewayConfig) -> int:
        """Change to ``config``: stop the servers of former peers, change policies in place, start
        the servers of new peers. Returns how many open flows that has ended.

        Raises as `start` does. The servers that were started by then stay.
        """
        for peer in config.peers:
            if peer.preshared_key:
                raise PolicyError(
                    f"peers.{peer.name}: preshared_key: the embedded engine can't use one",
                    hint='"namespace" and "kernel" can; or take it out of both files',
                )
            if peer.published:
                raise PolicyError(
                    f"peers.{peer.name}: publish: the embedded engine can't open connections into "
                    "the tunnel",
                    hint='"namespace" and "kernel" can',
                )
        wanted = {peer.name: peer for peer in config.peers}
        same = config.listen, config.private_key, config.addresses, config.resolver
        known = self._config.listen, self._config.private_key, self._config.addresses
        unchanged = same == (*known, self._config.resolver)
        ended = 0
        for name, server in list(self._servers.items()):
            now = wanted.get(name)
            # Only a policy can change in place. With anything else changed it is another peer.
            same_peer = now is not None and replace(now, policy=server.peer.policy) == server.peer
            if not unchanged or not same_peer:
                del self._servers[name]
                ended += await server.close()
        self._config = config
        for name, peer in wanted.items():
            if name in self._servers:
                ended += self._servers[name].change(peer)
            else:
                server = PeerServer(config, peer, self._report)
                _check_free((config.listen[0], peer.port))
                await server.open()
                self._servers[name] = server
        return ended

    async def stop(self) -> None:
        """Stop every server, which ends its flows."""
        for server in self._servers.values():
            await server.close()


def _check_free(place: tuple[str, int]) -> None:
    """Raises OSError that says which port is taken: the error of mitmproxy_rs does not."""
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(place)
        except OSError as error:
            where = f"{place[0]}, UDP port {place[1]}"
            raise OSError(error.errno, f"can't listen on {where}: {error.strerror}") from None
