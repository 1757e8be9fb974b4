"""The battery without a VM: frames straight into the relay's process, over the NIC's socket.

The relay is the real one, started as a cell's supervisor starts it, a fresh one a case; the
handshake it watches is a real one with boringtun, so the indices a case abuses are live. First the
wall, then the control: the same bytes into an `OpenedRelay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from wgcell.cell import consent
from wgcell.cell.children import RelayProcess
from wgcell.prove.battery import MTU, Case, Play, Probe, Scene, tunnel
from wgcell.prove.ground import HOST, Ground
from wgcell.prove.marks import mark_of
from wgcell.prove.opened import OpenedRelay
from wgcell.prove.oracle import Packet, carries, is_port_unreachable, link_payload, shown
from wgcell.prove.verdict import Observation, Phase, Result, Status, Verdict, accepted, judge
from wgcell.relay import control

__all__ = ["Played", "Stand", "play_all"]

PATIENCE = 2.0
"""Seconds until what should have happened has not."""
SETTLE = 0.02
"""Seconds for a packet that is still on its way through the kernel."""
_HOST = socket.inet_aton(HOST)
_HEADERS = 42
_COUNTER = _HEADERS + 8
"""Where a transport message's counter stands in its frame."""
Played = tuple[Case, Phase]


async def _until(true: Callable[[], bool], patience: float = PATIENCE) -> bool:
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.001)
    return True


@dataclass(slots=True)
class Nic:
    """Our end of the NIC's socket, where QEMU would be."""

    sock: socket.socket
    frames: list[bytes] = field(default_factory=list)
    closed: bool = False

    async def read(self) -> None:
        """Cut what comes in into frames, until the end."""
        loop = asyncio.get_running_loop()
        kept = b""
        try:
            while data := await loop.sock_recv(self.sock, 1 << 18):
                kept += data
                while len(kept) >= 4 and len(kept) >= 4 + int.from_bytes(kept[:4], "big"):
                    end = 4 + int.from_bytes(kept[:4], "big")
                    self.frames.append(kept[4:end])
                    kept = kept[end:]
        except OSError:
            pass
        self.closed = True

    async def write(self, data: bytes) -> None:
        """Bytes of the stream; a closed one takes none."""
        with contextlib.suppress(OSError):
            await asyncio.wait_for(
                asyncio.get_running_loop().sock_sendall(self.sock, data), PATIENCE
            )

    async def send(self, frames: Iterable[bytes]) -> None:
        """Whole frames."""
        for frame in frames:
            await self.write(len(frame).to_bytes(4, "big") + frame)


@dataclass(slots=True)
class Stand:
    """One relay and everything around it."""

    ground: Ground
    nic: Nic
    relay: RelayProcess | OpenedRelay
    port: int
    """The relay's own UDP port."""
    private_key: bytes = b""
    allowed: Counter[bytes] = field(default_factory=Counter)
    """Payloads that may leave, and how often."""
    said: dict[str, int] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)

    @classmethod
    async def sealed(cls, ground: Ground, *, silent: bool = False, lenient: bool = False) -> Stand:
        """The relay as every cell has it; ``lenient``, one that rogue frames do not cut."""
        key = ground.next_key()
        ours, theirs = socket.socketpair()
        udp = ground.tunnel_socket(silent=silent)
        port = udp.getsockname()[1]
        configuration = control.Configure(
            guest_public_key=consent.public_key(key),
            endpoint_public_key=ground.endpoint_public_key(),
            mtu=MTU,
            lenient=lenient,
        )
        relay = await RelayProcess.start(theirs, udp, configuration)
        return cls(ground, Nic(ours), relay, port, key)._watch()

    @classmethod
    def opened(cls, ground: Ground, *, inbound: bool) -> Stand:
        """The control: no wall."""
        ours, theirs = socket.socketpair()
        udp = ground.open_socket() if inbound else ground.tunnel_socket(silent=True)
        port = udp.getsockname()[1]
        to = ground.endpoint if inbound else None
        relay = OpenedRelay(theirs, udp, ground.wire, to).listen()
        return cls(ground, Nic(ours), relay, port)._watch()

    def _watch(self) -> Stand:
        self.nic.sock.setblocking(False)
        self.tasks = [asyncio.create_task(self.nic.read()), asyncio.create_task(self._listen())]
        return self

    async def _listen(self) -> None:
        async for word in self.relay.events():
            match word:
                case control.Rogue() | control.OutOfStep():
                    self.said[word.reason] = self.said.get(word.reason, 0) + 1
                case control.Stats():
                    self.said.update({f"inbound {key}": n for key, n in word.dropped_in.items()})

    def look(self) -> list[Packet]:
        """All packets since this stand's beginning."""
        self.packets += self.ground.collect()
        return self.packets

    def leaked(self) -> list[Packet]:
        """Packets on their way out that may not be."""
        seen: Counter[tuple[str, bytes]] = Counter()
        found = []
        for packet in self.look():
            if not packet.out or is_port_unreachable(packet.data, _HOST):
                continue
            if packet.tunnel is not None:
                key = packet.place, packet.tunnel
                seen[key] += 1
                if seen[key] <= self.allowed[packet.tunnel]:
                    continue
            found.append(packet)
        return found

    def left(self, payload: bytes) -> bool:
        """Whether ``payload`` went to the endpoint."""
        return any(packet.tunnel == payload for packet in self.look())

    async def pass_through(self, payload: bytes) -> bool:
        """Send ``payload``, which is honest; whether it arrived."""
        self.allowed[payload] += 1
        await self.nic.send([tunnel(payload)])
        return await _until(lambda: self.left(payload))

    async def handshake(self, scene: Scene) -> None:
        """A real one, as the guest. Raises RuntimeError if it does not come about.

        A busy machine may lose an answer, so it is tried twice, which is what the relay allows.
        """
        keys = consent.HandshakeKeys(self.private_key, scene.endpoint_key)
        came = 0
        for _ in range(2):
            message, state = consent.build_initiation(keys, time.time_ns())
            known = len(self.nic.frames)
            if not await self.pass_through(message):
                raise RuntimeError("the relay did not let an honest initiation pass")

            def answered(state: consent.HandshakeState = state, known: int = known) -> bytes:
                new = [frame[_HEADERS:] for frame in self.nic.frames[known:]]
                return next((one for one in new if consent.verify_response(state, one)), b"")

            if await _until(lambda: bool(answered())):
                scene.ours = state.sender_index
                scene.theirs = int.from_bytes(answered()[4:8], "little")
                scene.counter = 0
                return
            came += len(self.nic.frames) - known
        raise RuntimeError(f"the endpoint did not answer a handshake; {came} other frames came")

    async def prepare(self, phase: Phase) -> Scene:
        """Bring the relay into ``phase``."""
        scene = Scene(
            consent.public_key(self.private_key),
            self.ground.endpoint_public_key(),
            _HOST,
            port=self.port,
        )
        match phase:
            case Phase.BOOT | Phase.BEFORE:
                return scene
            case Phase.SILENT:
                await self.pass_through(scene.initiation())
                return scene
        await self.handshake(scene)
        await self.pass_through(scene.transport(32))
        if phase is Phase.REKEY:
            previous = scene.ours, scene.theirs, scene.counter
            await self.handshake(scene)
            scene.ours, scene.theirs, scene.counter = previous
        if phase is Phase.KILLED and isinstance(self.relay, RelayProcess):
            self.relay.process.kill()
            await self.relay.process.wait()
        return scene

    async def close(self) -> None:
        """End the relay, and nothing is left of it."""
        await self.relay.quit()
        self.relay.close()
        self.nic.sock.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def _inbound(case: Case) -> bool:
    return case.play in (Play.ENDPOINT, Play.STRANGER, Play.WIRE)


async def _send(stand: Stand, case: Case, probe: Probe) -> bool:
    """Play the probe's frames; False if this ground can't."""
    ground = stand.ground
    match case.play:
        case Play.FRAMES:
            await stand.nic.send(probe.frames)
        case Play.STREAM:
            for data in probe.frames:
                await stand.nic.write(data)
        case Play.ENDPOINT:
            for data in probe.frames:
                ground.from_endpoint(stand.port, data)
        case Play.STRANGER:
            for data in probe.frames:
                ground.from_stranger(stand.port, data)
        case Play.WIRE:
            return all(ground.from_wire(frame) for frame in probe.frames)
    return True


def _reached_guest(stand: Stand, probe: Probe) -> list[str]:
    """Probes of others that the guest got."""
    return [
        f"reached the guest: {len(frame)} bytes: {frame[:48].hex()}"
        for frame in stand.nic.frames
        if any(data in (frame, frame[_HEADERS:]) for data in probe.frames)
    ]


async def _wall(stand: Stand, case: Case, phase: Phase) -> tuple[Probe, Observation | None]:
    """The case against the real relay."""
    began = time.monotonic()
    stand.ground.collect()
    stand.ground.lost()
    scene = await stand.prepare(phase)
    if case.wait:
        await asyncio.sleep(case.wait)
    probe = case.probe(scene)
    if case.wait:
        scene.theirs = None  # dead by now: what is honest from here on is a new handshake
    for frame in probe.first:
        await stand.pass_through(frame[_HEADERS:])
    if case.verdict is Verdict.PASS and not _inbound(case):
        stand.allowed.update(frame[_HEADERS:] for frame in probe.frames)
    if not await _send(stand, case, probe):
        return probe, None
    arrived = False
    alive = True
    match case.verdict:
        case Verdict.PASS if _inbound(case):
            wanted_in = len(probe.frames)
            arrived = await _until(lambda: len(_reached_guest(stand, probe)) >= wanted_in)
            alive = await stand.pass_through(scene.payload())
        case Verdict.PASS:
            wanted = [frame[_HEADERS:] for frame in probe.frames]
            arrived = await _until(lambda: all(map(stand.left, wanted)))
        case Verdict.KILL | Verdict.STOP:
            sure = accepted(case.verdict, phase) == {Verdict.KILL}
            patience = PATIENCE if sure else SETTLE * 10
            await _until(lambda: stand.nic.closed or bool(stand.leaked()), patience)
        case Verdict.DROP if phase is Phase.SILENT:
            await asyncio.sleep(SETTLE * 10)
        case Verdict.DROP:
            alive = await stand.pass_through(scene.payload())
    await asyncio.sleep(SETTLE)
    leaks = shown(stand.leaked())
    if _inbound(case) and case.verdict is not Verdict.PASS:
        leaks += _reached_guest(stand, probe)
    cut = stand.nic.closed
    with contextlib.suppress(TimeoutError):
        await stand.relay.quit()
        await asyncio.wait_for(asyncio.shield(stand.tasks[1]), 1)
    said = ", ".join(f"{reason} x{n}" if n > 1 else reason for reason, n in stand.said.items())
    return probe, Observation(
        leaks=tuple(leaks),
        cut=cut,
        alive=alive,
        arrived=arrived,
        lost=stand.ground.lost(),
        said=said,
        seconds=time.monotonic() - began,
        frames=len(probe.frames),
    )


async def _control(ground: Ground, case: Case, probe: Probe) -> bool:
    """The same bytes with the wall down: whether the oracle sees each of them."""
    inbound = _inbound(case)
    stand = Stand.opened(ground, inbound=inbound)
    try:
        ground.collect()
        await _send(stand, case, probe)
        if inbound:
            return await _until(lambda: len(_reached_guest(stand, probe)) >= len(probe.frames))
        # Of a stream, the bytes at its end: what stands before them is the lie itself.
        tail = case.play is Play.STREAM
        marks = {data[-60:] if tail else mark_of(data) for data in probe.frames}
        return await _until(lambda: all(carries(stand.look(), mark) for mark in marks))
    finally:
        await stand.close()
        await asyncio.sleep(SETTLE)
        ground.collect()


async def _stands(ground: Ground, played: Sequence[Played]) -> AsyncGenerator[Stand, None]:
    """A fresh relay for each; the next one starts while this one is played with."""

    def start(phase: Phase) -> asyncio.Task[Stand]:
        return asyncio.create_task(Stand.sealed(ground, silent=phase is Phase.SILENT))

    coming = start(played[0][1]) if played else None
    for index in range(len(played)):
        if coming is None:
            return
        stand = await coming
        coming = start(played[index + 1][1]) if index + 1 < len(played) else None
        try:
            yield stand
        finally:
            await stand.close()


async def play_all(ground: Ground, played: Sequence[Played]) -> AsyncIterator[Result]:
    """Every case in its phase, one after the other; a result each, as it is known."""
    position = 0
    async with contextlib.aclosing(_stands(ground, played)) as stands:
        async for stand in stands:
            case, phase = played[position]
            position += 1
            yield await _play(stand, case, phase)


async def _play(stand: Stand, case: Case, phase: Phase) -> Result:
    def result(status: Status, why: str, seen: Observation | None = None) -> Result:
        return Result(
            case.name,
            case.group,
            case.does,
            case.wall,
            phase,
            case.verdict,
            status,
            why,
            seen or Observation(),
        )

    try:
        probe, seen = await _wall(stand, case, phase)
    except RuntimeError as error:
        return result(Status.NOT_PROVEN, str(error))
    if seen is None:
        return result(Status.NOT_PLAYED, "there is no LAN on this ground")
    asked = case.verdict is not Verdict.PASS
    if asked:
        control = await _control(stand.ground, case, probe)
        seen = replace(seen, control=control)
    status, why = judge(case.verdict, phase, seen, control_asked=asked)
    return result(status, why, seen)


async def storm(ground: Ground, cases: Sequence[Case], count: int) -> Result:
    """``count`` rogue frames, all kinds in turn, through one lenient relay.

    In that phase a rogue frame is dropped and the link stays, so the frames come as fast as they
    can be made. An honest message after each thousand shows that the relay still looks at them.
    """
    chosen = [
        case
        for case in cases
        if case.verdict is Verdict.KILL
        and case.play is Play.FRAMES
        and Phase.RUNNING in case.phases
    ]

    def some(scene: Scene) -> Sequence[bytes]:
        return random.choice(chosen).probe(scene).frames[:8]  # noqa: S311 - no secret

    does = f"throws {count} rogue frames of every kind at a relay that drops them and goes on"
    return await _throw(ground, "storm", does, count, some, lambda scene, frame: None)


async def fuzz(ground: Ground, count: int) -> Result:
    """``count`` frames that were honest until something was done to them, as `storm` throws them.

    Such a frame may pass if `link_payload`, a parser that shares no line with the relay's, finds
    nothing wrong with it: then only its payload was touched.
    """

    def some(scene: Scene) -> Sequence[bytes]:
        return [_spoilt(tunnel(scene.transport(random.randrange(32, 200))))]  # noqa: S311

    does = f"throws {count} honest frames at it, each with something changed at random"
    return await _throw(ground, "fuzz", does, count, some, _touched_in_its_payload)


def _touched_in_its_payload(scene: Scene, frame: bytes) -> bytes | None:
    """The payload, if the frame's headers and the message's are as they were."""
    payload = link_payload(frame)
    if payload is None or not 32 <= len(payload) <= MTU + 32:
        return None
    session = b"\4\0\0\0" + scene.receiver.to_bytes(4, "little")
    return payload if payload[:8] == session else None


def _spoilt(frame: bytes) -> bytes:
    """A frame with a few bits turned, most of them in its headers, or cut, or grown."""
    made = bytearray(frame)
    for _ in range(random.choice((0, 1, 1, 1, 2, 8))):  # noqa: S311
        # Not its counter: one far ahead is no defect, and makes all that follow too late.
        early = random.random() < 0.9  # noqa: S311
        at = random.randrange(_COUNTER) if early else random.randrange(_COUNTER + 8, len(made))  # noqa: S311
        made[at] ^= 1 << random.randrange(8)  # noqa: S311
    match random.randrange(10):  # noqa: S311
        case 0:
            del made[random.randrange(60, len(made)) :]  # noqa: S311
        case 1:
            made += random.randbytes(random.randrange(1, 64))  # noqa: S311
    return bytes(made)


async def _throw(
    ground: Ground,
    name: str,
    does: str,
    count: int,
    some: Callable[[Scene], Sequence[bytes]],
    may: Callable[[Scene, bytes], bytes | None],
) -> Result:
    """Frames by the thousand at one lenient relay, and an honest one behind each.

    ``may``: what of a frame may leave; it need not.
    """
    stand = await Stand.sealed(ground, lenient=True)
    began = time.monotonic()
    ground.collect()
    ground.lost()
    sent = 0
    batch: list[bytes] = []
    alive = True
    leaks: tuple[str, ...] = ()
    try:
        scene = await stand.prepare(Phase.RUNNING)
        while sent < count and alive and not stand.leaked():
            batch = []
            while len(batch) < 1000:
                batch += some(scene)
            stand.allowed.update(payload for f in batch if (payload := may(scene, f)))
            await stand.nic.write(b"".join(len(f).to_bytes(4, "big") + f for f in batch))
            sent += len(batch)
            alive = await stand.pass_through(scene.transport())
            # What is settled need not be looked at again.
            if not stand.leaked():
                stand.packets.clear()
                stand.allowed.clear()
        leaks = tuple(shown(stand.leaked()))
    except RuntimeError:
        alive = False
    finally:
        await stand.close()
    seen = Observation(
        leaks=leaks,
        alive=alive,
        lost=ground.lost(),
        control=await _storm_control(ground, batch),
        seconds=time.monotonic() - began,
        frames=sent,
    )
    status, why = judge(Verdict.DROP, Phase.RUNNING, seen)
    return Result(name, "storm", does, "relay", Phase.RUNNING, Verdict.DROP, status, why, seen)


async def _storm_control(ground: Ground, batch: Sequence[bytes]) -> bool:
    """The last thousand frames of a storm with the wall down: whether each is seen."""
    stand = Stand.opened(ground, inbound=False)
    try:
        await stand.nic.send(batch)
        seen: set[bytes] = set()

        def all_seen() -> bool:
            data = b"".join(packet.data for packet in ground.collect())
            seen.update(mark for mark in map(mark_of, batch) if mark in data)
            return all(mark in seen for mark in map(mark_of, batch))

        return await _until(all_seen, 10 * PATIENCE)
    finally:
        await stand.close()
