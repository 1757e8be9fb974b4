"""One relay, a socket where QEMU would be, and the captures that show what leaves it.

The relay is the real one, started as a cell's supervisor starts it, or a `PassThroughRelay`. The
handshakes are real ones with boringtun, so the indices that a case abuses are live.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from wgcell.cell import consent
from wgcell.cell.children import RelayProcess
from wgcell.prove.battery.case import MTU, Attacker
from wgcell.prove.battery.probes import tunnel
from wgcell.prove.testbed.base import HOST, Testbed
from wgcell.prove.testbed.capture import Packet, is_port_unreachable
from wgcell.prove.testbed.passthrough import PassThroughRelay
from wgcell.prove.verdict import Phase
from wgcell.relay import control, link

__all__ = ["PATIENCE", "SETTLE", "Harness", "Nic", "until"]

PATIENCE = 2.0
"""Seconds after which an expected packet is missing."""
SETTLE = 0.02
"""Seconds for a packet that is still on its way through the kernel."""
_HOST = socket.inet_aton(HOST)


async def until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Wait until ``condition`` is true, for ``patience`` seconds at most; whether it is."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.001)
    return True


@dataclass(slots=True)
class Nic:
    """The other end of the relay's NIC socket, in QEMU's place."""

    sock: socket.socket
    frames: list[bytes] = field(default_factory=list)
    closed: bool = False

    async def read(self) -> None:
        """Split the stream into frames until its end."""
        loop = asyncio.get_running_loop()
        unparsed = b""
        try:
            while data := await loop.sock_recv(self.sock, 1 << 18):
                unparsed += data
                while len(unparsed) >= (end := 4 + int.from_bytes(unparsed[:4], "big")):
                    self.frames.append(unparsed[4:end])
                    unparsed = unparsed[end:]
        except OSError:
            pass
        self.closed = True

    async def write(self, data: bytes) -> None:
        """Write bytes of the stream; a closed stream discards them."""
        with contextlib.suppress(OSError):
            await asyncio.wait_for(
                asyncio.get_running_loop().sock_sendall(self.sock, data), PATIENCE
            )

    async def send(self, frames: Iterable[bytes]) -> None:
        """Write frames, each behind its length."""
        for frame in frames:
            await self.write(len(frame).to_bytes(4, "big") + frame)


@dataclass(slots=True)
class Harness:
    """One relay and its surroundings. ``port`` is the relay's own UDP port."""

    testbed: Testbed
    nic: Nic
    relay: RelayProcess | PassThroughRelay
    port: int
    private_key: bytes = b""
    allowed: Counter[bytes] = field(default_factory=Counter)
    """Payloads that may leave, and how often."""
    reasons: dict[str, int] = field(default_factory=dict)
    """The relay's own reasons for refusals, and how often it has reported each."""
    packets: list[Packet] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def with_relay(
        cls, testbed: Testbed, *, silent: bool = False, lenient: bool = False
    ) -> Harness:
        """A harness with the relay of every cell.

        ``silent``: its endpoint never answers. ``lenient``: a rogue frame is dropped, and does not
        cut the link.
        """
        key = testbed.endpoint.next_key()
        ours, theirs = socket.socketpair()
        udp = testbed.tunnel_socket(silent=silent)
        port = udp.getsockname()[1]
        configuration = control.Configure(
            guest_public_key=consent.public_key(key),
            endpoint_public_key=testbed.endpoint.public_key(),
            mtu=MTU,
            lenient=lenient,
        )
        relay = await RelayProcess.start(theirs, udp, configuration)
        return cls(testbed, Nic(ours), relay, port, key)._started()

    @classmethod
    def with_pass_through(cls, testbed: Testbed, *, inbound: bool) -> Harness:
        """The control: a harness with a relay that checks nothing."""
        ours, theirs = socket.socketpair()
        udp = testbed.unconnected_socket() if inbound else testbed.tunnel_socket(silent=True)
        port = udp.getsockname()[1]
        to = testbed.endpoint.address if inbound else None
        relay = PassThroughRelay(theirs, udp, testbed.wire, to).listen()
        return cls(testbed, Nic(ours), relay, port)._started()

    def _started(self) -> Harness:
        self.nic.sock.setblocking(False)
        self._tasks = [
            asyncio.create_task(self.nic.read()),
            asyncio.create_task(self._read_messages()),
        ]
        return self

    async def _read_messages(self) -> None:
        async for message in self.relay.events():
            match message:
                case control.Rogue() | control.OutOfStep():
                    self.reasons[message.reason] = self.reasons.get(message.reason, 0) + 1
                case control.Stats():
                    dropped = message.dropped_in.items()
                    self.reasons.update({f"inbound {reason}": n for reason, n in dropped})

    def captured(self) -> list[Packet]:
        """All packets since this harness began."""
        self.packets += self.testbed.collect()
        return self.packets

    def leaks(self) -> list[Packet]:
        """Packets that have left the host and were not allowed to."""
        counted: Counter[tuple[str, bytes]] = Counter()
        found = []
        for packet in self.captured():
            if not packet.out or is_port_unreachable(packet.data, _HOST):
                continue
            if packet.tunnel is not None:
                key = packet.place, packet.tunnel
                counted[key] += 1
                if counted[key] <= self.allowed[packet.tunnel]:
                    continue
            found.append(packet)
        return found

    def reached_endpoint(self, payload: bytes) -> bool:
        """Whether ``payload`` was sent to the endpoint."""
        return any(packet.tunnel == payload for packet in self.captured())

    async def deliver(self, payload: bytes) -> bool:
        """Send an honest payload from the guest; whether it was sent to the endpoint."""
        self.allowed[payload] += 1
        await self.nic.send([tunnel(payload)])
        return await until(lambda: self.reached_endpoint(payload))

    async def handshake(self, attacker: Attacker) -> None:
        """Make a real handshake as the guest, and note its indices. Raises RuntimeError.

        A busy machine may lose an answer. So it is tried twice, which the relay allows.
        """
        keys = consent.HandshakeKeys(self.private_key, attacker.endpoint_key)
        others = 0
        for _ in range(2):
            message, state = consent.build_initiation(keys, time.time_ns())
            known = len(self.nic.frames)
            if not await self.deliver(message):
                raise RuntimeError("the relay did not let an honest initiation pass")

            def response(state: consent.HandshakeState = state, known: int = known) -> bytes:
                new = [frame[link.HEADERS :] for frame in self.nic.frames[known:]]
                return next((one for one in new if consent.verify_response(state, one)), b"")

            if await until(lambda: bool(response())):
                attacker.ours = state.sender_index
                attacker.theirs = int.from_bytes(response()[4:8], "little")
                attacker.counter = 0
                return
            others += len(self.nic.frames) - known
        raise RuntimeError(f"the endpoint did not answer a handshake; {others} other frames came")

    async def prepare(self, phase: Phase) -> Attacker:
        """Bring the relay into ``phase``. Raises RuntimeError if a handshake fails."""
        attacker = Attacker(
            consent.public_key(self.private_key),
            self.testbed.endpoint.public_key(),
            _HOST,
            port=self.port,
        )
        match phase:
            case Phase.BOOT | Phase.BEFORE:
                return attacker
            case Phase.SILENT:
                await self.deliver(attacker.initiation())
                return attacker
        await self.handshake(attacker)
        await self.deliver(attacker.transport(32))
        if phase is Phase.REKEY:
            previous = attacker.ours, attacker.theirs, attacker.counter
            await self.handshake(attacker)
            attacker.ours, attacker.theirs, attacker.counter = previous
        if phase is Phase.KILLED and isinstance(self.relay, RelayProcess):
            self.relay.process.kill()
            await self.relay.process.wait()
        return attacker

    async def final_reasons(self) -> str:
        """End the relay; its reasons for refusals in one line, once it has reported all."""
        with contextlib.suppress(TimeoutError):
            await self.relay.quit()
            await asyncio.wait_for(asyncio.shield(self._tasks[1]), 1)
        counted = self.reasons.items()
        return ", ".join(f"{reason} x{n}" if n > 1 else reason for reason, n in counted)

    async def close(self) -> None:
        """End the relay, and close every socket."""
        await self.relay.quit()
        self.relay.close()
        self.nic.sock.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
