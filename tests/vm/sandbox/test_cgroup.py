"""Where a control group may be made, what is written into it, that it holds and kills who is in it.

A machine for tests may have no controller in version 2. The guest's kernel has them all, so that
they bind is shown by this module's subject inside a guest, as the root of a small system there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.waiting import GENEROUS, until

from wgcell.image import store
from wgcell.relay import link
from wgcell.relay.seal import unprivileged_id
from wgcell.vm.qemu.argv import QemuSpec
from wgcell.vm.qemu.process import QemuMachine, find_qemu
from wgcell.vm.sandbox import cgroup
from wgcell.vm.sandbox.jail import find_jail
from wgcell.vm.spec import Accelerator

BOUNDS = cgroup.Bounds(memory=512 << 20, cpus=2)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What looks like a mounted cgroup2 to an ordinary user who was given ``/slice/ours``."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("", "slice", "slice/ours"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file in ("cgroup.procs", "cgroup.subtree_control"):
            (folder / file).write_text("")
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids")
    (tmp_path / "slice/ours/cgroup.procs").write_text(f"{os.getpid()}\n")
    return tmp_path


def found(tree: Path, own: str = "/slice/ours") -> cgroup.Parent | str:
    mounts = f"30 20 0:26 / {tree} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    return cgroup.find(f"1:name=systemd:/x\n0::{own}\n", mounts)


def test_beside_us_where_our_parent_hands_its_controllers_on(tree: Path) -> None:
    (tree / "slice/cgroup.subtree_control").write_text("memory pids io")
    assert found(tree) == cgroup.Parent(tree / "slice", False, ("memory", "pids"))


def test_below_us_where_we_are_alone(tree: Path) -> None:
    assert found(tree) == cgroup.Parent(tree / "slice/ours", True, ("cpu", "memory", "pids"))


def test_nowhere_where_others_are_with_us(tree: Path) -> None:
    (tree / "slice/ours/cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    assert "others are in it" in str(found(tree))


def test_nowhere_without_controllers(tree: Path) -> None:
    (tree / "slice/ours/cgroup.controllers").write_text("hugetlb")
    assert "without cpu, memory or pids" in str(found(tree))


def test_root_takes_only_what_is_marked_as_delegated(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getxattr", lambda *_: (_ for _ in ()).throw(OSError("none")))
    assert found(tree) == "no cgroup is delegated to us"
    monkeypatch.setattr(os, "getxattr", lambda *_: b"1")
    assert isinstance(found(tree), cgroup.Parent)


def test_nowhere_where_only_version_1_is() -> None:
    assert cgroup.find("4:memory:/\n", "") == "this system has no cgroup v2"
    mounts = "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    assert cgroup.find("0::/\n", mounts) == "this system has no cgroup v2"


def test_what_is_written_bounds_memory_cpu_and_processes() -> None:
    files = BOUNDS.files()
    assert files["cpu"] == {"cpu.max": "250000 100000"}
    assert files["memory"]["memory.max"] == str((512 + 1536) << 20)
    assert files["pids"] == {"pids.max": "128"}


@pytest.fixture
def real() -> Iterator[Path]:
    """A group of the kernel's own for this test."""
    root = cgroup._mounted(Path("/proc/self/mountinfo").read_text())
    assert root is not None, "no cgroup2 is mounted"
    folder = root / f"wgcell-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for left in folder.glob("*/"):
            (left / "cgroup.kill").write_text("1")
            until(lambda group=left: "populated 0" in (group / "cgroup.events").read_text())
            left.rmdir()
        folder.rmdir()


@pytest.mark.namespaces
def test_who_is_in_it_is_held_and_dies_with_it(real: Path) -> None:
    group = cgroup.make(cgroup.Parent(real, False, ()), "t", BOUNDS)
    script = "import os, time; os.fork(); os.write(1, b'in\\n'); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.write(group.procs, b"0") and None,
    ) as child:
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == [b"in\n"] * 2
        inside = {int(pid) for pid in (group.folder / "cgroup.procs").read_text().split()}
        assert child.pid in inside and len(inside) == 2
        group.remove()
        assert child.wait(GENEROUS) == -signal.SIGKILL
    assert not group.folder.exists()
    group.remove()  # a second time does no harm


@pytest.mark.vm
def test_qemu_and_its_jail_live_in_it_and_stand_still_until_they_may_go(real: Path) -> None:
    image = store.load("debian")
    group = cgroup.make(cgroup.Parent(real, False, ()), "t", BOUNDS)
    pairs = [socket.socketpair() for _ in range(3)]

    async def live() -> None:
        with image.kernel.open() as kernel, image.initramfs.open() as initramfs:
            nic, qmp, console = (theirs.fileno() for _, theirs in pairs)
            spec = QemuSpec(
                *(find_qemu(), Accelerator.TCG, kernel.fileno(), initramfs.fileno()),
                *("console=ttyS0 panic=-1", 1, 256, (), link.GUEST_MAC_TEXT),
                *(nic, qmp, console, {}),
            )
            jail = find_jail(unprivileged_id("t"), None)
            machine = await QemuMachine.start(spec, pairs[1][0], jail, 1 << 20, group)
        inside = {int(pid) for pid in (group.folder / "cgroup.procs").read_text().split()}
        assert {machine.pid, machine.process.pid} <= inside
        await machine.attest()
        pairs[2][0].settimeout(0.5)
        with pytest.raises(TimeoutError):
            pairs[2][0].recv(1)
        await machine.go()
        pairs[2][0].settimeout(20)
        assert await asyncio.to_thread(pairs[2][0].recv, 1)  # the BIOS, at least
        group.remove()
        assert await machine.reap() == -signal.SIGKILL
        await machine.close()

    asyncio.run(live())
    assert not group.folder.exists()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


_IN_THE_GUEST = """
import importlib.util, json, os, signal, subprocess, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("cgroup", "cgroup.py")
cgroup = sys.modules["cgroup"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cgroup)
cgroup._OVERHEAD = 0

tree = Path("/tmp/tree")
tree.mkdir()
subprocess.run(["mount", "-t", "cgroup2", "cgroup2", tree], check=True)
(tree / "cgroup.subtree_control").write_text("+cpu +memory +pids")
(tree / "slice/us").mkdir(parents=True)
(tree / "slice/us/cgroup.procs").write_text("0")
before = cgroup.find()
(tree / "slice/cgroup.subtree_control").write_text("+cpu +memory +pids")
os.setxattr(tree / "slice/us", "trusted.delegate", b"1")
below = cgroup.find()
os.setxattr(tree / "slice", "trusted.delegate", b"1")
beside = cgroup.find()
group = cgroup.make(beside, "cell", cgroup.Bounds(memory=64 << 20, cpus=0, processes=12))

def inside(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        preexec_fn=lambda: os.write(group.procs, b"0") and None,
    )
    return [done.returncode, done.stdout]

busy = '''
import time
until = time.monotonic() + 4
while time.monotonic() < until:
    pass
print(time.process_time())
'''
forks = '''
import os, time
for n in range(40):
    try:
        os.fork() or (time.sleep(3), os._exit(0))
    except BlockingIOError:
        print(n)
        break
'''
answers = {
    "find": [str(before), str(below), str(beside)],
    "little": inside("x = bytes(8 << 20); print(len(x))"),
    "much": inside("x = bytearray(200 << 20); print(len(x))"),
    "much without": subprocess.run([sys.executable, "-c", "x = bytearray(200 << 20)"]).returncode,
    "busy": inside(busy),
    "forks": inside(forks),
}
group.remove()
answers["gone"] = not group.folder.exists()
print(json.dumps(answers))
"""


@pytest.mark.vm
@pytest.mark.alone
def test_the_controllers_bind_memory_cpu_and_processes(tmp_path: Path) -> None:
    (tmp_path / "play.py").write_text(_IN_THE_GUEST)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "wgcell", "run", "--guest-walls", "off"),
            *("--state-dir", str(tmp_path / "cells"), "--input", str(tmp_path / "play.py")),
            *("--input", str(cgroup.__file__), "--", "python3", "play.py"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    folders = [repr(text) for text in said["find"]]
    assert "no cgroup is delegated to us" in folders[0]
    assert "slice/us'), aside=True" in folders[1] and "slice'), aside=False" in folders[2]
    assert said["little"] == [0, f"{8 << 20}\n"]
    assert (said["much"], said["much without"]) == ([-signal.SIGKILL, ""], 0)
    # Half a processor for four seconds; a whole one without the bound.
    assert said["busy"][0] == 0 and 1.0 < float(said["busy"][1]) < 2.8
    assert said["forks"][0] == 0 and 1 <= int(said["forks"][1]) <= 12
    assert said["gone"] is True
