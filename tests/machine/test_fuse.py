"""Whoever holds the relay's end, the machine's first process dies when it is closed; by the kernel.

A shell that ignores every signal it can stands for the machine. What this can't show: QEMU itself
(tests/vm/test_walls.py does).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.waiting import GENEROUS, lull

from wgcell.machine.fuse import Fuse

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def fuse() -> Iterator[Fuse]:
    made = Fuse()
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[subprocess.Popen[bytes]] = []

    def one(command: str, **options: object) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sh", "-c", command], **options))  # type: ignore[call-overload]
        return made[-1]

    yield one
    for process in made:
        process.kill()
        process.wait()


VICTIM = "trap '' HUP INT TERM IO; while :; do sleep 1; done"


def test_it_kills_when_the_relays_end_is_closed(fuse: Fuse, start: Start) -> None:
    victim = start(VICTIM)
    fuse.arm(victim.pid)
    lull(0.2)
    assert victim.poll() is None and not fuse.blown
    fuse.hand_over()
    assert victim.wait(GENEROUS) == -signal.SIGKILL and fuse.blown


@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$"])
def test_it_kills_when_the_holder_is_gone(fuse: Fuse, start: Start, end: str) -> None:
    holder = start(f"read _; {end}", pass_fds=(fuse.end,), stdin=subprocess.PIPE)
    fuse.hand_over()
    victim = start(VICTIM)
    fuse.arm(victim.pid)
    lull(0.2)
    assert victim.poll() is None and not fuse.blown
    holder.stdin.close()
    assert victim.wait(GENEROUS) == -signal.SIGKILL and fuse.blown


def test_a_fuse_that_has_blown_kills_whom_it_is_armed_with(fuse: Fuse, start: Start) -> None:
    fuse.hand_over()
    victim = start(VICTIM)
    fuse.arm(victim.pid)
    assert victim.wait(GENEROUS) == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_it_may_kill_a_machine_that_became_another_user(fuse: Fuse, start: Start) -> None:
    victim = start(VICTIM, user=0x70000001)
    fuse.arm(victim.pid)
    fuse.hand_over()
    assert victim.wait(GENEROUS) == -signal.SIGKILL
