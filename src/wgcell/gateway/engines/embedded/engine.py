"""The embedded gateway: WireGuard in user space, without root, one door a peer.

See `server` for the way of a flow through it, and `model.policy` for the decisions.
"""

from __future__ import annotations

import socket
from dataclasses import replace

from wgcell.errors import PolicyError
from wgcell.gateway.engines.embedded.server import Door
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.peer.events import Report

__all__ = ["EmbeddedEngine"]


class EmbeddedEngine:
    """One running gateway. ``report`` gets each event as a JSON-able object.

    ``reason`` is why it is not another engine, for who is told that it is ready.
    """

    def __init__(self, config: GatewayConfig, report: Report, reason: str = "") -> None:
        self._config = config
        self._report = report
        self._reason = reason
        self._doors: dict[str, Door] = {}

    async def start(self) -> None:
        """Listen, and report ``ready``. Raises OSError if it can't, PolicyError for a psk."""
        await self.apply(self._config)
        host, port = self._config.listen
        if self._doors:
            host, port = next(iter(self._doors.values())).place
        ports = {name: door.place[1] for name, door in self._doors.items()}
        what = {"engine": "embedded", "reason": self._reason}
        self._report({"event": "ready", "host": host, "port": port, "peers": ports, **what})
        for door in self._doors.values():
            door.warm()

    async def apply(self, config: GatewayConfig) -> None:
        """Make it so: doors that are gone close now, new ones open, policies change in place.

        Raises as `start` does; doors that were opened by then stay.
        """
        for peer in config.peers:
            if peer.preshared_key:
                raise PolicyError(
                    f"peers.{peer.name}: preshared_key: the embedded engine can't use one",
                    mend='"namespace" and "kernel" can; or take it out of both files',
                )
        wanted = {peer.name: peer for peer in config.peers}
        same = config.listen, config.private_key, config.addresses, config.resolver
        known = self._config.listen, self._config.private_key, self._config.addresses
        unchanged = same == (*known, self._config.resolver)
        for name, door in list(self._doors.items()):
            kept = wanted.get(name)
            # Policies change in place; anything else about a peer makes it another one.
            if not unchanged or kept is None or replace(kept, policy=door.peer.policy) != door.peer:
                del self._doors[name]
                await door.close()
        self._config = config
        for name, peer in wanted.items():
            if name in self._doors:
                self._doors[name].change(peer)
            else:
                door = Door(config, peer, self._report)
                _check_free((config.listen[0], peer.port))
                await door.open()
                self._doors[name] = door

    async def stop(self) -> None:
        """Close every door; flows end with it."""
        for door in self._doors.values():
            await door.close()


def _check_free(place: tuple[str, int]) -> None:
    """Raises OSError that says what is taken: the server's own error does not."""
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(place)
        except OSError as error:
            where = f"{place[0]}, UDP port {place[1]}"
            raise OSError(error.errno, f"can't listen on {where}: {error.strerror}") from None
