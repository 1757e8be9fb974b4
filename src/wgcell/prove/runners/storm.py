"""Frames by the thousand at one relay, which drops a rogue frame and keeps its link (lenient).

So the frames can come as fast as they can be made. An honest message behind each thousand shows
that the relay still works.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wgcell.prove.battery.case import MTU, Attacker, Case, Injection
from wgcell.prove.battery.packets import mark_of
from wgcell.prove.battery.probes import tunnel
from wgcell.prove.runners.harness import PATIENCE, Harness, until
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.testbed.capture import link_payload, shown
from wgcell.prove.verdict import Observation, Phase, Result, Verdict, judge
from wgcell.relay import link

__all__ = ["fuzz", "storm"]

_BATCH = 1000
"""Frames between two honest messages."""
_COUNTER = link.HEADERS + 8
"""The offset of a transport message's counter in its frame."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A source of frames. ``may_leave``: the payload of a frame that is no leak, or None."""

    name: str
    does: str
    make: Callable[[Attacker], Sequence[bytes]]
    may_leave: Callable[[Attacker, bytes], bytes | None]


async def storm(testbed: Testbed, cases: Sequence[Case], count: int) -> Result:
    """``count`` rogue frames of every kind in ``cases``, drawn at random."""
    rogue = [
        case
        for case in cases
        if case.verdict is Verdict.KILL
        and case.injection is Injection.FRAMES
        and Phase.RUNNING in case.phases
    ]

    def make(attacker: Attacker) -> Sequence[bytes]:
        return random.choice(rogue).probe(attacker).frames[:8]  # noqa: S311 - no secret

    does = f"throws {count} rogue frames of every kind at a relay that drops them and goes on"
    return await _run(testbed, _Source("storm", does, make, lambda attacker, frame: None), count)


async def fuzz(testbed: Testbed, count: int) -> Result:
    """``count`` honest frames, each with a random change.

    The payload of such a frame may leave if `link_payload`, a parser that shares no line with the
    relay's, finds no fault in its headers: the change is then in the payload.
    """

    def make(attacker: Attacker) -> Sequence[bytes]:
        return [_changed(tunnel(attacker.transport(random.randrange(32, 200))))]  # noqa: S311

    does = f"throws {count} honest frames at it, each with something changed at random"
    return await _run(testbed, _Source("fuzz", does, make, _changed_in_its_payload), count)


def _changed_in_its_payload(attacker: Attacker, frame: bytes) -> bytes | None:
    """The payload, if the headers of the frame and of its message are right."""
    payload = link_payload(frame)
    if payload is None or not 32 <= len(payload) <= MTU + 32:
        return None
    session = b"\4\0\0\0" + attacker.receiver.to_bytes(4, "little")
    return payload if payload[:8] == session else None


def _changed(frame: bytes) -> bytes:
    """A frame with a few bits flipped, most of them in its headers, or shorter, or longer."""
    made = bytearray(frame)
    for _ in range(random.choice((0, 1, 1, 1, 2, 8))):  # noqa: S311
        # Not the counter: one far ahead is no defect, and makes all later messages too old.
        early = random.random() < 0.9  # noqa: S311
        at = random.randrange(_COUNTER) if early else random.randrange(_COUNTER + 8, len(made))  # noqa: S311
        made[at] ^= 1 << random.randrange(8)  # noqa: S311
    match random.randrange(10):  # noqa: S311
        case 0:
            del made[random.randrange(60, len(made)) :]  # noqa: S311
        case 1:
            made += random.randbytes(random.randrange(1, 64))  # noqa: S311
    return bytes(made)


async def _run(testbed: Testbed, source: _Source, count: int) -> Result:
    """Send ``count`` frames of ``source``, and the last thousand to a pass-through relay."""
    harness = await Harness.with_relay(testbed, lenient=True)
    began = time.monotonic()
    testbed.collect()
    testbed.lost()
    sent = 0
    batch: list[bytes] = []
    alive = True
    leaks: tuple[str, ...] = ()
    try:
        attacker = await harness.prepare(Phase.RUNNING)
        while sent < count and alive and not harness.leaks():
            batch = _batch(source, attacker)
            alive = await _send(harness, source, attacker, batch)
            sent += len(batch)
        leaks = tuple(shown(harness.leaks()))
    except RuntimeError:
        alive = False
    finally:
        await harness.close()
    seen = Observation(
        leaks=leaks,
        alive=alive,
        lost=testbed.lost(),
        control=await _control(testbed, batch),
        seconds=time.monotonic() - began,
        frames=sent,
    )
    status, why = judge(Verdict.DROP, Phase.RUNNING, seen)
    return Result(
        *(source.name, "storm", source.does, "relay", Phase.RUNNING, Verdict.DROP),
        *(status, why, seen),
    )


def _batch(source: _Source, attacker: Attacker) -> list[bytes]:
    made: list[bytes] = []
    while len(made) < _BATCH:
        made += source.make(attacker)
    return made


async def _send(
    harness: Harness, source: _Source, attacker: Attacker, batch: Sequence[bytes]
) -> bool:
    """Send ``batch`` and an honest message; whether that arrived."""
    allowed = (source.may_leave(attacker, frame) for frame in batch)
    harness.allowed.update(payload for payload in allowed if payload)
    await harness.nic.write(b"".join(len(frame).to_bytes(4, "big") + frame for frame in batch))
    alive = await harness.deliver(attacker.transport())
    if not harness.leaks():
        # All packets so far were allowed, and need not be compared again.
        harness.packets.clear()
        harness.allowed.clear()
    return alive


async def _control(testbed: Testbed, batch: Sequence[bytes]) -> bool:
    """Send ``batch`` with the wall down; whether the captures show each frame."""
    harness = Harness.with_pass_through(testbed, inbound=False)
    try:
        await harness.nic.send(batch)
        missing = set(map(mark_of, batch))

        def all_seen() -> bool:
            data = b"".join(packet.data for packet in testbed.collect())
            missing.difference_update([mark for mark in missing if mark in data])
            return not missing

        return await until(all_seen, 10 * PATIENCE)
    finally:
        await harness.close()
