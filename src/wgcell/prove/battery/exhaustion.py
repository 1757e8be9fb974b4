"""Guests that take all they can get, each as root of a guest with every wall down.

The guest runner (`wgcell.prove.runners.guest`) runs them; `usage` has the bounds of what they may
take. A case counts only if the host has measured the attack itself: that is its control.
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

from wgcell.prove.battery.case import Attacker
from wgcell.prove.battery.probes import tunnel
from wgcell.prove.battery.usage import DISK, MEMORY, ResourceUse
from wgcell.prove.verdict import Verdict

__all__ = ["EXHAUSTIONS", "Exhaustion"]

SECONDS = 4.0
_MESSAGES = 20_000
_ROGUES = 2_000
_FULL = MEMORY + (160 << 20)
"""Resident bytes of a QEMU whose guest has used up its memory."""
_FLOOD = (
    b"\x1b[2J\x1b]0;owned\x07\x1b[31mROGUE-ATTEMPT: \r\n"
    + b'{"event":"ended","outcome":"completed"}\r\n'
)

# The attacks. Each gets a raw socket on the card, and the indices of the session.

Act = Callable[[socket.socket, Attacker], None]


def _small(card: socket.socket, attacker: Attacker) -> None:
    for _ in range(_MESSAGES):
        card.send(tunnel(attacker.transport(32)))


def _large(card: socket.socket, attacker: Attacker) -> None:
    for _ in range(_MESSAGES // 4):
        card.send(tunnel(attacker.transport(1452)))


def _rogues(card: socket.socket, attacker: Attacker) -> None:
    frame = bytes.fromhex("ffffffffffff0277670000020806") + os.urandom(1486)
    for _ in range(_ROGUES):
        with contextlib.suppress(OSError):
            card.send(frame)


def _console(card: socket.socket, attacker: Attacker) -> None:
    until = time.monotonic() + 3 * SECONDS
    node = Path("/tmp/console")  # noqa: S108 - the guest's, where root is hostile anyway
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(5, 1))
    with node.open("wb", buffering=0) as console:
        while time.monotonic() < until:
            console.write(_FLOOD * 64)


def _output(card: socket.socket, attacker: Attacker) -> None:
    for _ in range((40 << 20) // len(_FLOOD * 1024)):
        os.write(2, _FLOOD * 1024)


def _disk(card: socket.socket, attacker: Attacker) -> None:
    with contextlib.suppress(OSError), Path("/work/full").open("wb") as file:
        while True:
            file.write(os.urandom(1 << 20))
            file.flush()
    os.sync()


def _memory(card: socket.socket, attacker: Attacker) -> None:
    held = []
    while True:
        held.append(os.urandom(1 << 20))


def _forks(card: socket.socket, attacker: Attacker) -> None:
    # The heartbeat ends: neither memory nor processor time is left for the agent.
    until = time.monotonic() + 3 * SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                continue


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """One such guest. ``seen``: whether the usage and the number of sent messages show it."""

    name: str
    does: str
    act: Act
    verdict: Verdict
    seen: Callable[[ResourceUse, int], bool]

    @property
    def group(self) -> str:
        """The report's group."""
        return "exhaustion"


EXHAUSTIONS = (
    Exhaustion("flood-small", f"sends {_MESSAGES} of the shortest messages as fast as it can", _small, Verdict.PASS, lambda use, left: left >= _MESSAGES),
    Exhaustion("flood-large", f"sends {_MESSAGES // 4} of the longest messages as fast as it can", _large, Verdict.PASS, lambda use, left: left >= _MESSAGES // 4),
    Exhaustion("flood-rogue", f"sends {_ROGUES} rogue frames of full size at once", _rogues, Verdict.KILL, lambda use, left: use.evidence > 0),
    Exhaustion("flood-console", "floods the console with escapes and forged lines", _console, Verdict.DROP, lambda use, left: use.console > 256 << 10),
    Exhaustion("flood-output", "writes 40 MiB of escapes to its standard error", _output, Verdict.DROP, lambda use, left: use.output >= 16 << 20),
    Exhaustion("disk-full", "writes until its disk is full", _disk, Verdict.DROP, lambda use, left: use.scratch > DISK * 3 // 4),
    Exhaustion("memory", "takes memory until the kernel ends it", _memory, Verdict.STOP, lambda use, left: use.machine > _FULL),
    Exhaustion("fork-bomb", "forks without end", _forks, Verdict.STOP, lambda use, left: use.machine > _FULL),
)  # fmt: skip
