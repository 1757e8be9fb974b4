"""The whole path with a real VM: a transfer each way through the tunnel, by the guest's clock.

::

    python3 in a guest -- wg0 -- eth0 --- stream socket --- the tool under test --- UDP on lo
                                                                                      |
                                      a TCP server --- the embedded gateway, 51820 ---+

The same guest, accelerator, gateway and bytes, the tools taking turns: wgcell's sealed relay;
libslirp, which is QEMU's ``-netdev user``, in a process of its own; passt. The guest's tunnel is
verified by the relay alone; the others are taken at their word. All of it in a network namespace,
passt in one more behind a veth: it sends from the guest's own port, which is the gateway's, too.
Medians of the rates, and of each round's ratio. Adds to ``bench/results.json``. Run by ``make
bench``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

from relay import HERE, build, passt_argv, slirp_argv
from wgcell import api
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.job import Job
from wgcell.cell.states import Outcome
from wgcell.cell.wgquick import VpnConfig
from wgcell.gateway import words
from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key
from wgcell.image import store
from wgcell.relay import control, link

ROUNDS = 7
BYTES = 16 << 20
INSIDE, DOWN, UP = "10.99.0.5", 81, 82
SERVER = f"""
import socket, threading
def serve(listening, download):
    while True:
        stream, _ = listening.accept()
        with stream:
            if download:
                stream.sendall(bytes({BYTES}))
                continue
            left = {BYTES}
            while left > 0:
                left -= len(stream.recv(1 << 18)) or left
            stream.sendall(b"k")
made = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for listening, download in zip(made, (True, False)):
    threading.Thread(target=serve, args=(listening, download)).start()
print(*(listening.getsockname()[1] for listening in made), flush=True)
"""
GUEST = f"""
import socket, time
def seconds(port, transfer):
    begun = time.monotonic()
    with socket.create_connection(("{INSIDE}", port)) as stream:
        transfer(stream)
    print(time.monotonic() - begun, flush=True)
def download(stream):
    left = {BYTES}
    while left > 0:
        left -= len(stream.recv(1 << 18)) or exit("the download broke off")
def upload(stream):
    for _ in range({BYTES} >> 16):
        stream.sendall(bytes(1 << 16))
    stream.recv(1) or exit("the upload broke off")
seconds({DOWN}, download)
seconds({UP}, upload)
"""


class Tool:
    """Another tool in the relay's place, with the shape that a supervisor wants."""

    sealed = False
    missing: Mapping[str, str] = MappingProxyType({"relay": "another tool in its place"})

    def __init__(self, argv: Callable[[int], list[str]], nic: socket.socket) -> None:
        quiet = subprocess.DEVNULL
        command, fds = argv(nic.fileno()), (nic.fileno(),)
        self._process = subprocess.Popen(command, pass_fds=fds, stdout=quiet, stderr=quiet)
        nic.close()
        self._events: asyncio.Queue[control.Event | None] = asyncio.Queue()

    async def configure(self, configuration: Mapping[str, Any]) -> None:
        verified = control.Verified()
        asyncio.get_running_loop().call_later(2.0, self._events.put_nowait, verified)

    def tell(self, command: str, **fields: Any) -> None:
        """No command means anything here."""

    def replace_udp(self, fresh: socket.socket, *, met: bool) -> None:
        fresh.close()

    async def events(self) -> AsyncIterator[control.Event]:
        while (event := await self._events.get()) is not None:
            yield event

    async def quit(self) -> int:
        self._process.kill()
        self._events.put_nowait(None)
        return self._process.wait()

    def close(self) -> None:
        """Nothing is left to close."""


def spawner(argv: Callable[[int], list[str]]) -> Callable[..., Any]:
    async def spawn(nic: socket.socket, udp: socket.socket, cell: str, fuse: Any) -> Tool:
        return Tool(argv, nic)

    return spawn


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


@contextlib.contextmanager
def beyond_a_veth() -> Iterator[tuple[str, ...]]:
    """The command that runs another in a namespace from which the link's gateway is this one."""
    kept = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo made; exec sleep 86400"], stdout=subprocess.PIPE
    )
    try:
        kept.stdout.readline() if kept.stdout else None
        inside = ("nsenter", f"--net=/proc/{kept.pid}/ns/net")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bench0", "type", "veth", "peer", "bench1", "netns", str(kept.pid))
        run("ip", "addr", "add", "192.168.64.1/24", "dev", "bench0")
        run("ip", "link", "set", "bench0", "up")
        run(*inside, "ip", "addr", "add", "192.168.64.9/24", "dev", "bench1")
        run(*inside, "ip", "link", "set", "bench1", "up")
        run(*inside, "ip", "route", "add", "default", "via", "192.168.64.1")
        yield inside
    finally:
        kept.kill()
        kept.communicate()


def tools(inside: tuple[str, ...]) -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """What can be run here, and why the rest can't."""
    found: dict[str, Callable[..., Any]] = {"wgcell": RelayProcess.spawn}
    missing = {}
    if build("slirp", "-l:libslirp.so.0"):
        found["libslirp"] = spawner(slirp_argv)
    else:
        missing["libslirp"] = "not installed: apt-get install libslirp0"
    if shutil.which("passt"):
        found["passt"] = spawner(lambda nic: [*inside, *passt_argv(nic), "--no-map-gw"])
    else:
        missing["passt"] = "not installed: apt-get install passt"
    return found, missing


async def measure(spawn: Callable[..., Any], keys: tuple[str, str], folder: Path) -> list[float]:
    """Megabits a second, down and up, of one cell."""
    ours, theirs = keys
    job = Job(
        name="bench",
        command=("python3", "-c", GUEST),
        image="debian",
        inputs=(),
        outputs=(),
        timeout=300.0,
        env=(),
        cpus=1,
        memory=512 << 20,
        disk=64 << 20,
        vpn=None,
        gateway=None,
    )
    vpn = VpnConfig(
        private_key=decode_key(ours),
        peer_public_key=decode_key(public_key(theirs)),
        endpoint_host="127.0.0.1",
        endpoint_port=link.PORT,
        addresses=(ip_interface("10.99.0.2/32"),),
        allowed_ips=(ip_network("0.0.0.0/0"),),
        mtu=1420,
    )
    said = bytearray()
    on = api.platform(store.load(api.STOCK_IMAGE))
    with api.Cell(api.Plan(job, on, vpn, (ip_address("127.0.0.1"),)), folder) as cell:
        result = await cell.run(stdout=said.extend, stderr=said.extend, spawn_relay=spawn)
    if result.outcome is not Outcome.COMPLETED or result.exit_code:
        raise SystemExit(f"{result.outcome.value}: {result.reason}\n{said.decode()}")
    return [BYTES * 8 / 1e6 / float(line) for line in said.split()]


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    with beyond_a_veth() as inside:
        return await bench(asked.rounds, *tools(inside))


async def bench(count: int, found: dict[str, Callable[..., Any]], missing: dict[str, str]) -> int:
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    keys = generate_private_key(), generate_private_key()
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    down, up = server.stdout.readline().split() if server.stdout else ("", "")
    gateway = await GatewayProcess.start(
        words.Configure(
            # Where the other tools lead the guest's link: the same port, on this machine.
            listen=f"0.0.0.0:{link.PORT}",
            private_key=keys[1],
            services={
                f"{INSIDE}:{DOWN}": f"127.0.0.1:{down}",
                f"{INSIDE}:{UP}": f"127.0.0.1:{up}",
            },
            peers={"cell": words.Peer(public_key(keys[0]), "10.99.0.2")},
        )
    )
    rounds: list[dict[str, list[float]]] = []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for n in range(count):
                order = list(found.items())[:: 1 if n % 2 == 0 else -1]
                one = {name: await measure(spawn, keys, Path(temporary)) for name, spawn in order}
                rounds.append({name: one[name] for name in found})
    finally:
        await gateway.quit()
        server.kill()
        server.communicate()
    results: dict[str, Any] = {"missing": missing, "rounds": rounds}
    for at, way in enumerate(("download", "upload")):
        print(f"\nthrough a real VM, {way}")
        for name in found:
            print(f"  {name:<9} {statistics.median(one[name][at] for one in rounds):6.1f} Mbit/s")
        for name in list(found)[1:]:
            ratios = sorted(one["wgcell"][at] / one[name][at] for one in rounds)
            middle = statistics.median(ratios)
            results[f"{way} {name}"] = [ratios[0], middle, ratios[-1]]
            met = "met" if middle >= 1 else "MISSED"
            spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"    {middle:.2f} x {name} {spread}   goal 1: {met}")
    kept = HERE / "results.json"
    whole = json.loads(kept.read_text()) if kept.exists() else {}
    kept.write_text(json.dumps(whole | {"path": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[-1] != "inside":
        right = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        here = (sys.executable, *sys.argv, "inside")
        sys.exit(subprocess.run(("unshare", *right, "--net", "--", *here), check=False).returncode)
    sys.argv.pop()
    sys.exit(asyncio.run(main()))
