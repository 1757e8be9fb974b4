"""The guest as people expect it: its limits, /tmp, clock, tools and names, seen from the workload.

Each cell carries a script that looks at many things at once and writes what it saw as one JSON
object. What this can't show: a suspended host; its clock's jump, which is what a suspend looks like
from the supervisor, is played instead.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cell = Callable[..., Any]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

LOOK = r"""
import ctypes, errno, json, os, resource, socket, subprocess, sys, time

seen, libc = {}, ctypes.CDLL(None, use_errno=True)

def tried(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"

def called(number, *words):
    return errno.errorcode.get(ctypes.get_errno()) if libc.syscall(number, *words) < 0 else "done"

def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

def asked(name):
    begun = time.monotonic()
    try:
        said = socket.getaddrinfo(name, 80)
    except socket.gaierror as error:
        said = error.errno
    return said, time.monotonic() - begun

seen["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
seen["more files"] = tried(lambda: open("/proc/sys/fs/nr_open", "w"))
for name in ("max_user_watches", "max_user_instances"):
    with open("/proc/sys/fs/inotify/" + name) as file:
        seen[name] = int(file.read())
seen["sysctl"] = tried(lambda: open("/proc/sys/fs/inotify/max_user_watches", "w"))

with open("/proc/self/mountinfo") as file:
    mounts = [line.split() for line in file]
seen["mounts"] = {m[4]: (m[3], m[m.index("-") + 1], m[m.index("-") + 2]) for m in mounts}
at = os.lstat("/tmp")
seen["tmp"] = (oct(at.st_mode), at.st_uid, os.listdir("/tmp"))
room = os.statvfs("/tmp")
seen["tmp bytes"] = room.f_blocks * room.f_frsize
with open("/tmp/left", "w") as file:
    file.write("x")
os.makedirs("results")
with open("results/made", "w") as file:
    file.write("x")
os.link("/tmp/left", "/tmp/linked")
seen["out of tmp"] = os.listdir("/tmp/..") == os.listdir("/")
seen["upper"] = [name for name in ("upper", "lower", "newroot", "init") if name in os.listdir("/")]
# A file handle leads past every mount: a folder above /tmp on the same disk is the root's layer.
handle = (ctypes.c_uint32 * 34)(128)
where = os.open("/tmp", os.O_RDONLY)
named = ctypes.c_int()
seen["name a handle"] = called(303, where, b"left", ctypes.byref(handle), ctypes.byref(named), 0)
seen["open a handle"] = called(304, where, ctypes.byref(handle), 0)

seen["set the clock"] = tried(lambda: time.clock_settime(time.CLOCK_REALTIME, 1.0))
adjustment = (ctypes.c_long * 26)(0x8001, 1000)
seen["slow the clock"] = called(159, ctypes.byref(adjustment))
seen["set it apart"] = run("unshare", "-Ur", "date", "-s", "@1")[0]

loaded = run(sys.executable, "-v", "-c", "import socket, ctypes, json, urllib.request, pip")[1]
seen["loaded"] = loaded.count("code object from")
seen["stale"] = [line for line in loaded.splitlines() if "stale" in line or "wrote" in line]

seen["names"] = {name: asked(name) for name in ("attacker.example", "example.com")}
seen["curl"] = run("curl", "-sS", "--max-time", "20", "http://attacker.example/")
seen["git"] = run("sh", "-c", "cd /tmp && git init -q r && cd r && git config user.name a && "
    "git config user.email a@example.com && echo a >a && git add a && git commit -qm a && "
    "git log --format=%s")

import zipfile
with zipfile.ZipFile("/tmp/small-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("small.py", "WORD = 'installed'\n")
    about = "small-1.0.dist-info/"
    wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
    kind = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel.writestr(about + "WHEEL", kind)
    wheel.writestr(about + "RECORD", "small.py,,\n")
install = ("install", "-q", "--no-index", "/tmp/small-1.0-py3-none-any.whl")
seen["pip"] = run("pip", *install)
seen["installed"] = run("python3", "-c", "import small; print(small.WORD)")
seen["venv"] = run("python3", "-m", "venv", "/tmp/v")
seen["venv pip"] = run("/tmp/v/bin/pip", *install)
seen["venv installed"] = run("/tmp/v/bin/python", "-c", "import small; print(small.__file__)")
print(json.dumps(seen))
"""


def test_the_guest_is_as_people_expect_it(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    options = ["--input", str(tmp_path / "look.py"), "--output", "results", "--disk", "1GiB"]
    options += ["--output-dir", str(tmp_path / "home")]
    options += ["--allow", "api.example.com:443"]
    ended = cell(*options, command=["python3", "look.py"], timeout=380)
    assert ended.code == 0, ended.stdout + ended.stderr
    seen = json.loads(ended.stdout)

    assert seen["files"] == [65536, 1048576]
    assert (seen["max_user_watches"], seen["max_user_instances"]) == (524288, 1024)
    assert (seen["sysctl"], seen["more files"]) == ("EROFS", "EROFS")

    root, kind, disk = seen["mounts"]["/tmp"]
    assert (root, kind, disk) == ("/tmp", "ext4", "/dev/vdb")
    assert seen["tmp"] == ["0o41777", 0, []]
    assert seen["tmp bytes"] > 900 << 20  # the scratch disk's, not half of 512 MiB
    assert "/upper" not in seen["mounts"] and seen["upper"] == []
    assert seen["out of tmp"] is True
    # Naming one is allowed and must work, or its opening would fail for want of a name.
    assert (seen["name a handle"], seen["open a handle"]) == ("done", "EPERM")
    home = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert home == ["made"]

    assert (seen["set the clock"], seen["slow the clock"]) == ("EPERM", "EPERM")
    assert seen["set it apart"] != 0

    assert seen["stale"] == [] and seen["loaded"] > 50

    # EAI_NONAME, and EAI_NODATA for a name above an allowed one: neither is "try again" (-3).
    (nowhere, first), (above, second) = seen["names"].values()
    assert (nowhere, above) == (-2, -5)
    assert max(first, second) < 2
    assert seen["curl"] == [6, "curl: (6) Could not resolve host: attacker.example\n"]

    assert seen["git"] == [0, "a\n"]
    assert seen["pip"] == [0, ""]
    assert seen["installed"] == [0, "installed\n"]
    assert seen["venv"] == [0, ""] and seen["venv pip"] == [0, ""]
    assert seen["venv installed"][1].startswith("/tmp/v/lib/")


# The command line itself, but the supervisor's time of day is so many seconds off as a file says.
SHIFTED = """
import sys, time
from pathlib import Path
from wgcell.cell import effects, supervisor
from wgcell.cli.main import program

class Clock:
    def __getattr__(self, name):
        return getattr(time, name)
    def time(self):
        return time.time() + float(Path({shift!r}).read_text())

supervisor.time = effects.time = Clock()
program()
"""
TICKS = """
import ctypes, subprocess, time
libc = ctypes.CDLL(None)
def slowing():
    state = (ctypes.c_long * 26)(0xA001)  # ADJ_OFFSET_SS_READ, which anyone may
    libc.adjtimex(ctypes.byref(state))
    return state[1]
while True:
    alive = subprocess.run(["ping", "-c", "1", "-W", "5", "10.99.0.1"], capture_output=True)
    print(time.time(), slowing(), alive.returncode, flush=True)
    time.sleep(0.3)
"""


@pytest.mark.alone
def test_the_clock_follows_the_hosts_and_never_goes_back(tmp_path: Path) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    (tmp_path / "ticks.py").write_text(TICKS)
    argv = [sys.executable, "-P", "-c", SHIFTED.format(shift=str(shift)), "run"]
    argv += ["--state-dir", str(tmp_path / "cells"), "--input", str(tmp_path / "ticks.py")]
    process = subprocess.Popen(
        [*argv, "--", "python3", "ticks.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said: list[tuple[float, int]] = []

    def until(holds: Callable[[float, int], bool]) -> None:
        """Read ticks until one ``holds``, each later than the one before."""
        deadline = time.monotonic() + 60
        while True:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line, process.communicate()[1]
            at, slowing, alive = float(line[0]), int(line[1]), int(line[2])
            assert alive == 0
            assert not said or at > said[-1][0]
            said.append((at, slowing))
            if holds(at - time.time(), slowing):
                return
            assert time.monotonic() < deadline, said[-3:]

    try:
        # At the start it is the host's, within what the way of a line takes here.
        until(lambda ahead, slowing: True)
        assert abs(said[0][0] - time.time()) < 1.5 and said[0][1] == 0
        (scratch,) = (tmp_path / "cells").glob("*/scratch.img")
        # With its tables zeroed, by mke2fs or by Linux behind our back, it would be 68 MB.
        assert scratch.stat().st_blocks * 512 < 20e6
        # An hour on, as after a suspend: at once, not within `CLOCK_INTERVAL`.
        shift.write_text("3600")
        until(lambda ahead, slowing: abs(ahead - 3600) < 1.5)
        # Back again: the guest's goes slower, never back, and its WireGuard goes on.
        shift.write_text("0")
        until(lambda ahead, slowing: slowing < 0)
        assert said[-1][0] - time.time() > 3590
    finally:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
