"""A machine that is cancelled while it starts is dead, for nobody else knows of it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.vm.deaths import alive

from wgcell.machine.argv import Accelerator, MachineSpec
from wgcell.machine.jail import Jail
from wgcell.machine.process import Machine


def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    """Nor a child of the jail's first process, which does not die with it yet."""
    pid_file = tmp_path / "pid"
    stand_in = tmp_path / "bwrap"
    stand_in.write_text(f"#!/bin/sh\nsleep 60 &\necho $$ $! >{pid_file}\nwait\n")
    stand_in.chmod(0o755)
    pairs = [socket.socketpair() for _ in range(4)]
    kernel, initramfs = (tmp_path / name for name in ("kernel", "initramfs"))
    kernel.touch()
    initramfs.touch()

    async def start_and_cancel() -> list[int]:
        with kernel.open() as one, initramfs.open() as two:
            spec = MachineSpec(
                qemu="/usr/bin/true",
                accelerator=Accelerator.TCG,
                kernel_fd=one.fileno(),
                initramfs_fd=two.fileno(),
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
            jail = Jail(str(stand_in), None)
            starting = asyncio.create_task(Machine.start(spec, pairs[1][0], jail, 1 << 20))
            while not (pid_file.exists() and pid_file.read_text().strip()):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # by now it waits for the jail's word
            starting.cancel()
            await asyncio.wait([starting], timeout=5)
            assert starting.cancelled(), "it waits for a process that it left behind"
            both = [int(pid) for pid in pid_file.read_text().split()]
            for _ in range(100):
                if not any(map(alive, both)):
                    break
                await asyncio.sleep(0.01)
            return both

    both = asyncio.run(start_and_cancel())
    assert len(both) == 2 and not any(map(alive, both))
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
