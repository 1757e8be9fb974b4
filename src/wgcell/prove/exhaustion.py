"""Guests that take all they can get, each as root of a guest whose walls are down.

What they do is played by `player` in the guest; what it may cost the host is in `toll`. A case
counts only if the host saw the attack itself: that is its control.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wgcell.prove.battery import Scene, tunnel
from wgcell.prove.toll import DISK, MEMORY, Toll
from wgcell.prove.verdict import Verdict

__all__ = ["EXHAUSTIONS", "Exhaustion"]

SECONDS = 4.0
_MESSAGES = 20_000
_ROGUES = 2_000
_FULL = MEMORY + (160 << 20)
"""What QEMU takes beside a guest whose memory is all in use, and not else."""
_FLOOD = (
    b"\x1b[2J\x1b]0;owned\x07\x1b[31mROGUE-ATTEMPT: \r\n"
    + b'{"event":"ended","outcome":"completed"}\r\n'
)

# What the guest does. Each is given a raw socket on the card and what it knows of the session.

Act = Callable[[socket.socket, Scene], None]


def _small(card: socket.socket, scene: Scene) -> None:
    for _ in range(_MESSAGES):
        card.send(tunnel(scene.transport(32)))


def _large(card: socket.socket, scene: Scene) -> None:
    for _ in range(_MESSAGES // 4):
        card.send(tunnel(scene.transport(1452)))


def _rogues(card: socket.socket, scene: Scene) -> None:
    frame = bytes.fromhex("ffffffffffff0277670000020806") + os.urandom(1486)
    for _ in range(_ROGUES):
        with contextlib.suppress(OSError):
            card.send(frame)


def _console(card: socket.socket, scene: Scene) -> None:
    until = time.monotonic() + 3 * SECONDS
    node = Path("/tmp/console")  # noqa: S108 - the guest's, where root is hostile anyway
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(5, 1))
    with node.open("wb", buffering=0) as console:
        while time.monotonic() < until:
            console.write(_FLOOD * 64)


def _output(card: socket.socket, scene: Scene) -> None:
    for _ in range((40 << 20) // len(_FLOOD * 1024)):
        os.write(2, _FLOOD * 1024)


def _disk(card: socket.socket, scene: Scene) -> None:
    with contextlib.suppress(OSError), Path("/work/full").open("wb") as file:
        while True:
            file.write(os.urandom(1 << 20))
            file.flush()
    os.sync()


def _memory(card: socket.socket, scene: Scene) -> None:
    kept = []
    while True:
        kept.append(os.urandom(1 << 20))


def _forks(card: socket.socket, scene: Scene) -> None:
    # The host sees a guest that answers no more: nothing of it is left for the heartbeat.
    until = time.monotonic() + 3 * SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                continue


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """One such guest. ``seen``: whether the toll, and how many messages left, show the attack."""

    name: str
    does: str
    act: Act
    verdict: Verdict
    seen: Callable[[Toll, int], bool]

    @property
    def group(self) -> str:
        """The group of all of these."""
        return "exhaustion"


EXHAUSTIONS = (
    Exhaustion("flood-small", f"sends {_MESSAGES} of the shortest messages as fast as it can", _small, Verdict.PASS, lambda toll, left: left >= _MESSAGES),
    Exhaustion("flood-large", f"sends {_MESSAGES // 4} of the longest messages as fast as it can", _large, Verdict.PASS, lambda toll, left: left >= _MESSAGES // 4),
    Exhaustion("flood-rogue", f"sends {_ROGUES} rogue frames of full size at once", _rogues, Verdict.KILL, lambda toll, left: toll.evidence > 0),
    Exhaustion("flood-console", "floods the console with escapes and forged lines", _console, Verdict.DROP, lambda toll, left: toll.console > 256 << 10),
    Exhaustion("flood-output", "writes 40 MiB of escapes to its standard error", _output, Verdict.DROP, lambda toll, left: toll.output >= 16 << 20),
    Exhaustion("disk-full", "writes until its disk is full", _disk, Verdict.DROP, lambda toll, left: toll.scratch > DISK * 3 // 4),
    Exhaustion("memory", "takes memory until the kernel ends it", _memory, Verdict.STOP, lambda toll, left: toll.machine > _FULL),
    Exhaustion("fork-bomb", "forks without end", _forks, Verdict.STOP, lambda toll, left: toll.machine > _FULL),
)  # fmt: skip
