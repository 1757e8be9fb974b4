"""Whole cells in real VMs. What they can't show: a frame that QEMU itself would hide from the NIC's
socket."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.utils import PcapNgReader
from tests.support.deaths import family, pick
from tests.support.gateways import Gateway
from tests.support.vpnfiles import vpn_file
from tests.support.waiting import GENEROUS, alive, until

from wgcell.cell.events import broken_link
from wgcell.gateway.model import wgquick
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.parsing import parse_config

Cell = Callable[..., Any]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(200)]

DEMO = Path(__file__).parents[2] / "demo"
FETCH = (
    "import urllib.request as u; print(len(u.urlopen('http://10.99.0.5/{}', timeout=30).read()))"
)


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def test_an_honest_guest_completes_and_emits_nothing_but_wireguard(cell: Cell) -> None:
    """Its command is a bare name, and with its walls up the image's program, too."""
    ended = cell(command=["ping", "-V"])
    assert ended.code == 0, ended.stderr
    assert "iputils" in ended.stdout
    result = ended.result
    assert result["outcome"] == "completed"
    assert result["relay"]["refused"] == {}
    assert result["relay"]["handshakes"] >= 1
    assert result["walls"]["seal"] is True and result["walls"]["jail"] is True, result["walls"]
    lines = (ended.folder / "events.jsonl").read_bytes().splitlines()
    assert broken_link(lines) is None
    states = [event["state"] for event in ended.events if event["event"] == "state"]
    assert states == [
        *("preparing", "consent", "booting", "verifying", "running", "stopping", "ended"),
    ]
    assert not (ended.folder / "scratch.img").exists()


def test_a_bare_name_is_the_images_program_and_not_our_own_tools(cell: Cell) -> None:
    """What sets the guest up is busybox, which would run an applet of its own for ``ping``."""
    ended = cell("--guest-walls", "off", command=["ping", "-V"])
    assert ended.code == 0, ended.stderr
    assert "iputils" in ended.stdout


@pytest.mark.parametrize(("word", "walls"), [("--version", "on"), ("A=b", "off")])
def test_a_command_is_never_read_as_an_option_of_ours(cell: Cell, word: str, walls: str) -> None:
    """The other two: `tests/guest/agent/test_workload.py`, without a machine."""
    ended = cell("--guest-walls", walls, command=[word, "true"])
    assert ended.code == 127 and ended.stdout == "", ended.stdout
    assert word in ended.stderr


def test_a_rate_slows_a_download(cell: Cell, service: str) -> None:
    timed = f"import time; at = time.monotonic(); {FETCH.format('zeros/2000000')}; "
    timed += "print(time.monotonic() - at)"
    ended = cell("--service", service, "--rate", "4Mbit", command=["python3", "-c", timed])
    assert ended.code == 0, ended.stderr
    size, seconds = ended.stdout.split()
    # 2 MB are 4 s of 4 Mbit/s; WireGuard, IP and TCP add a tenth.
    assert size == "2000000" and 3.8 < float(seconds) < 25
    assert ended.result["relay"]["refused"] == {}


def test_output_exit_code_and_arguments_come_through_unchanged(cell: Cell) -> None:
    script = "import os,sys; print(sys.argv[1:], os.environ['A']); print('err', file=sys.stderr); "
    script += "print(os.getcwd(), os.getuid()); "
    # What made the set-up quick is not the workload's.
    script += "print(*(open(file).read().strip() for file in ('/proc/sys/kernel/randomize_va_space'"
    script += ", '/sys/kernel/rcu_expedited'))); sys.exit(7)"
    hard = ["it's", 'a "b"', "$HOME", "", "two\nlines", "end\n"]
    ended = cell("--env", "A=x y", command=["python3", "-c", script, *hard])
    assert ended.code == 7, ended.stderr
    assert ended.stdout == f"{hard} x y\n/work 0\n2 0\n"
    assert "err" in ended.stderr.splitlines()
    assert (ended.folder / "stderr.log").read_text() == "err\n"


def test_a_command_that_can_not_be_started(cell: Cell) -> None:
    """One that is not there ends with 127, as those above."""
    assert cell(command=["/etc/passwd"]).code == 126


def test_a_synced_folder_goes_in_and_its_changes_come_back(cell: Cell, tmp_path: Path) -> None:
    """Through busybox's tar, both ways: names, links and modes that were not changed are not."""
    here = tmp_path / "here"
    deep = here / ("long name " * 9) / ("d" * 120) / ("é" * 60)
    deep.mkdir(parents=True)
    (deep / "program").write_text("#!/bin/sh\n")
    (deep / "program").chmod(0o755)
    (here / "readonly").touch(0o444)
    (here / "python3").symlink_to("/usr/bin/python3")
    (here / "up").symlink_to(f"{deep.relative_to(here)}/program")
    (here / "old").touch()
    (here / "notes").write_text("one\n")
    script = "echo two >>notes; rm old; mkdir new; echo x >new/x; ln notes new/hard; ln -s x new/l"
    ended = cell("--sync", str(here), "--yes", command=["sh", "-c", script])
    assert ended.code == 0, ended.stderr
    # Before the outcome, which says how that went, too.
    assert ended.stderr.splitlines()[-2] == f"wgcell: 5 files changed in {here}"
    assert (here / "notes").read_text() == (here / "new/hard").read_text() == "one\ntwo\n"
    assert (here / "new/l").readlink() == Path("x")
    assert (here / "python3").readlink() == Path("/usr/bin/python3")
    assert not (here / "old").exists()


def test_data_comes_through_the_tunnel_and_results_come_home(
    cell: Cell, service: str, tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import pathlib, urllib.request as u\n"
        "data = u.urlopen('http://10.99.0.5/data.csv', timeout=30).read()\n"
        "pathlib.Path('results/deep').mkdir(parents=True)\n"
        "pathlib.Path('results/deep/data.csv').write_bytes(data)\n"
    )
    given = ["--service", service, "--input", str(script), "--output", "results/"]
    ended = cell(*given, "--output-dir", str(tmp_path / "home"), command=["python3", "job.py"])
    assert ended.code == 0, ended.stderr
    assert (tmp_path / "home/results/deep/data.csv").read_bytes() == b"name,value\na,1\n"
    assert str(tmp_path / "home/results") in ended.stderr.splitlines()[-2]
    assert ended.result["relay"]["refused"] == {}
    assert ended.flows("allow") == ["10.99.0.5:80"]


def test_a_tunnel_may_be_ipv6_within(cell: Cell, service: str, tmp_path: Path) -> None:
    ours, theirs = generate_private_key(), generate_private_key()
    config = {
        "listen": "127.0.0.1:0",
        "private_key": theirs,
        "address": "fd99::1",
        "services": {"[fd99::5]:80": service.partition("=")[2]},
        "peers": {"cell": {"public_key": public_key(ours), "address": "fd99::2"}},
    }
    gateway = Gateway(config)
    vpn = tmp_path / "vpn.conf"
    endpoint = f"127.0.0.1:{gateway.first['port']}"
    keys = {"private": ours, "public": public_key(theirs)}
    given = {"address": "fd99::2/128", "allowed": "::/0", "endpoint": endpoint}
    vpn.write_text(vpn_file(**keys, **given, interface="DNS = fd99::1"))
    fetch = FETCH.format("data.csv").replace("10.99.0.5", "[fd99::5]")
    fetch += "\nimport socket\ntry: socket.getaddrinfo('attacker.example', 80)"
    fetch += "\nexcept OSError: print('refused')"
    try:
        asked = ["--vpn", str(vpn), "--allow-endpoint", "127.0.0.1/32"]
        ended = cell(*asked, command=["python3", "-c", fetch])
    finally:
        gateway.close()
    assert ended.code == 0, ended.stdout + ended.stderr
    assert ended.stdout == "15\nrefused\n"
    flows = [event for event in gateway.drain() if event["event"] == "flow"]
    assert (flows[0]["address"], flows[0]["verdict"]) == ("fd99::5", "allow")
    assert {(flow["name"], flow["verdict"]) for flow in flows[1:]} == {
        ("attacker.example", "refuse")
    }


TWO_ENDS = """
set -e
ip link set lo up
ip link add wgcell0 type wireguard
wg setconf wgcell0 server.conf
ip link set wgcell0 mtu 1420 up
ip addr add 10.98.0.1/32 dev wgcell0
ip route replace 10.98.0.2/32 dev wgcell0
ip link add peer type wireguard
wg setconf peer $1.conf
unshare --net sleep 60 &
trap "kill $!" EXIT
sleep 0.5
ip link set peer netns $!
nsenter --net=/proc/$!/ns/net sh -c 'ip addr add 10.98.0.2/32 dev peer
    ip link set peer up && ip route add default dev peer && ping -c 2 -W 3 10.98.0.1'
"""


EACH = """
for who in known stranger; do
    unshare --net sh ends.sh $who >$who.out 2>&1
    echo $who $? $(grep -c '2 received' $who.out)
    cat $who.out >&2
done
"""


def test_the_kernels_own_wireguard_takes_a_gateways_settings(cell: Cell, tmp_path: Path) -> None:
    """The guest's kernel has it. Two ends there, the gateway's by the text of its kernel engine."""
    ours, theirs, preshared = (generate_private_key() for _ in range(3))
    peer = {"public_key": public_key(ours), "address": "10.98.0.2", "preshared_key": preshared}
    raw = {"listen": "0.0.0.0:51999", "private_key": theirs, "address": "10.98.0.1"}
    config = parse_config({**raw, "engine": "kernel", "peers": {"one": peer}})
    (tmp_path / "server.conf").write_text(wgquick.wireguard_settings(config))
    keys = {"private": ours, "public": public_key(theirs)}
    for who, key in (("known", preshared), ("stranger", generate_private_key())):
        shared = f"PresharedKey = {key}"
        text = vpn_file(**keys, address="", endpoint="127.0.0.1:51999", peer=shared)
        (tmp_path / f"{who}.conf").write_text(text)
    (tmp_path / "ends.sh").write_text(TWO_ENDS)
    files = ("server.conf", "known.conf", "stranger.conf", "ends.sh")
    given = [f"--input={tmp_path / name}" for name in files]
    ended = cell("--guest-walls", "off", *given, command=["sh", "-c", EACH])
    assert ended.code == 0, ended.stderr
    assert ended.stdout == "known 0 1\nstranger 1 0\n", ended.stdout + ended.stderr


def test_what_the_gateway_does_not_allow_is_refused_and_the_cell_goes_on(cell: Cell) -> None:
    ended = cell("--input", str(DEMO / "stray.py"), command=["python3", "stray.py"])
    assert ended.code == 0, ended.stdout + ended.stderr
    refused = ended.flows("refuse")
    assert "203.0.113.7:80" in refused
    assert any(flow.startswith("attacker.example:") for flow in refused)


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The provider's word on which engine a cell's own gateway is."""
    (tmp_path / "config/wgcell").mkdir(parents=True)
    asked = f'gateway_engine = "{request.param}"\n'
    (tmp_path / "config/wgcell/config.toml").write_text(asked)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return str(request.param)


REFUSED = """
import socket, time
def tried(what, act):
    begun = time.monotonic()
    try:
        said = act()
    except OSError as error:
        said = type(error).__name__ + ' ' + str(error.errno)
    print(what, said, 'fast' if time.monotonic() - begun < 2 else 'slow')
def tcp():
    with socket.create_connection(('203.0.113.7', 443), 10) as stream:
        stream.sendall(b'x')
        return stream.recv(10)
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect(('203.0.113.7', 443))
        sock.send(b'x')
        return sock.recv(10)
tried('name', lambda: socket.getaddrinfo('attacker.example', 443))
tried('tcp', tcp)
tried('udp', udp)
"""


@pytest.mark.parametrize("engine", ["namespace", "embedded"], indirect=True)
@pytest.mark.alone
def test_what_is_refused_fails_fast_inside_the_guest(cell: Cell, engine: str) -> None:
    """The embedded engine has neither a reset nor ICMP: an end of the stream, and silence."""
    ended = cell(command=["python3", "-c", REFUSED])
    assert ended.code == 0, ended.stdout + ended.stderr
    name, tcp, udp = ended.stdout.splitlines()
    assert name == "name gaierror -2 fast"  # EAI_NONAME, for good; -3 would be EAI_AGAIN
    if engine == "namespace":
        assert tcp == "tcp ConnectionRefusedError 111 fast"
        assert udp == "udp OSError 113 fast"  # EHOSTUNREACH
    else:
        assert tcp in ("tcp b'' fast", "tcp ConnectionResetError 104 fast")
        assert udp == "udp TimeoutError None slow"
    (started,) = [event for event in ended.events if event["event"] == "gateway"]
    assert (started["engine"], started["reason"]) == (engine, "")


def test_root_in_the_workload_reaches_nothing(cell: Cell) -> None:
    ended = cell("--input", str(DEMO / "hostile.py"), command=["python3", "hostile.py"])
    assert ended.code == 0, ended.stdout
    assert ended.stdout.startswith("uid 0\n")
    assert ended.stdout.count("failed inside") == 13
    assert ended.result["relay"]["refused"] == {}


def test_first_rogue_frame_of_a_compromised_guest_kills_it(cell: Cell) -> None:
    ended = cell(
        *("--guest-walls", "off", "--input", str(DEMO / "compromised.py")),
        command=["python3", "compromised.py"],
    )
    assert ended.code == 120, ended.stderr
    assert ended.result["outcome"] == "rogue"
    assert "STILL ALIVE" not in ended.stdout
    with PcapNgReader(str(ended.folder / "rogue.pcapng")) as frames:
        packet = next(iter(frames))
    assert packet[IP].dst == "192.168.1.1"


def test_a_rogue_frame_after_exit_0_is_the_outcome_all_the_same(cell: Cell) -> None:
    """What a compromised guest left behind sends while the results come home."""
    waits = "import os, sys, time\nwhile os.path.exists('/proc/' + sys.argv[1]): time.sleep(0.05)\n"
    waits += "exec(open('/work/compromised.py').read())"
    script = f'python3 -c "{waits}" $$ >/dev/null 2>&1 & head -c 120000000 /dev/zero >big; exit 0'
    ended = cell(
        *("--guest-walls", "off", "--input", str(DEMO / "compromised.py"), "--output", "big"),
        command=["sh", "-c", script],
    )
    assert ended.code == 120, ended.stderr
    assert ended.result["outcome"] == "rogue"
    assert ended.result["workload_exit_code"] == 0
    told = [event["event"] for event in ended.events if event["event"] in ("exited", "rogue_frame")]
    assert told == ["exited", "rogue_frame"]
    with PcapNgReader(str(ended.folder / "rogue.pcapng")) as frames:
        assert next(iter(frames))[IP].dst == "192.168.1.1"


@pytest.mark.parametrize(
    ("victim", "code", "words"),
    [
        ("qemu", 123, "guest_fault"),
        ("relay", 125, "the relay died"),
        ("gateway", 125, "the gateway died"),
    ],
)
def test_whichever_process_dies_the_others_die_with_it(
    tmp_path: Path, wgcell: str, victim: str, code: int, words: str
) -> None:
    argv = [wgcell, "run", "--state-dir", str(tmp_path), "--", "sh", "-c", "echo up; sleep 60"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    children = children_of(process.pid)
    named = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    chosen = [pid for pid, line in named.items() if victim.encode() in line.split(b"-name")[0]]
    assert chosen, named
    os.kill(chosen[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=GENEROUS)
    assert process.returncode == code, stderr
    assert words in stderr
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_the_end_of_the_gateways_wireguard_is_the_cells(tmp_path: Path, wgcell: str) -> None:
    argv = [wgcell, "run", "--state-dir", str(tmp_path), "--", "sh", "-c", "echo up; sleep 60"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    members = family(process.pid)
    os.kill(pick("wireguard", members, process.pid), signal.SIGKILL)
    _, stderr = process.communicate(timeout=GENEROUS)
    assert process.returncode == 125
    assert "wireguard-go died" in stderr
    assert not [pid for pid in members if alive(pid)]


def test_a_supervisor_that_is_killed_leaves_no_machine_behind(tmp_path: Path, wgcell: str) -> None:
    """Nor does that take long: no page of its kernel is left to be unmapped."""
    argv = [wgcell, "run", "--state-dir", str(tmp_path), "--", "sh", "-c", "echo up; sleep 60"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    machine = pick("qemu", family(process.pid), process.pid)
    maps = Path(f"/proc/{machine}/smaps").read_text().split("VmFlags")
    kept = [area for area in maps if "/memfd:kernel" in area or "/memfd:initramfs" in area]
    assert len(kept) == 2
    assert all("Rss:                   0 kB" in area for area in kept), kept
    children = children_of(process.pid)
    process.kill()
    process.communicate(timeout=GENEROUS)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), within=30)
    shown = subprocess.run(
        [wgcell, "ps", "-a", "--state-dir", str(tmp_path)], capture_output=True, text=True
    )
    assert "died" in shown.stdout


@pytest.mark.timeout(300)
def test_a_rekey_passes_without_one_refusal(cell: Cell, service: str) -> None:
    """Linux's WireGuard inside, boringtun outside, traffic across REKEY_AFTER_TIME (120 s)."""
    script = "import time, urllib.request as u\n"
    script += "end = time.monotonic() + 150\n"
    script += "while time.monotonic() < end:\n"
    script += "    n = len(u.urlopen('http://10.99.0.5/big', timeout=30).read())\n"
    script += "    assert n == 2000000; time.sleep(5)\n"
    ended = cell("--service", service, command=["python3", "-c", script], timeout=260)
    assert ended.code == 0, ended.stderr
    assert ended.result["relay"]["handshakes"] >= 2
    assert ended.result["relay"]["refused"] == {}
