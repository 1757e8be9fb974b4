"""Kill one process of a cell at a random moment, in a network namespace with a capture of its own.

Run by test_deaths.py in a fresh network namespace (``unshare --net``). Arguments: the seed, how
many trials, the folder for the cells. Prints one JSON line a trial: what was killed, when, and what
was wrong afterwards (nothing, if all is well). The workload, a compromised guest, sends tunnel
traffic all the while, and in half of the trials a rogue frame, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.support.waiting import alive

from wgcell.cell.events import broken_link

WGCELL = [sys.executable, "-P", "-m", "wgcell"]
WORKLOAD = """
import os, socket, sys, time
rogue = float(sys.argv[1])
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
tunnel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
started = time.monotonic()
while True:
    tunnel.sendto(bytes(200), ("10.99.0.1", 9))
    if time.monotonic() - started > rogue:
        raw.send(bytes.fromhex("ffffffffffff0277670000020806") + bytes(46))
    time.sleep(0.01)
"""
VICTIMS = ("supervisor", "keeper", "relay", "jail-keeper", "jail", "qemu", "gateway", "wireguard")
STATES = ("preparing", "booting", "verifying", "running")


def family(pid: int) -> dict[int, str]:
    """Every process below ``pid`` and itself, with its command line."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            found[one] = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for thread in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            found.pop(one, None)
    return found


def pick(victim: str, members: dict[int, str], supervisor: int) -> int:
    """The process of that name; the supervisor where it has not been started yet."""
    word, first = {
        "keeper": ("wgcell.relay", "unshare"),
        "relay": ("wgcell.relay", "python"),
        "jail-keeper": ("qemu-system", "unshare"),
        "jail": ("qemu-system", "bwrap"),
        "qemu": ("qemu-system", "qemu-system"),
        "gateway": ("wgcell.gateway", "python"),
        "wireguard": ("wireguard-go", "wireguard-go"),
    }.get(victim, ("\0", ""))
    named = [pid for pid, line in members.items() if word in line and first in line.split()[0]]
    return max(named, default=supervisor)


def foreign(capture: socket.socket, ports: set[int]) -> list[str]:
    """Frames seen that are no WireGuard between the relay and its endpoint.

    Nor the answer of a dead endpoint's kernel to just that: "port unreachable", with the beginning
    of the message that found nobody (RFC 792).
    """
    wrong = []
    while True:
        try:
            frame = capture.recv(65536)
        except BlockingIOError:
            return wrong
        packet = frame[14:]
        if packet[9:10] == b"\x01" and packet[20:22] == b"\x03\x03":
            packet = packet[28:]
        udp = frame[12:14] == b"\x08\x00" and packet[:1] == b"\x45" and packet[9:10] == b"\x11"
        ends = {int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")}
        wireguard = packet[28:29] in (b"\1", b"\2", b"\3", b"\4") and packet[29:32] == bytes(3)
        if not (udp and ends & ports and wireguard):
            wrong.append(frame[:90].hex())


def _wait_for(reached: str, state: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the newest cell has been in that state, or has ended, a minute at most."""
    known = set(state.glob("d-*"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for folder in set(state.glob("d-*")) - known:
            log = folder / "events.jsonl"
            if log.exists() and f'"state":"{reached}"' in log.read_text():
                return
        time.sleep(0.02)


def _state(place: Path) -> str:
    """The newest cell's, by its events."""
    logs = sorted(place.glob("d-*/events.jsonl"), key=lambda path: path.parent.stat().st_mtime)
    if not logs:
        return "none"
    events = (json.loads(line) for line in logs[-1].read_text().splitlines())
    return [event["state"] for event in events if event["event"] == "state"][-1]


def decks(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Victims and states without end, by chance; eight have each victim once, each state twice."""
    while True:
        states = [*STATES] * (len(VICTIMS) // len(STATES))
        chance.shuffle(states)
        yield from zip(chance.sample(VICTIMS, len(VICTIMS)), states, strict=True)


def trial(
    chance: random.Random, victim: str, reached: str, state: Path, capture: socket.socket
) -> dict[str, object]:
    # Half of them soon: a state of the first second is over in a moment.
    moment = chance.uniform(0.0, chance.choice((0.05, 1.5)))
    rogue = chance.choice(("0.5", "1e9"))
    argv = [*WGCELL, "run", "--name", "d", "--state-dir", str(state), "--guest-walls", "off"]
    process = subprocess.Popen(
        [*argv, "--", "python3", "-c", WORKLOAD, rogue],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(reached, state, process)
    time.sleep(moment)
    members = family(process.pid)
    chosen = pick(victim, members, process.pid)
    at = _state(state)
    with contextlib.suppress(ProcessLookupError):  # a rogue frame may have been faster
        os.kill(chosen, signal.SIGKILL)
    killed = time.monotonic()
    wrong: list[str] = []
    survivors = {pid for pid in members if pid != process.pid}
    while survivors and time.monotonic() - killed < 1.0:
        survivors = {pid for pid in survivors if alive(pid)}
        time.sleep(0.01)
    wrong += [f"left: {members[pid][:60]}" for pid in survivors]
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        wrong.append("the supervisor did not end")
        process.kill()
        process.wait()
    folders = sorted(state.glob("d-*"), key=lambda path: path.stat().st_mtime)
    folder = folders[-1] if folders else None
    lines: list[bytes] = []
    if folder is not None and (folder / "events.jsonl").exists():
        lines = (folder / "events.jsonl").read_bytes().splitlines()
    events = [json.loads(line) for line in lines]
    if broken_link(lines) is not None:
        wrong.append("the chain of events does not hold")
    ports = {int(event["port"]) for event in events if event["event"] == "gateway"}
    wrong += [f"seen outside: {frame}" for frame in foreign(capture, ports)]
    listed = subprocess.run(
        [*WGCELL, "ps", "-a", "--json", "--state-dir", str(state)], capture_output=True, check=True
    )
    status = {row["cell"]: row["status"] for row in map(json.loads, listed.stdout.splitlines())}
    told = status.get(folder.name) if folder is not None else None
    ended = next((event["outcome"] for event in events if event["event"] == "ended"), None)
    if folder is not None and told not in ({ended} if ended else {"died"}):
        wrong.append(f"ps says {told!r}, the events {ended!r}")
    return {"victim": victim, "moment": round(moment, 2), "state": at, "wrong": wrong}


def main() -> None:
    seed, count, place = sys.argv[1:4]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    capture.bind(("lo", 0))
    capture.setblocking(False)
    # The capture sees what is sent here: its own positive control.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.sendto(b"seen", ("127.0.0.1", 9))
    time.sleep(0.1)
    if not foreign(capture, {0}):
        raise SystemExit("the capture is blind")
    chance = random.Random(int(seed))
    for victim, reached in islice(decks(chance), int(count)):
        print(json.dumps(trial(chance, victim, reached, Path(place), capture)), flush=True)


if __name__ == "__main__":
    main()
