"""Found by taking the check for repeated counters out: the battery did not notice.

The capture was asked whether a payload may leave, and not how often. A message that passed once and
left twice was no leak to it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from wgcell.prove.runners.harness import Harness, Nic
from wgcell.prove.testbed.capture import Packet


class Captures:
    """Shows what it is given."""

    def __init__(self, packets: list[Packet]) -> None:
        self.packets = packets

    def collect(self) -> list[Packet]:
        seen, self.packets = self.packets, []
        return seen


def packet(place: str, payload: bytes) -> Packet:
    return Packet(place, True, b"headers" + payload, payload)


async def leaked(packets: list[Packet]) -> list[Packet]:
    testbed: Any = Captures(packets)
    relay: Any = None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        harness = Harness(testbed, Nic(ours), relay, 0)
        harness.allowed[b"once"] += 1
        return harness.leaks()


def test_the_same_payload_seen_in_both_captures_is_one_message() -> None:
    assert asyncio.run(leaked([packet("host lan0", b"once"), packet("LAN lan1", b"once")])) == []


def test_the_same_payload_seen_twice_in_one_capture_is_a_leak() -> None:
    again = packet("host lan0", b"once")
    assert asyncio.run(leaked([packet("host lan0", b"once"), again])) == [again]
