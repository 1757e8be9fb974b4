"""Whatever dies, nothing leaves: one process of a cell, killed at a random moment of its life.

WGCELL_DEATHS=200 is the long form. What this can't show: a moment that no trial hit.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.support.deaths import foreign

DEATHS = int(os.environ.get("WGCELL_DEATHS", "16"))
AT_ONCE = 2
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.vm
@pytest.mark.timeout(60 + 20 * DEATHS)
@pytest.mark.alone
def test_whatever_dies_nothing_is_left_and_nothing_has_left() -> None:
    with tempfile.TemporaryDirectory(prefix="wgcell-deaths-") as temporary:
        runs = []
        for seed in range(AT_ONCE):
            state = Path(temporary) / str(seed)
            argv = ["unshare", "--net", sys.executable, "-m", "tests.support.deaths"]
            if os.geteuid() != 0:
                argv[1:1] = ["--user", "--map-root-user"]
            runs.append(
                subprocess.Popen(
                    [*argv, str(seed), str(DEATHS // AT_ONCE), str(state)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                )
            )
        told = [run.communicate() for run in runs]
    trials = [json.loads(line) for stdout, _ in told for line in stdout.splitlines()]
    assert len(trials) == DEATHS, told
    for trial in trials:
        print(trial)
    assert not [trial for trial in trials if trial["wrong"]]
    assert len({trial["state"] for trial in trials}) >= 3, "the moments were too alike"


def test_what_counts_as_seen_outside() -> None:
    """A dead endpoint's "port unreachable" is its kernel's answer; nothing else like it is."""
    ether = bytes(12) + b"\x08\x00"

    def udp(port: int, payload: bytes) -> bytes:
        ports = bytes(2) + port.to_bytes(2, "big")
        return b"\x45" + bytes(8) + b"\x11" + bytes(10) + ports + bytes(4) + payload

    def icmp(kind: bytes, quoted: bytes) -> bytes:
        return b"\x45" + bytes(8) + b"\x01" + bytes(10) + kind + bytes(6) + quoted

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    honest = udp(5000, b"\4\0\0\0data")
    fine = [honest, icmp(b"\3\3", honest)]
    wrong = [
        *(udp(5001, b"\4\0\0\0data"), udp(5000, b"\5\0\0\0data"), icmp(b"\x08\0", honest)),
        *(icmp(b"\3\3", udp(53, b"\4\0\0\0data")), icmp(b"\3\3", udp(5000, b"name"))),
    ]
    with ours, theirs:
        ours.setblocking(False)
        for packet in (*fine, *wrong):
            theirs.send(ether + packet)
        assert foreign(ours, {5000}) == [(ether + packet)[:90].hex() for packet in wrong]
