"""The endpoint: boringtun, as mitmproxy_rs runs it, and the keys of its peers."""

from __future__ import annotations

from collections.abc import Awaitable

import mitmproxy_rs

from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key

__all__ = ["Endpoint"]

_HANDSHAKES = 8
"""How many handshakes each peer's key is used for. boringtun answers the first ten of a peer, and
sends cookies from then on."""
_SPARE_KEYS = 8


class Endpoint:
    """A WireGuard server that ends each flow, and a stock of keys that it knows."""

    def __init__(self, relays: int) -> None:
        """Make keys for ``relays`` relays, each of which may make two handshakes or three."""
        self._private_key = generate_private_key()
        count = relays * 3 // _HANDSHAKES + _SPARE_KEYS
        self._peers = [generate_private_key() for _ in range(count)]
        self._next = 0
        self._server: mitmproxy_rs.wireguard.WireGuardServer | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that it listens on. Raises RuntimeError before it does."""
        if self._server is None:
            raise RuntimeError("the endpoint does not listen yet")
        host, port = self._server.getsockname()[:2]
        return host, port

    def next_key(self) -> bytes:
        """The private key of a peer that the endpoint knows, each in turn."""
        self._next += 1
        return decode_key(self._peers[self._next % len(self._peers)])

    def public_key(self) -> bytes:
        """The endpoint's own public key."""
        return decode_key(public_key(self._private_key))

    def listen(self, host: str, port: int) -> Awaitable[None]:
        """Begin to listen; to be awaited.

        The socket belongs to the network namespace in which this is called, not to the one in
        which the result is awaited.
        """

        async def close(stream: mitmproxy_rs.Stream) -> None:
            stream.close()  # type: ignore[no-untyped-call]

        peers = [public_key(key) for key in self._peers]
        starting = mitmproxy_rs.wireguard.start_wireguard_server(
            host, port, self._private_key, peers, close, close
        )

        async def started() -> None:
            self._server = await starting

        return started()

    async def stop(self) -> None:
        """Stop it, if it has started."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
