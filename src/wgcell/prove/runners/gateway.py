"""A gateway of a cell's own: beside the cell on the host, with orders and a published port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from wgcell.cell.children import GatewayProcess
from wgcell.cell.job import GatewayAsked
from wgcell.cell.own_gateway import OwnGateway
from wgcell.cell.wgquick import VpnConfig
from wgcell.errors import HostError
from wgcell.gateway import words
from wgcell.gateway.model.keys import decode_key, public_key
from wgcell.net import addresses
from wgcell.prove.battery.policy import CLOSED, DONE, PORT, TARGET, Ends, PolicyCase
from wgcell.prove.runners.recording import Recording
from wgcell.prove.testbed.capture import carries

__all__ = ["LiveGateway", "started"]

_PATIENCE = 60.0
"""Seconds for each step: an emulated guest is slow."""
_LASTS = 3.0
"""Seconds of a rule that ends by itself."""
_LOOK = 0.1
_RULE = addresses.written(*TARGET)


@dataclass(slots=True)
class LiveGateway:
    """A gateway of one cell, running."""

    keys: OwnGateway
    process: GatewayProcess
    vpn: VpnConfig
    _changes: asyncio.Queue[words.PolicyChanged] = field(default_factory=asyncio.Queue)
    _port: asyncio.Future[int] = field(default_factory=asyncio.Future)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def guest_key(self) -> bytes:
        """The private key of the cell."""
        return decode_key(self.keys.guest_key)

    @property
    def endpoint_key(self) -> bytes:
        """The gateway's public key."""
        return decode_key(public_key(self.keys.gateway_key))

    async def follow(self) -> None:
        """Read the gateway's events, to its end."""
        async for event in self.process.flows():
            match event:
                case words.PolicyChanged():
                    self._changes.put_nowait(event)
                case words.Published(port=port):
                    self._port.set_result(port)

    async def run(self, case: PolicyCase, recording: Recording) -> None:
        """The host's part of ``case``: connect, allow, close, and wait for the guest.

        Raises OSError, also if the guest or a capture takes too long: then the case shows nothing.
        """
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await self._connected()
        try:
            async with asyncio.timeout(_PATIENCE):
                if case.ends is not Ends.NEVER_WAS:
                    await self._allow(case)
                    while not carries(recording.on_cable(), case.before):
                        await asyncio.sleep(_LOOK)
                    await self._close(case)
                writer.write(CLOSED)
                while await reader.readline() != DONE:
                    pass
        finally:
            writer.transport.abort()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the published port, once the guest listens and says so."""
        port = await self._port
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if await reader.readline():
                    return reader, writer
                writer.transport.abort()
            await asyncio.sleep(_LOOK)

    async def _allow(self, case: PolicyCase) -> None:
        seconds = _LASTS if case.ends is Ends.OVER else None
        self.process.send(words.Allow(next(self._numbers), _RULE, 0, seconds))
        await self._changes.get()

    async def _close(self, case: PolicyCase) -> None:
        if case.ends is Ends.DENIED:
            self.process.send(words.Deny(next(self._numbers), _RULE, 0))
        await self._changes.get()


@asynccontextmanager
async def started() -> AsyncIterator[LiveGateway]:
    """A gateway with the namespace engine. Raises HostError where there can be none."""
    keys = OwnGateway.fresh(six=False)
    asked = GatewayAsked(publish=(f"0:{PORT}",))
    process = await GatewayProcess.start(keys.configuration(asked, ()), "namespace")
    gateway = LiveGateway(keys, process, keys.tunnel(process.host, process.port))
    following = asyncio.create_task(gateway.follow())
    try:
        yield gateway
    finally:
        with contextlib.suppress(HostError):
            await process.quit()
        await following
