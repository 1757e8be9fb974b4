"""The relay's speed beside what people use today, and beside the same in C.

::

    core 0  drive (C): the guest's NIC <--- stream socket ---> core 1  the relay under test
            and the endpoint's socket  <------- UDP on lo --->

Every case runs on fresh processes, the tools taking turns within a round, so whatever the machine
does meanwhile it does to all of them; a ratio is the median over rounds of one round's ratio. A
tool that is not here is named as missing. Writes ``bench/results.json`` and ``bench/results.svg``.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wgcell.processes import namespace_holder
from wgcell.relay import link
from wgcell.relay.framing import prefixed
from wgcell.wire import ethernet, ipv4, wireguard

HERE = Path(__file__).parent
GUEST, ENDPOINT = bytes([1]) * 32, bytes([2]) * 32
GUEST_INDEX, ENDPOINT_INDEX = 0x0A0B0C0D, 0x01020304
FULL, SMALL = 1452, 128
ROUNDS = 7
OUT_CORE, RELAY_CORE = 0, 1
WARM = 5000


@dataclass(frozen=True)
class Case:
    """One way of loading a relay. ``goals``: least median ratio to a tool (for rtt: most)."""

    name: str
    way: str
    count: int
    burst: int
    window: int
    sizes: str
    goals: dict[str, float] = field(default_factory=dict)


CASES = (
    Case("out, one by one", "out", 200_000, 1, 1000, f"{FULL}", {"passt": 1.7, "C": 0.7}),
    Case("out, 32 a write", "out", 400_000, 32, 2000, f"{FULL}", {"passt": 5.0, "C": 0.7}),
    Case(
        "out, 3 full to 1 small",
        "out",
        200_000,
        32,
        2000,
        f"{FULL},{FULL},{FULL},{SMALL}",
        {"passt": 1.4, "C": 0.7},
    ),
    Case("out, small", "out", 200_000, 32, 2000, f"{SMALL}", {"C": 0.7}),
    Case("out, random sizes", "out", 100_000, 32, 1000, "random", {"passt": 1.2, "C": 0.7}),
    Case("in, single", "in", 150_000, 1, 64, f"{FULL}", {"passt": 1.0, "C": 0.75}),
    Case("in, bursts of 16", "in", 200_000, 16, 96, f"{FULL}", {"passt": 1.0, "C": 0.75}),
    Case("in, bursts of 44", "in", 300_000, 44, 132, f"{FULL}", {"C": 0.75}),
    Case("in, small single", "in", 150_000, 1, 64, f"{SMALL}", {"C": 0.75}),
    Case("round trip, one core", "rtt", 20_000, 1, 1, f"{FULL}"),
)


def head(port: int = link.PORT) -> str:
    eth = ethernet.header(link.GATEWAY_MAC, link.GUEST_MAC)
    ip = bytearray(ipv4.header(link.GUEST_ADDRESS, link.GATEWAY_ADDRESS, 0))
    ip[6:8] = b"\0\0"
    return (eth + bytes(ip) + struct.pack(">HHI", link.PORT, port, 0)).hex()


def guests(payload: bytes, port: int = link.PORT) -> bytes:
    """A record of the guest's."""
    raw = bytearray(bytes.fromhex(head(port)) + payload)
    raw[14:34] = ipv4.header(link.GUEST_ADDRESS, link.GATEWAY_ADDRESS, 8 + len(payload))
    raw[38:40] = struct.pack(">H", 8 + len(payload))
    return prefixed(bytes(raw))


def transport(receiver: int, counter: int) -> bytes:
    return struct.pack("<IIQ", 4, receiver, counter) + bytes(16)


class Setup:
    """A relay under test between two sockets of ours."""

    def __init__(self, core: int) -> None:
        self.core = core
        self.nic, self.theirs = socket.socketpair()
        self.endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.endpoint.bind(("127.0.0.1", 0))
        self.nic.settimeout(5)
        self.endpoint.settimeout(5)
        # The one that the guest sends to: the link's, or with tools that translate, the endpoint's.
        self.port = link.PORT
        self.process: subprocess.Popen[bytes]
        self.control: socket.socket | None = None

    def start(self, argv: list[str], *others: socket.socket) -> None:
        fds = [sock.fileno() for sock in (self.theirs, *others)]
        argv = ["taskset", "-c", str(self.core), *argv]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(argv, pass_fds=fds, stdout=quiet, stderr=quiet)
        for sock in (self.theirs, *others):
            sock.close()

    def connected_udp(self) -> socket.socket:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.connect(self.endpoint.getsockname())
        self.endpoint.connect(udp.getsockname())
        return udp

    def close(self) -> None:
        for sock in (self.nic, self.endpoint, self.control):
            if sock is not None:
                sock.close()
        self.process.terminate()
        self.process.wait(10)


def wgcell(setup: Setup) -> None:
    udp = setup.connected_udp()
    setup.control, control = socket.socketpair()
    given = [setup.theirs.fileno(), udp.fileno()]
    socket.send_fds(setup.control, [b"\0"], given)
    argv = [sys.executable, "-P", "-m", "wgcell.relay", str(control.fileno()), ""]
    setup.start([*namespace_holder(root=os.geteuid() == 0), *argv], udp, control)
    keys = {"guest_public_key": GUEST, "endpoint_public_key": ENDPOINT}
    told = {name: base64.b64encode(key).decode() for name, key in keys.items()}
    setup.control.sendall(json.dumps({"order": "configure", **told, "mtu": 1420}).encode() + b"\n")
    with setup.control.makefile() as lines:
        events = [json.loads(lines.readline())["event"] for _ in range(2)]
    if events != ["begun", "ready"]:
        raise RuntimeError("the relay did not start")
    covered = struct.pack("<II", 1, GUEST_INDEX) + bytes(108)
    setup.nic.sendall(guests(covered + wireguard.mac1(ENDPOINT, covered) + bytes(16)))
    setup.endpoint.recv(2000)
    covered = struct.pack("<III", 2, ENDPOINT_INDEX, GUEST_INDEX) + bytes(48)
    setup.endpoint.send(covered + wireguard.mac1(GUEST, covered) + bytes(16))
    setup.nic.recv(2000)


def limit(setup: Setup) -> None:
    udp = setup.connected_udp()
    setup.start([str(BUILT / "limit"), str(setup.theirs.fileno()), str(udp.fileno())], udp)


def passt_argv(nic: int) -> list[str]:
    argv = ["passt", "-f", "-q", "-F", str(nic), "-4", "-t", "none", "-u", "none"]
    argv += ["-a", "192.168.64.2", "-n", "24", "-g", "192.168.64.1", "-M", link.GATEWAY_MAC_TEXT]
    return [*argv, "-m", "1500", "--runas", "0" if os.getuid() == 0 else str(os.getuid())]


def passt(setup: Setup) -> None:
    setup.port = setup.endpoint.getsockname()[1]
    setup.start(passt_argv(setup.theirs.fileno()))
    time.sleep(0.3)


def slirp_argv(nic: int) -> list[str]:
    """libslirp; it learns the guest's MAC from an ARP request, and answers."""
    arp = b"\xff" * 6 + link.GUEST_MAC + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
    arp += link.GUEST_MAC + link.GUEST_ADDRESS + bytes(6) + link.GATEWAY_ADDRESS
    return [str(BUILT / "slirp"), str(nic), arp.ljust(60, b"\0").hex()]


def slirp(setup: Setup) -> None:
    setup.port = setup.endpoint.getsockname()[1]
    setup.start(slirp_argv(setup.theirs.fileno()))
    setup.nic.recv(2000)


Start = Callable[[Setup], None]
BUILT = Path(tempfile.gettempdir())


def tools() -> tuple[dict[str, Start], dict[str, str]]:
    """What can be run here, and why the rest can't."""
    found: dict[str, Start] = {"wgcell": wgcell, "C": limit}
    missing = {
        "slirp4netns, tap and bridge": "need a namespace and root; not driven here",
    }
    if shutil.which("passt"):
        found["passt"] = passt
    else:
        missing["passt"] = "not installed: apt-get install passt"
    if build("slirp", "-l:libslirp.so.0"):
        found["libslirp"] = slirp
    else:
        missing["libslirp"] = "not installed: apt-get install libslirp0"
    return found, missing


def build(name: str, *libraries: str) -> bool:
    argv = ["cc", "-O2", "-o", str(BUILT / name), str(HERE / f"{name}.c"), *libraries]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def drive(setup: Setup, case: Case, count: int, counter: int) -> list[float]:
    receiver = GUEST_INDEX if case.way == "in" else ENDPOINT_INDEX
    core = setup.core if case.way == "rtt" else OUT_CORE
    argv = ["taskset", "-c", str(core), str(BUILT / "drive"), case.way]
    argv += [str(setup.nic.fileno()), str(setup.endpoint.fileno()), head(setup.port)]
    argv += [str(receiver), str(counter), str(count), str(case.burst), str(case.window), case.sizes]
    argv += [str(GUEST_INDEX)]
    fds = (setup.nic.fileno(), setup.endpoint.fileno())
    done = subprocess.run(
        argv, pass_fds=fds, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{case.name}: exit code {done.returncode} {done.stderr}")
    return [float(word) for word in done.stdout.split()]


def family(pid: int) -> Iterator[int]:
    """A process and those below it: a sealed relay has a keeper of its pid namespace above it."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from family(int(child))


def processor_seconds(pid: int) -> float:
    """Of the whole family."""
    used = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def measure(start: Start, case: Case) -> dict[str, float]:
    setup = Setup(RELAY_CORE)
    start(setup)
    try:
        # The first message each way opens what has to be opened: a session, a flow.
        setup.nic.sendall(guests(transport(ENDPOINT_INDEX, 0), setup.port))
        _, peer = setup.endpoint.recvfrom(2000)
        setup.endpoint.connect(peer)
        setup.endpoint.send(transport(GUEST_INDEX, 0))
        setup.nic.recv(2000)
        counter = 1
        if case.way == "rtt":
            drive(setup, case, 2000, counter)
            _, median, tail = drive(setup, case, case.count, counter + 2000)
            return {"p50": median, "p99": tail}
        drive(setup, case, WARM, counter)
        before = processor_seconds(setup.process.pid)
        seconds, sent, received, reordered = drive(setup, case, case.count, counter + WARM)
        used = processor_seconds(setup.process.pid) - before
        return {
            "rate": received / seconds,
            "lost": sent - received,
            "reordered": reordered,
            "us": 1e6 * used / received,
        }
    finally:
        setup.close()


def mean_size(case: Case) -> float:
    if case.sizes == "random":
        return 32 + 88 * 16 / 2
    return statistics.mean(map(int, case.sizes.split(",")))


def ratio(
    rounds: list[dict[str, dict[str, float]]], key: str, tool: str
) -> tuple[float, float, float]:
    """Lowest, median, highest of wgcell's over ``tool``'s, round by round."""
    found = sorted(one["wgcell"][key] / one[tool][key] for one in rounds)
    return found[0], statistics.median(found), found[-1]


def show(case: Case, rounds: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    print(f"\n{case.name}")
    names = list(rounds[0])
    result: dict[str, object] = {"rounds": rounds, "goals": case.goals, "ratios": {}}
    for name in names:
        row = {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        if case.way == "rtt":
            print(f"  {name:<9} p50 {row['p50']:6.1f} µs   p99 {row['p99']:6.1f} µs")
        else:
            gigabits = row["rate"] * mean_size(case) * 8 / 1e9
            lost = sum(one[name]["lost"] + one[name]["reordered"] for one in rounds)
            print(
                f"  {name:<9} {gigabits:6.2f} Gbit/s {row['rate'] / 1e3:8.0f} k/s"
                f" {row['us']:6.2f} µs each" + (f"   {lost:.0f} lost or reordered" if lost else "")
            )
    for tool in names[1:]:
        for key in ("p50", "p99") if case.way == "rtt" else ("rate",):
            low, middle, high = ratio(rounds, key, tool)
            result["ratios"][f"{tool} {key}"] = [low, middle, high]  # type: ignore[index]
            spread = f"({low:.2f} to {high:.2f})"
            print(f"    {key} = {middle:.2f} x {tool} {spread}{verdict(case, tool, key, middle)}")
    return result


def verdict(case: Case, tool: str, key: str, found: float) -> str:
    if case.way == "rtt":
        most = {"p50": 1.2, "p99": 1.3}[key]
        return (
            ""
            if tool != "passt"
            else f"   goal at most {most}: {'met' if found <= most else 'MISSED'}"
        )
    goal = case.goals.get(tool)
    return "" if goal is None else f"   goal {goal}: {'met' if found >= goal else 'MISSED'}"


def plot(results: dict[str, dict[str, object]], names: list[str]) -> str:
    """Bars of the median rate, a row a case, as SVG: no library needed."""
    colours = dict(zip(names, ("#2b6cb0", "#718096", "#dd6b20", "#b7791f"), strict=False))
    rows, at = [], 30
    for case in CASES:
        if case.way == "rtt" or case.name not in results:
            continue
        rounds: list[dict[str, dict[str, float]]] = results[case.name]["rounds"]  # type: ignore[assignment]
        rates = {
            name: statistics.median(one[name]["rate"] for one in rounds) * mean_size(case) * 8 / 1e9
            for name in names
        }
        rows.append(f'<text x="10" y="{at + 12}">{case.name}</text>')
        for n, (name, rate) in enumerate(rates.items()):
            y = at + 14 * n
            width = rate * 22
            rows.append(
                f'<rect x="190" y="{y}" width="{width:.1f}" height="12" fill="{colours[name]}"/>'
                f'<text x="{195 + width:.1f}" y="{y + 11}">{name} {rate:.2f}</text>'
            )
        at += 14 * len(names) + 12
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12"'
    title = '<text x="10" y="16">Gbit/s of WireGuard messages, median (higher is better)</text>'
    return f'<svg {style} width="900" height="{at}">{title}{"".join(rows)}</svg>\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    asked = parser.parse_args()
    for name in ("drive", "limit"):
        if not build(name):
            raise SystemExit(f"cc can't build bench/{name}.c: apt-get install gcc libc6-dev")
    found, missing = tools()
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two processor cores are needed")
    results: dict[str, dict[str, object]] = {}
    for case in CASES:
        if asked.only not in case.name:
            continue
        rounds = []
        for n in range(asked.rounds):
            # Forwards and backwards in turn: no tool always has the same neighbour.
            order = list(found.items())[:: 1 if n % 2 == 0 else -1]
            one = {name: measure(start, case) for name, start in order}
            rounds.append({name: one[name] for name in found})
        results[case.name] = show(case, rounds)
    (HERE / "results.json").write_text(
        json.dumps({"missing": missing, "cases": results}, indent=1) + "\n"
    )
    (HERE / "results.svg").write_text(plot(results, list(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
