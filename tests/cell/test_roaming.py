"""A requester who owns the endpoint's name points it elsewhere under a running cell.

The relay is the real process, behind its seal; the renewal is the supervisor's own. Between them
and two addresses of loopback, a guest that sends all it can::

    guest (this test) -- relay -- 127.0.0.1, who consented
                            `-?-- 127.0.0.2, where the name leads now

What reaches an address is what its own socket receives, datagram by datagram.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.messages import ENDPOINT, GUEST, frame, initiation, response, transport
from tests.support.waiting import GENEROUS, lulled, paced, soon

from wgcell.cell import consent
from wgcell.cell.children import RelayProcess
from wgcell.cell.events import EventLog
from wgcell.cell.renewal import Renewal
from wgcell.cell.roaming import Roaming
from wgcell.relay.control import Configure
from wgcell.relay.framing import prefixed

HERE, THERE = "127.0.0.1", "127.0.0.2"
OWN = "127.0.0.1"
CONFIGURATION = Configure(GUEST, ENDPOINT, mtu=1420)


def bound(address: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.setblocking(False)
    return made


def everything(of: socket.socket) -> list[bytes]:
    """What has come there since this was last asked."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(of.recv(65536))
    return found


class Stage:
    """One relay with a session, its guest, and the two addresses."""

    def __init__(self, relay: RelayProcess, guest: socket.socket, here: Any, there: Any) -> None:
        self.relay, self.guest, self.here, self.there = relay, guest, here, there
        self.sent: set[bytes] = set()
        self._counter = 0

    async def say(self, message: bytes) -> bytes:
        self.sent.add(message)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.guest, prefixed(frame(message)))
        return message

    async def talk(self, receiver: int = 5) -> bytes:
        """The next transport message."""
        self._counter += 1
        return await self.say(transport(receiver, self._counter - 1))

    async def pour(self) -> None:
        """Transport, and initiations, for as long as this runs."""
        number = 1000
        while True:
            await self.talk()
            if self._counter % 10 == 0:
                number += 1
                await self.say(initiation(number))
            await paced(0.005)

    async def renew(self, tmp_path: Path) -> list[dict[str, Any]]:
        """The supervisor's renewal, now that the name leads to `THERE`; its events."""
        told: list[dict[str, Any]] = []
        port = self.here.getsockname()[1]
        log = EventLog(tmp_path / "events.jsonl", told.append)
        vpn: Any = SimpleNamespace(
            endpoint_port=port,
            private_key=os.urandom(32),
            peer_public_key=consent.public_key(os.urandom(32)),
            preshared_key=None,
        )
        way = Renewal(ip_address(HERE), OWN, 0.0)
        found = (ip_address(THERE),)
        roaming = Roaming(self.relay, vpn, way, log.log_bounded, lambda event: None, lambda: found)
        await roaming.renew(OWN)
        log.close()
        return told


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    here = bound(HERE)
    there = bound(THERE, here.getsockname()[1])
    guest, nic = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(here.getsockname())
    own = udp.getsockname()
    guest.setblocking(False)
    with here, there, guest:
        relay = await RelayProcess.start(nic, udp, CONFIGURATION)
        try:
            made = Stage(relay, guest, here, there)
            await made.say(initiation(1))
            await soon(lambda: everything(here), "the initiation")
            here.sendto(response(5, 1), own)
            await asyncio.get_running_loop().sock_recv(guest, 4096)
            first = await made.talk()
            assert await soon(lambda: everything(here), "transport") == [first]
            yield made
        finally:
            await relay.quit()
            relay.close()


def played(body: Callable[[Stage], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(GENEROUS), stage() as made:
            await body(made)

    asyncio.run(whole())


def test_an_address_that_never_answers_gets_the_supervisors_own_handshakes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consent, "obtain", partial(consent.obtain, timeout=1.0))

    async def body(made: Stage) -> None:
        pouring = asyncio.create_task(made.pour())
        told = await made.renew(tmp_path)
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        assert [event["event"] for event in told] == ["consent_asked", "endpoint_refused"]
        last = await made.talk()
        came: list[bytes] = []
        await soon(lambda: came.extend(everything(made.here)) or last in came, "the last message")
        assert len(came) > 10 and set(came) <= made.sent
        strange = everything(made.there)
        assert [len(message) for message in strange] == [148]  # one in REKEY_TIMEOUT
        assert not set(strange) & made.sent

    played(body)


def test_positive_control_an_address_that_consents_gets_the_guests_initiations_and_then_its_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def consents(sock: socket.socket, *keys: object) -> None:
        sock.send(b"from here")

    monkeypatch.setattr(consent, "obtain", consents)

    async def body(made: Stage) -> None:
        loop = asyncio.get_running_loop()
        told = await made.renew(tmp_path)
        assert told[-1]["event"] == "socket_renewed" and told[-1]["met"]
        _, fresh = await loop.sock_recvfrom(made.there, 100)
        await lulled(0.1)
        everything(made.here)
        for _ in range(20):
            await made.talk()
        asked = await made.say(initiation(2))
        # The relay takes the guest's frames in order: the transport before it is dropped by now.
        assert await soon(lambda: everything(made.there), "the initiation") == [asked]
        made.there.sendto(response(6, 2), fresh)
        await loop.sock_recv(made.guest, 4096)
        rest = await made.say(transport(6, 0))
        assert await soon(lambda: everything(made.there), "transport") == [rest]
        assert everything(made.here) == []

    played(body)
