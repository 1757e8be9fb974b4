"""How long a rogue frame's machine lives: from the frame on the NIC's socket to QEMU reaped.

200 kills of a stand-in that ignores everything, in QEMU's place in the jail, by a relay's word; 20
kills of real machines by their supervisor, from the relay's reading of the frame. And what seal and
jail add to a start. Milliseconds, p50 and p99; run by ``make bench``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wgcell.cell.children import RelayProcess
from wgcell.relay import control
from wgcell.relay.framing import prefixed
from wgcell.relay.seal import unprivileged_id
from wgcell.vm.sandbox.jail import bwrap_argv, closed_filter, find_jail

STAND_INS, MACHINES, STARTS = 200, 20, 15
IGNORES = "$SIG{$_} = 'IGNORE' for grep { !/KILL|STOP/ } keys %SIG; sleep 60 while 1;"
ROGUE = prefixed(bytes.fromhex("ffffffffffff0277670000020806") + bytes(46))
CONFIGURATION = control.Configure(bytes(32), bytes(32), mtu=1420)


def percentiles(name: str, seconds: list[float], goal: str) -> dict[str, float]:
    ordered = sorted(1000 * value for value in seconds)
    p50, p99 = statistics.median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    print(f"{name:<44} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   n {len(ordered):>3}   {goal}")
    return {"p50": p50, "p99": p99, "n": len(ordered)}


async def one_stand_in() -> tuple[float, int]:
    """One kill; seconds, and how many datagrams the endpoint saw."""
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.bind(("127.0.0.1", 0))
    endpoint.setblocking(False)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(endpoint.getsockname())
    nic, ours = socket.socketpair()
    relay = await RelayProcess.start(nic, udp, CONFIGURATION)
    jail = find_jail(unprivileged_id("x-0000aa"), None)
    info, told = os.pipe()
    filter_fd = closed_filter()
    argv = ["/usr/bin/perl", "-e", IGNORES]
    become = {}
    if jail.bwrap is not None:
        argv = bwrap_argv(jail, argv, filter_fd=filter_fd, info_fd=told, device=None)
        become = {} if jail.user is None else {"user": jail.user, "group": jail.user}
    stand_in = subprocess.Popen(argv, pass_fds=(filter_fd, told), cwd="/", **become)
    os.close(told)
    os.close(filter_fd)
    with os.fdopen(info) as file:
        said = file.read()
    inner = json.loads(said)["child-pid"] if jail.bwrap else stand_in.pid
    pidfds = [os.pidfd_open(pid) for pid in (inner, stand_in.pid)]
    await asyncio.sleep(0.03)
    events = relay.events()
    started = time.monotonic()
    ours.send(ROGUE + ROGUE)
    async for event in events:
        if isinstance(event, control.Rogue):
            break
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    stand_in.wait()
    taken = time.monotonic() - started
    for pidfd in pidfds:
        os.close(pidfd)
    await relay.quit()
    relay.close()
    seen = 0
    with contextlib.suppress(BlockingIOError):
        while endpoint.recv(2000):
            seen += 1
    ours.close()
    endpoint.close()
    return taken, seen


def machines() -> list[float]:
    """Real cells that send a rogue frame: from the relay's report to the machine reaped."""
    taken = []
    demo = Path(__file__).parents[1] / "demo" / "compromised.py"
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(MACHINES):
            argv = [sys.executable, "-P", "-m", "wgcell", "run", "--state-dir", temporary]
            argv += ["--guest-walls", "off", "--input", str(demo)]
            subprocess.run(
                [*argv, "--", "python3", "compromised.py"], capture_output=True, check=False
            )
            newest = max(Path(temporary).iterdir(), key=lambda path: path.stat().st_mtime)
            result = json.loads((newest / "result.json").read_text())
            if result["outcome"] != "rogue":
                raise SystemExit(f"a cell ended as {result['outcome']}: {result['reason']}")
            taken.append(float(result["killed_after"]))
    return taken


async def starts() -> tuple[list[float], list[float]]:
    """A relay and a jailed program, and both without their walls: what the walls cost together."""
    walls, bare = [], []
    for _ in range(STARTS):
        for sealed, kept in ((True, walls), (False, bare)):
            nic, ours = socket.socketpair()
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.connect(("127.0.0.1", 9))
            started = time.monotonic()
            relay = await RelayProcess.start(nic, udp, CONFIGURATION, sealed=sealed)
            argv = ["/usr/bin/true"]
            fds: tuple[int, ...] = ()
            if sealed:
                jail = find_jail(None, None)
                fds = (closed_filter(), os.memfd_create("info"))
                argv = bwrap_argv(jail, argv, filter_fd=fds[0], info_fd=fds[1], device=None)
            subprocess.run(argv, pass_fds=fds, check=True, cwd="/")
            kept.append(time.monotonic() - started)
            for fd in fds:
                os.close(fd)
            await relay.quit()
            relay.close()
            ours.close()
    return walls, bare


async def main() -> int:
    killed = [await one_stand_in() for _ in range(STAND_INS)]
    figures = {
        "stand_in": percentiles(
            "rogue frame to a stand-in reaped", [k for k, _ in killed], "goal: 5 and 50 ms"
        )
    }
    leaked = sum(seen for _, seen in killed)
    print(f"{'datagrams forwarded after a rogue frame':<44} {leaked}   goal: 0")
    figures["machine"] = percentiles("rogue frame to QEMU reaped", machines(), "goal: 5 and 50 ms")
    walls, bare = await starts()
    cost = 1000 * (statistics.median(walls) - statistics.median(bare))
    print(f"{'seal and jail, added to a start':<44} {cost:.0f} ms   goal: under 150 ms")
    print(json.dumps({**figures, "leaked": leaked, "walls_cost_ms": cost}))
    return 1 if leaked else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
