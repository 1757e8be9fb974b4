"""A machine that is starting dies with whoever starts it: by then nobody else knows of it.

A shell plays bubblewrap, at the moment when its child has not asked yet to die with it, which lasts
some milliseconds of a real start. What this can't show: a supervisor's death in any other moment
(tests/cells/test_deaths.py does).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

import pytest
from tests.support.deaths import family
from tests.support.waiting import alive, until

from wgcell.vm.qemu.argv import QemuSpec
from wgcell.vm.qemu.process import QemuMachine, _kept
from wgcell.vm.sandbox.jail import Jail
from wgcell.vm.spec import Accelerator

pytestmark = pytest.mark.process


async def starting(place: Path) -> None:
    """Start a machine whose jail never gets further than a child of bubblewrap's."""
    stand_in = place / "bwrap"
    stand_in.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    stand_in.chmod(0o755)
    pairs = [socket.socketpair() for _ in range(3)]
    (place / "boot").touch()
    with (place / "boot").open() as boot:
        spec = QemuSpec(
            qemu="/usr/bin/true",
            accelerator=Accelerator.TCG,
            kernel_fd=boot.fileno(),
            initramfs_fd=boot.fileno(),
            command_line="",
            cpus=1,
            memory=128,
            drives=(),
            mac="02:77:67:00:00:02",
            nic_fd=pairs[0][1].fileno(),
            qmp_fd=pairs[1][1].fileno(),
            console_fd=pairs[2][1].fileno(),
            ports={},
        )
        try:
            await QemuMachine.start(spec, pairs[1][0], Jail(str(stand_in), None), 1 << 20)
        finally:
            for ours, theirs in pairs:
                ours.close()
                theirs.close()


def begun(supervisor: int, others: Container[int] = ()) -> list[int]:
    """The processes below it, once there is bubblewrap's child: keeper, bubblewrap, and that."""

    def members() -> list[int]:
        found = family(supervisor)
        if "sleep 60 " not in found.values():
            return []
        return sorted(pid for pid in found if pid != supervisor and pid not in others)

    return until(members, "it starts")


def all_end(members: list[int]) -> None:
    """Each of them, long before its `sleep 60` would."""
    until(lambda: not any(map(alive, members)), "a process is left", within=30)


def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    others = family(os.getpid())

    async def start_and_cancel() -> list[int]:
        task = asyncio.create_task(starting(tmp_path))
        members = await asyncio.to_thread(begun, os.getpid(), others)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled(), "it waits for a process that it left behind"
        return members

    all_end(asyncio.run(start_and_cancel()))


@pytest.mark.parametrize("victim", ["supervisor", "keeper", "bwrap"])
def test_whoever_is_killed_as_the_jail_starts_no_process_is_left(
    tmp_path: Path, victim: str
) -> None:
    code = "import asyncio, pathlib, sys; from tests.vm.qemu.test_process import starting; "
    code += "asyncio.run(starting(pathlib.Path(sys.argv[1])))"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.DEVNULL,
    )
    try:
        members = begun(supervisor.pid)
        chosen = {"supervisor": supervisor.pid, "keeper": members[0], "bwrap": members[-2]}[victim]
        os.kill(chosen, signal.SIGKILL)
        all_end(members)
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.parametrize(("answer", "started"), [(b"\n", True), (b"", False)])
def test_the_jail_is_not_begun_for_a_supervisor_that_is_gone(
    tmp_path: Path, answer: bytes, started: bool
) -> None:
    """One that died before the keeper's child had asked to die with it: there is no answer."""
    file = tmp_path / "begun"
    done = subprocess.run(_kept(["touch", str(file)]), input=answer, capture_output=True)
    assert done.stdout == b"\n" and not done.stderr
    assert file.exists() == started
