"""Right frames around wrong WireGuard messages: lengths, mac1, indices, counters, floods."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from wgcell.prove.battery import packets
from wgcell.prove.battery.case import MTU, Attacker, Case, Probe
from wgcell.prove.battery.probes import DROP, KILL, PASS, Build, Row, group, message, tunnel
from wgcell.prove.verdict import Phase
from wgcell.wire import wireguard

__all__ = ["WIREGUARD_CASES"]


def _with_byte(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def _duplicate(attacker: Attacker) -> Probe:
    frame = tunnel(attacker.transport())
    return Probe((frame,), first=(frame,))


def _behind(attacker: Attacker) -> Probe:
    old = attacker.next_counter()
    ahead = attacker.counter = old + 20_000
    first = tunnel(attacker.transport(counter=ahead))
    return Probe((tunnel(attacker.transport(counter=old)),), first=(first,))


def _flood_of_initiations(attacker: Attacker) -> Probe:
    frames = tuple(tunnel(attacker.initiation()) for _ in range(20))
    return Probe(frames, first=(tunnel(attacker.initiation()),))


def _numbered(
    name: str, numbers: Sequence[int], does: str, build: Callable[[Attacker, int], bytes]
) -> Sequence[Row]:
    """One row for each number."""

    def probe(number: int) -> Build:
        return message(lambda attacker: build(attacker, number))

    return [(f"{name}-{n}", f"{does} {n}", KILL, probe(n)) for n in numbers]


_JUNK = 200
_WIREGUARD = (
    *_numbered("type", (0, 5, 255), "sends a message of type", lambda a, n: _with_byte(a.transport(), 0, n)),
    *_numbered("reserved", (1, 2, 3), "uses the reserved byte", lambda a, n: _with_byte(a.payload(), n, 1)),
    *_numbered("initiation", (147, 149, 1400), "sends an initiation of so many bytes:", lambda a, n: a.initiation(size=n)),
    *_numbered("response", (91, 93), "sends a response of so many bytes:", lambda a, n: packets.response(1, 1, a.endpoint_key, os.urandom(200), size=n)),
    *_numbered("cookie", (63, 65), "sends a cookie reply of so many bytes:", lambda a, n: packets.cookie_reply(a.receiver, os.urandom(80), size=n)),
    ("transport-31", "sends transport of 31 bytes", KILL, message(lambda a: a.transport(31))),
    ("transport-unpadded", "sends transport of an odd length, as Linux does on a narrow path", PASS, message(lambda a: a.transport(97))),
    ("transport-over-mtu", "sends transport longer than the tunnel's MTU allows", KILL, message(lambda a: a.transport(1472))),
    ("initiation-mac1", "sends an initiation with a wrong mac1", KILL, message(lambda a: (lambda m: _with_byte(m, 116, m[116] ^ 1))(a.initiation()))),
    ("initiation-other-key", "sends an initiation for another endpoint's key", KILL, message(lambda a: a.initiation(key=os.urandom(32)))),
    ("initiation-own-key", "sends an initiation for its own key", KILL, message(lambda a: a.initiation(key=a.guest_key))),
    ("response-mac1", "sends a response with a wrong mac1", KILL, message(lambda a: packets.response(a.ours, a.receiver, os.urandom(32), os.urandom(48)))),
    ("mac2-no-cookie", "sends a mac2 though no cookie was given", KILL, message(lambda a: a.initiation(mac2=os.urandom(16)))),
    ("counter-absurd", "jumps its counter by 2^40", KILL, message(lambda a: a.transport(counter=a.counter + (1 << 40)))),
    ("counter-last", "uses the last counter there is", KILL, message(lambda a: a.transport(counter=(1 << 64) - 1))),
    ("out-of-step-flood", "sends 300 messages to an index nobody announced", KILL, lambda a: Probe(tuple(tunnel(packets.transport(a.receiver ^ 0x5A5A, n, os.urandom(32), size=32)) for n in range(300)))),
    ("unknown-index", "sends transport to an index nobody announced", DROP, message(lambda a: packets.transport(a.receiver ^ 0x5A5A, 0, os.urandom(48)))),
    ("wrong-direction", "sends transport to its own index", DROP, message(lambda a: packets.transport(a.ours, 0, os.urandom(48)))),
    ("counter-again", "sends the same transport twice", DROP, _duplicate),
    ("counter-behind", "sends a counter far behind", DROP, _behind),
    ("response-unsolicited", "answers an initiation that never came", DROP, message(lambda a: packets.response(7, 0x12345678, a.endpoint_key, os.urandom(48)))),
    ("cookie-unsolicited", "sends a cookie reply to no message", DROP, message(lambda a: packets.cookie_reply(a.receiver ^ 0x5A5A, os.urandom(56)))),
    ("junk-in-step", f"sends {_JUNK} messages of junk behind right headers", PASS, lambda a: Probe(tuple(tunnel(a.transport()) for _ in range(_JUNK)))),
    ("full-size", "sends transport that fills the MTU", PASS, message(lambda a: a.transport(MTU + wireguard.SHORTEST_TRANSPORT))),
    ("keepalive", "sends a keepalive", PASS, message(lambda a: a.transport(32))),
    ("rekey", "initiates again", PASS, message(lambda a: a.initiation())),
)  # fmt: skip

_EARLY = (
    ("transport-before", "sends transport before any handshake", KILL, message(lambda a: a.transport())),
    ("response-before", "answers before anyone asked", DROP, message(lambda a: packets.response(7, 9, a.endpoint_key, os.urandom(48)))),
)  # fmt: skip
_UNANSWERED = (
    ("transport-unanswered", "sends transport though its initiation was not answered", KILL, message(lambda a: a.transport())),
    ("initiation-flood", "sends 20 initiations to an endpoint that does not answer", DROP, _flood_of_initiations),
)  # fmt: skip

WIREGUARD_CASES: tuple[Case, ...] = (
    *group("WireGuard", *_WIREGUARD),
    *group("WireGuard", *_EARLY, phases=(Phase.BEFORE, Phase.BOOT)),
    *group("WireGuard", *_UNANSWERED, phases=(Phase.SILENT,)),
    Case(
        "after-180s",
        "WireGuard",
        "goes on in a session that is 191 seconds old",
        DROP,
        message(lambda a: a.transport()),
        wait=191,
    ),
)
