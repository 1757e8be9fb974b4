"""Whoever holds the relay's end, the machine's first process dies when it is closed; by the kernel.

A shell that ignores every signal it can stands for the machine. What this can't show: QEMU itself
(tests/cells/test_walls.py does).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.support.waiting import GENEROUS, lull

from wgcell.vm.kill_switch import KillSwitch

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def kill_switch() -> Iterator[KillSwitch]:
    made = KillSwitch()
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


def test_it_kills_when_the_relays_end_is_closed(kill_switch: KillSwitch, start: Start) -> None:
    victim = start(VICTIM)
    kill_switch.arm(victim.pid)
    lull(0.2)
    assert victim.poll() is None and not kill_switch.pulled
    kill_switch.hand_over()
    assert victim.wait(GENEROUS) == -signal.SIGKILL and kill_switch.pulled


@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$"])
def test_it_kills_when_the_holder_is_gone(kill_switch: KillSwitch, start: Start, end: str) -> None:
    holder = start(f"read _; {end}", pass_fds=(kill_switch.end,), stdin=subprocess.PIPE)
    kill_switch.hand_over()
    victim = start(VICTIM)
    kill_switch.arm(victim.pid)
    lull(0.2)
    assert victim.poll() is None and not kill_switch.pulled
    holder.stdin.close()
    assert victim.wait(GENEROUS) == -signal.SIGKILL and kill_switch.pulled


def test_a_switch_that_was_pulled_kills_whom_it_is_armed_with(
    kill_switch: KillSwitch, start: Start
) -> None:
    kill_switch.hand_over()
    victim = start(VICTIM)
    kill_switch.arm(victim.pid)
    assert victim.wait(GENEROUS) == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_it_may_kill_a_machine_of_another_user(kill_switch: KillSwitch, start: Start) -> None:
    victim = start(VICTIM, user=0x70000001)
    kill_switch.arm(victim.pid)
    kill_switch.hand_over()
    assert victim.wait(GENEROUS) == -signal.SIGKILL
