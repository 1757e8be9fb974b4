"""The tables of frames: each case is named once, and sends what its verdict is about."""

from __future__ import annotations

import socket

from wgcell.prove.battery.case import Attacker, Injection
from wgcell.prove.battery.cases import CASES
from wgcell.prove.testbed.capture import tunnel_payload
from wgcell.prove.verdict import Verdict
from wgcell.relay import link

HOST = socket.inet_aton("192.0.2.1")
GATEWAY = frozenset({link.GATEWAY_ADDRESS})


def attacker() -> Attacker:
    return Attacker(b"g" * 32, b"e" * 32, HOST, ours=7, theirs=9)


def test_every_case_has_a_name_of_its_own_and_says_what_it_does() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 150
    for case in CASES:
        probe = case.probe(attacker())
        assert probe.frames and case.does
        if case.verdict is Verdict.PASS and case.injection is Injection.FRAMES:
            assert all(tunnel_payload(f, GATEWAY, link.PORT) is not None for f in probe.frames)
