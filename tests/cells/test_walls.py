"""The host's walls around whole cells: without root, without bubblewrap, whatever happens outside.

What these can't show: a wall on a kernel other than this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.cells import started
from tests.support.deaths import family, pick
from tests.support.vpnfiles import PRIVATE, vpn_file
from tests.support.waiting import GENEROUS, alive, lull, until

from wgcell.image import store

Cell = Callable[..., Any]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(200)]

ORDINARY = 4321


def result_of(state: Path) -> dict[str, Any]:
    (folder,) = state.iterdir()
    return json.loads((folder / "result.json").read_text())


def events_of(state: Path) -> list[dict[str, Any]]:
    (folder,) = state.iterdir()
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def public(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder an ordinary user may enter, with wgcell and its image in it."""
    place = Path("/var/tmp") / f"wgcell-ordinary-{os.getpid()}"
    place.mkdir(mode=0o755)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    skipped = shutil.ignore_patterns("mypy*", "ruff*", "scapy", "hypothesis", "pip", "pytest*")
    shutil.copytree(packages, place / "packages", ignore=skipped)
    source = Path(store.__file__).parents[2]
    shutil.copytree(source / "wgcell", place / "packages" / "wgcell", dirs_exist_ok=True)
    image = store.load("debian").folder
    shutil.copytree(image, place / "cache" / "images" / "debian")
    (place / "home").mkdir()
    os.chown(place / "home", ORDINARY, ORDINARY)
    yield place
    shutil.rmtree(place)


def test_a_whole_cell_with_all_walls_as_an_ordinary_user(public: Path) -> None:
    if os.geteuid() != 0:  # then every other test here is this one
        return
    done = subprocess.run(
        [
            *("/usr/bin/python3", "-P", "-m", "wgcell", "run"),
            *("--state-dir", str(public / "home/cells"), "--output", "made"),
            *("--", "sh", "-c", "id -u; echo home > made"),
        ],
        user=ORDINARY,
        group=ORDINARY,
        extra_groups=[],
        cwd=public / "home",
        env={
            "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
            "HOME": str(public / "home"),
            "PYTHONPATH": str(public / "packages"),
            "WGCELL_CACHE_DIR": str(public / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"
    result = result_of(public / "home/cells")
    assert result["walls"]["seal"] is True and result["walls"]["jail"] is True, result["walls"]
    assert set(result["walls"]["missing"]) <= {"seal: landlock"}
    (started,) = [e for e in events_of(public / "home/cells") if e["event"] == "gateway"]
    others_may = os.stat("/dev/net/tun").st_mode & 0o006 == 0o006
    assert started["engine"] == ("namespace" if others_may else "embedded"), started
    assert bool(started["reason"]) is not others_may
    (folder,) = (public / "home/cells").iterdir()
    assert (public / "home/made").read_text() == "home\n"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def refusing_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bwrap that fails as it does where the system forbids it its namespaces."""
    refusing = tmp_path / "bin" / "bwrap"
    refusing.parent.mkdir()
    refusing.write_text(
        "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n"
    )
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{refusing.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("refusing_bubblewrap")
def test_a_jail_that_can_not_be_built_is_not_pretended(cell: Cell) -> None:
    ended = cell(command=["true"])
    assert ended.code == 0, ended.stderr
    walls = ended.result["walls"]
    assert walls["seal"] is True and walls["jail"] is False
    assert "Permission denied (wgcell doctor" in walls["missing"]["jail"]
    assert "jail" in ended.stderr


@pytest.mark.usefixtures("refusing_bubblewrap")
def test_a_provider_who_requires_every_wall_is_refused_a_cell_without(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config" / "wgcell").mkdir(parents=True)
    (tmp_path / "config/wgcell/config.toml").write_text("require_walls = true\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    ended = cell(command=["echo", "ran"])
    assert ended.code == 125 and ended.stdout == ""
    assert "requires every wall" in ended.stderr
    assert not [event for event in ended.events if event["event"] == "booting"]


def test_unverified_in_time(cell: Cell, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('command = ["echo", "ran"]\n[policy]\nverify_timeout = "1s"\n')
    ended = cell(str(job), command=["echo", "ran"])
    assert ended.code == 121 and ended.stdout == ""
    assert ended.result["outcome"] == "unverified"


def test_an_endpoint_that_does_not_answer_boots_nothing(cell: Cell, tmp_path: Path) -> None:
    # The remedy names the endpoint's key: it is no secret.
    (tmp_path / "v.conf").write_text(vpn_file(endpoint="127.0.0.1:9"))
    given = ["--vpn", str(tmp_path / "v.conf"), "--allow-endpoint", "127.0.0.1/32"]
    ended = cell(*given, command=["true"])
    assert ended.code == 121
    assert "no consent" in ended.stderr and PRIVATE not in ended.stderr + ended.stdout
    assert not [event for event in ended.events if event["event"] == "booting"]
    # QEMU was there, its processor stopped: the BIOS alone would have written a line.
    console = ended.folder / "console.log"
    assert not console.exists() or console.read_bytes() == b""


def gateway_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return next(pid for pid, line in lines.items() if b"wgcell.gateway" in line)


def machine_of(process: subprocess.Popen[str]) -> int:
    """QEMU's process, in its jail."""
    return pick("qemu", family(process.pid), process.pid)


def test_a_tunnel_that_falls_silent_is_lost(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[policy]\ntunnel_timeout = "10s"\n')
    talk = "echo up; while :; do ping -c 1 -W 1 10.99.0.1 >/dev/null; sleep 1; done"
    process = started(tmp_path / "cells", str(job), command=["sh", "-c", talk])
    gateway = gateway_of(process)
    os.kill(gateway, signal.SIGSTOP)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        if Path(f"/proc/{gateway}").exists():
            os.kill(gateway, signal.SIGCONT)
    assert process.returncode == 122, stderr
    assert result_of(tmp_path / "cells")["outcome"] == "tunnel_lost"


def test_a_frozen_machine_is_kept_until_it_is_stopped(tmp_path: Path, wgcell: str) -> None:
    rogue = "import socket,time; print('up', flush=True); time.sleep(1)\n"
    rogue += "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0))\n"
    rogue += "s.send(bytes(60)); time.sleep(60)"
    options = ["--guest-walls", "off", "--on-rogue", "freeze"]
    process = started(tmp_path, *options, command=["python3", "-c", rogue])

    def frozen() -> bool:
        assert process.poll() is None
        return any(event["event"] == "frozen" for event in events_of(tmp_path))

    until(frozen)
    lull(1)
    assert process.poll() is None
    subprocess.run([wgcell, "stop", "--state-dir", str(tmp_path), "t"], check=True)
    process.communicate(timeout=GENEROUS)
    assert process.returncode == 120


def test_a_rogue_machine_dies_under_a_supervisor_that_stands_still(tmp_path: Path) -> None:
    rogue = "import socket,time; print('up', flush=True); time.sleep(2)\n"
    rogue += "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0))\n"
    rogue += "s.send(bytes(60)); time.sleep(60)"
    process = started(tmp_path, "--guest-walls", "off", command=["python3", "-c", rogue])
    machine = machine_of(process)
    os.kill(process.pid, signal.SIGSTOP)
    assert alive(machine)
    try:
        until(lambda: not alive(machine), "it lives on", within=20)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 120, stderr
    result = result_of(tmp_path)
    assert result["outcome"] == "rogue" and "destination_mac" in result["reason"], result


STOOD = int(os.environ.get("WGCELL_STOOD", "10"))


@pytest.mark.timeout(200 + STOOD)
def test_a_cell_that_stood_still_for_a_while_goes_on(tmp_path: Path) -> None:
    """As a suspended host looks: every process of the cell is stopped, then goes on.

    ``WGCELL_STOOD`` seconds: 10, and in the long form 200 and 3600.
    """
    talk = "echo up; sleep 12; ping -c 9 -W 5 10.99.0.1 | grep -q 'from 10.99.0.1' && echo alive"
    process = started(tmp_path, command=["sh", "-c", talk])
    members = list(family(process.pid))
    for pid in members:
        os.kill(pid, signal.SIGSTOP)
    lull(STOOD)
    for pid in reversed(members):
        os.kill(pid, signal.SIGCONT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "alive" in stdout
    assert result_of(tmp_path)["relay"]["refused"] == {}


FILLING = """
mount -t tmpfs -o size=24m none {place} || exit 99
{begin}
dd if=/dev/zero of={place}/filler bs=64k 2>/dev/null
{wait}
"""
# As a failing disk makes it: what is open for writing stays open and can't be written any more.
FAILING = """
truncate -s 64M {place}.img && mke2fs -q -F -t ext4 {place}.img || exit 99
mount -o loop,errors=remount-ro {place}.img {place} || exit 99
trap 'umount {place}' EXIT
{begin}
echo failing >/sys/fs/ext4/$(basename $(findmnt -n -o SOURCE {place}))/trigger_fs_error
{wait}
"""
BEGIN = """
{wgcell} run --state-dir {place}/cells --disk 16MiB -- sh -c 'while :; do echo more; done' \\
    >/dev/null &
wgcell=$!
while ! grep -qs more {place}/cells/*/stdout.log; do sleep 0.1; kill -0 $wgcell || exit 98; done
children=$(cat /proc/$wgcell/task/$wgcell/children)
[ -n "$children" ] || exit 97
"""
WAIT = """
wait $wgcell
code=$?
sleep 1
for child in $children; do
    kill -0 $child 2>/dev/null && echo "something is left"
done
exit $code
"""


@pytest.mark.parametrize(
    ("script", "apart", "said"),
    [
        (FILLING, ["unshare", "--user", "--map-root-user", "--mount"], "No space left"),
        (FAILING, [], "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_fills_up_or_turns_read_only_ends_the_cell(
    tmp_path: Path, script: str, apart: list[str], said: str
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    begin = BEGIN.format(place=place, wgcell=f"{sys.executable} -P -m wgcell")
    done = subprocess.run(
        [*apart, "sh", "-c", script.format(place=place, begin=begin, wait=WAIT)],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 125, done.stderr + done.stdout
    assert "something is left" not in done.stdout
    assert said in done.stderr and "Traceback" not in done.stderr
