"""Runs the battery without a VM: frames into the relay's process, over the NIC's socket.

Each case gets a fresh relay. It runs twice: against the relay, and as its control the same bytes
against a `PassThroughRelay`, where the captures must show each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace

from wgcell.prove.battery.case import Attacker, Case, Injection, Probe
from wgcell.prove.battery.packets import mark_of
from wgcell.prove.runners.harness import PATIENCE, SETTLE, Harness, until
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.testbed.capture import carries, shown
from wgcell.prove.verdict import Observation, Phase, Result, Status, Verdict, accepted, judge
from wgcell.relay import link

__all__ = ["Step", "run_all"]

Step = tuple[Case, Phase]
"""A case, and the phase in which it is run."""
_STREAM_MARK = 60
"""Bytes at the end of a stream that a capture looks for: a false length is at the beginning."""


async def run_all(testbed: Testbed, steps: Sequence[Step]) -> AsyncIterator[Result]:
    """Run each step in turn; a result for each, as soon as it is known."""
    position = 0
    async with contextlib.aclosing(_harnesses(testbed, steps)) as harnesses:
        async for harness in harnesses:
            case, phase = steps[position]
            position += 1
            yield await _run(harness, case, phase)


async def _harnesses(testbed: Testbed, steps: Sequence[Step]) -> AsyncGenerator[Harness, None]:
    """A fresh harness for each step; the next relay starts while this one is used."""

    def start(phase: Phase) -> asyncio.Task[Harness]:
        return asyncio.create_task(Harness.with_relay(testbed, silent=phase is Phase.SILENT))

    coming = start(steps[0][1]) if steps else None
    for index in range(len(steps)):
        if coming is None:
            return
        harness = await coming
        coming = start(steps[index + 1][1]) if index + 1 < len(steps) else None
        try:
            yield harness
        finally:
            await harness.close()


async def _run(harness: Harness, case: Case, phase: Phase) -> Result:
    def result(status: Status, why: str, seen: Observation | None = None) -> Result:
        return Result(
            *(case.name, case.group, case.does, case.wall, phase, case.verdict),
            *(status, why, seen or Observation()),
        )

    try:
        probe, seen = await _against_relay(harness, case, phase)
    except RuntimeError as error:
        return result(Status.NOT_PROVEN, str(error))
    if seen is None:
        return result(Status.NOT_PLAYED, "this testbed has no LAN")
    has_control = case.verdict is not Verdict.PASS
    if has_control:
        seen = replace(seen, control=await _control(harness.testbed, case, probe))
    status, why = judge(case.verdict, phase, seen, control_asked=has_control)
    return result(status, why, seen)


async def _against_relay(
    harness: Harness, case: Case, phase: Phase
) -> tuple[Probe, Observation | None]:
    """Run the case against the real relay; None if this testbed can't inject its frames."""
    began = time.monotonic()
    harness.testbed.collect()
    harness.testbed.lost()
    attacker = await harness.prepare(phase)
    probe = await _prepare_probe(harness, case, attacker)
    if not await _inject(harness, case, probe):
        return probe, None
    arrived, alive = await _watch(harness, case, phase, attacker, probe)
    await asyncio.sleep(SETTLE)
    leaks = shown(harness.leaks())
    if case.inbound and case.verdict is not Verdict.PASS:
        leaks += _reached_guest(harness, probe)
    cut = harness.nic.closed
    reasons = await harness.final_reasons()
    return probe, Observation(
        leaks=tuple(leaks),
        cut=cut,
        alive=alive,
        arrived=arrived,
        lost=harness.testbed.lost(),
        said=reasons,
        seconds=time.monotonic() - began,
        frames=len(probe.frames),
    )


async def _prepare_probe(harness: Harness, case: Case, attacker: Attacker) -> Probe:
    """Make the probe, send its honest frames, and note the payloads that may leave."""
    if case.wait:
        await asyncio.sleep(case.wait)
    probe = case.probe(attacker)
    if case.wait:
        attacker.theirs = None  # the session is dead by now: only a new handshake is honest
    for frame in probe.first:
        await harness.deliver(frame[link.HEADERS :])
    if case.verdict is Verdict.PASS and not case.inbound:
        harness.allowed.update(frame[link.HEADERS :] for frame in probe.frames)
    return probe


async def _inject(harness: Harness, case: Case, probe: Probe) -> bool:
    """Send the probe's frames; False if this testbed can't."""
    testbed = harness.testbed
    match case.injection:
        case Injection.FRAMES:
            await harness.nic.send(probe.frames)
        case Injection.STREAM:
            for data in probe.frames:
                await harness.nic.write(data)
        case Injection.ENDPOINT:
            for data in probe.frames:
                testbed.send_as_endpoint(harness.port, data)
        case Injection.STRANGER:
            for data in probe.frames:
                testbed.send_as_stranger(harness.port, data)
        case Injection.LAN:
            return all(testbed.send_on_lan(frame) for frame in probe.frames)
    return True


async def _watch(
    harness: Harness, case: Case, phase: Phase, attacker: Attacker, probe: Probe
) -> tuple[bool, bool]:
    """Wait for the outcome: whether the probe arrived, and whether an honest message still does."""
    match case.verdict:
        case Verdict.PASS if case.inbound:
            wanted_in = len(probe.frames)
            arrived = await until(lambda: len(_reached_guest(harness, probe)) >= wanted_in)
            return arrived, await harness.deliver(attacker.payload())
        case Verdict.PASS:
            wanted = [frame[link.HEADERS :] for frame in probe.frames]
            return await until(lambda: all(map(harness.reached_endpoint, wanted))), True
        case Verdict.KILL | Verdict.STOP:
            sure = accepted(case.verdict, phase) == {Verdict.KILL}
            patience = PATIENCE if sure else SETTLE * 10
            await until(lambda: harness.nic.closed or bool(harness.leaks()), patience)
        case Verdict.DROP if phase is Phase.SILENT:
            await asyncio.sleep(SETTLE * 10)
        case Verdict.DROP:
            return False, await harness.deliver(attacker.payload())
    return False, True


def _reached_guest(harness: Harness, probe: Probe) -> list[str]:
    """A line for each frame of the probe that the guest has received."""
    return [
        f"reached the guest: {len(frame)} bytes: {frame[:48].hex()}"
        for frame in harness.nic.frames
        if any(data in (frame, frame[link.HEADERS :]) for data in probe.frames)
    ]


async def _control(testbed: Testbed, case: Case, probe: Probe) -> bool:
    """Send the same bytes with the wall down; whether the captures show each of them."""
    harness = Harness.with_pass_through(testbed, inbound=case.inbound)
    try:
        testbed.collect()
        await _inject(harness, case, probe)
        if case.inbound:
            wanted = len(probe.frames)
            return await until(lambda: len(_reached_guest(harness, probe)) >= wanted)
        stream = case.injection is Injection.STREAM
        marks = {data[-_STREAM_MARK:] if stream else mark_of(data) for data in probe.frames}
        return await until(lambda: all(carries(harness.captured(), mark) for mark in marks))
    finally:
        await harness.close()
        await asyncio.sleep(SETTLE)
        testbed.collect()
