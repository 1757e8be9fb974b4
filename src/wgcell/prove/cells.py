"""The battery from within real VMs: whole cells, brought up by the supervisor, on the `ground`.

The kinds of boot, and what each shows:

- *control*: every wall of the guest's down and an `OpenedRelay` in the relay's place. Each probe
  must be seen by the captures; a probe that is not proves nothing in any other boot.
- *relay alone*: every wall of the guest's down, the real relay. One boot a case that must kill;
  one for all cases together that the cell survives.
- *guest alone*: the guest's walls up, an `OpenedRelay` behind them. The workload is root, and
  plays everything at once; nothing of it may reach the captures.
- *first instruction*: the guest's init replaced by one that turns ARP on and asks for DHCP.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from wgcell.cell import consent
from wgcell.cell.children import RelayProcess
from wgcell.cell.folder import create
from wgcell.cell.job import Job
from wgcell.cell.supervisor import Supervisor, Surroundings
from wgcell.cell.wgquick import VpnConfig
from wgcell.image import store
from wgcell.machine.accelerator import choose
from wgcell.machine.argv import Accelerator
from wgcell.machine.process import find_qemu
from wgcell.prove.battery import CASES, MTU, Case, Play
from wgcell.prove.bypass import BYPASSES, Bypass
from wgcell.prove.ground import ENDPOINT, HOST, PORT, Ground
from wgcell.prove.opened import OpenedRelay
from wgcell.prove.oracle import Packet, is_port_unreachable, shown, tunnel_payload
from wgcell.prove.verdict import Observation, Phase, Result, Verdict, judge
from wgcell.relay import link

__all__ = ["BYPASSES", "Boot", "Machines", "find", "plan", "play_all"]

_HOST = socket.inet_aton(HOST)
_GATEWAY = frozenset({link.GATEWAY_ADDRESS})
_TUNNEL = (ip_interface("10.99.0.2/32"),)
_CARRIED = ("prove", "relay", "wire")
KILLS = (
    *("lan-ping", "lan-right-but-address", "vlan", "source-mac-foreign", "arp-scan", "dhcp"),
    *("ipv6-rs", "fragment-first", "tcp-endpoint", "initiation-mac1", "counter-absurd"),
)
"""The frames that get a VM each in the default form; every one does in the long form."""
_NO_CARD_SENDS = ("runt",)
"""A guest's own kernel refuses these, so only the quick form can play them."""
_FIRST_INSTRUCTION = "init-replaced"
_INIT = b"""#!/bin/sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for list in /modules/early /modules/late; do
    read -r names <$list
    modprobe -a $names
done
ip link set eth0 up
while :; do
    udhcpc -i eth0 -n -q -t 2 -T 1 -s /bin/true
    arping -c 1 -I eth0 192.0.2.10
    sleep 1
done
"""


@dataclass(frozen=True, slots=True)
class Machines:
    """What VMs are made of here. ``every``: each case that kills gets a boot of its own."""

    image: store.Image
    accelerator: Accelerator
    reason: str
    every: bool = False

    def facts(self) -> list[tuple[str, str]]:
        """For the report."""
        accelerator = f"{self.accelerator.value} ({self.accelerator.assurance})"
        kernel = self.image.manifest.get("kernel_version", "?")
        return [
            ("accelerator", f"{accelerator}: {self.reason}"),
            ("image", f"{self.image.name}, kernel {kernel}"),
        ]


def find(*, every: bool) -> Machines:
    """The stock image and what can run it. Raises HostError naming the mend."""
    image = store.load("debian")
    accelerator, reason = choose(find_qemu(), image.kernel, store.cache_folder().parent)
    return Machines(image, accelerator, reason, every)


@dataclass(frozen=True, slots=True)
class Boot:
    """One VM. ``opened``: an `OpenedRelay` behind it; ``walls``: the guest's own are up."""

    name: str
    cases: tuple[Case | Bypass, ...]
    opened: bool = False
    walls: bool = False
    hostile_init: bool = False


def plan(machines: Machines, only: Sequence[str] = ()) -> list[Boot]:
    """The boots, the control first."""
    frames = [
        case
        for case in CASES
        if case.play is Play.FRAMES
        and Phase.RUNNING in case.phases
        and not case.wait
        and case.name not in _NO_CARD_SENDS
    ]
    every: list[Case | Bypass] = [*frames, *BYPASSES]
    if only:
        every = [case for case in every if case.name in only]
    kills = [
        case
        for case in every
        if case.verdict is Verdict.KILL
        and (machines.every or only or isinstance(case, Bypass) or case.name in KILLS)
    ]
    # A message far ahead makes the guest's own come too late, so that case is the last.
    lives = [case for case in every if case.verdict is not Verdict.KILL]
    lives.sort(key=lambda case: case.name == "counter-behind")
    outward = [case for case in every if case.verdict is not Verdict.PASS]
    boots = [Boot("control: every wall down", tuple(outward), opened=True)] if outward else []
    if outward:
        boots.append(Boot("the guest's walls alone", tuple(outward), opened=True, walls=True))
    if lives:
        boots.append(Boot("what the cell survives", tuple(lives)))
    if not only:
        boots.append(Boot("from the first instruction", (), hostile_init=True))
    return [*boots, *(Boot(case.name, (case,)) for case in kills)]


@dataclass(slots=True)
class _Seen:
    """What one boot left to look at."""

    packets: list[Packet] = field(default_factory=list)
    lost: int = 0
    marks: dict[str, list[bytes]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    done: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def carried(self, mark: bytes) -> bool:
        """Whether a packet on its way out holds ``mark``."""
        return any(packet.out and mark in packet.data for packet in self.packets)

    def strays(self, *, opened: bool = False) -> list[str]:
        """Packets on their way out that are not WireGuard to the endpoint.

        ``opened``: nor the guest's own WireGuard frames, which an `OpenedRelay` puts on the wire
        as they are.
        """
        return shown(
            packet
            for packet in self.packets
            if packet.out
            and not _is_wireguard(packet.tunnel)
            and not (opened and _is_wireguard(tunnel_payload(packet.data, _GATEWAY, PORT)))
            and not is_port_unreachable(packet.data, _HOST)
        )


def _is_wireguard(payload: bytes | None) -> bool:
    if payload is None or len(payload) < 32 or payload[1:4] != bytes(3):
        return False
    return {1: len(payload) == 148, 2: len(payload) == 92, 3: len(payload) == 64, 4: True}.get(
        payload[0], False
    )


def _carry(folder: Path) -> Path:
    """The package, as far as the player needs it: what imports nothing but the standard library."""
    target = folder / "wgcell"
    for room in _CARRIED:
        (target / room).mkdir(parents=True)
        for source in files("wgcell").joinpath(room).iterdir():
            if source.name.endswith(".py"):
                (target / room / source.name).write_bytes(source.read_bytes())
        (target / room / "__init__.py").write_text("")
    (target / "__init__.py").write_text("")
    return target


def _newc(name: str, data: bytes, mode: int = 0o100755) -> bytes:
    """One file as a cpio archive (newc), which the kernel unpacks over the image's own."""

    def entry(name: str, data: bytes, mode: int) -> bytes:
        numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

    return entry(name, data, mode) + entry("TRAILER!!!", b"", 0)


def _hostile(image: store.Image, folder: Path) -> store.Image:
    made = folder / "hostile"
    made.mkdir()
    for name in ("kernel", "rootfs"):
        (made / name).symlink_to(image.folder / name)
    (made / "initramfs").write_bytes(image.initramfs.read_bytes() + _newc("init", _INIT))
    return store.Image("hostile", made, image.manifest)


async def _boot(ground: Ground, machines: Machines, boot: Boot) -> _Seen:
    """One cell's whole life."""
    seen = _Seen()
    began = time.monotonic()
    ground.collect()
    ground.lost()
    with tempfile.TemporaryDirectory(prefix="wgcell-prove-") as temporary:
        folder = Path(temporary)
        key = ground.next_key()
        orders = {
            "guest_key": consent.public_key(key).hex(),
            "endpoint_key": ground.endpoint_public_key().hex(),
            "host": HOST,
            "cases": [case.name for case in boot.cases],
            "sniff": not boot.walls,
            "pause": 0.02 if len(boot.cases) > 1 else 0.3,
            "stay": 2.0 if len(boot.cases) > 1 else 8.0,
        }
        (folder / "orders.json").write_text(json.dumps(orders))
        job = Job(
            name="prove",
            command=("python3", "-m", "wgcell.prove.player", "orders.json"),
            image=machines.image.name,
            inputs=(_carry(folder), folder / "orders.json"),
            outputs=(),
            timeout=120.0,
            env=(),
            cpus=1,
            memory=256 << 20,
            disk=64 << 20,
            vpn=None,
            gateway=None,
            guest_walls=boot.walls,
        )
        vpn = VpnConfig(
            private_key=key,
            peer_public_key=ground.endpoint_public_key(),
            endpoint_host=ENDPOINT,
            endpoint_port=PORT,
            addresses=_TUNNEL,
            allowed_ips=(ip_network("0.0.0.0/0"),),
            mtu=MTU,
        )
        image = _hostile(machines.image, folder) if boot.hostile_init else machines.image
        host, port = ground.endpoint
        around = Surroundings(
            create(folder, "prove"), image, machines.accelerator, machines.reason, vpn, host, port
        )
        words = bytearray()
        supervisor = Supervisor(
            job,
            around,
            tell=lambda event: None,
            stdout=words.extend,
            stderr=lambda data: seen.words.append(data.decode("utf-8", "replace")),
            spawn_relay=_opened(ground) if boot.opened else RelayProcess.spawn,
        )
        looking = asyncio.create_task(_look(ground, seen))
        seen.result = await supervisor.run()
        await asyncio.sleep(0.1)
        looking.cancel()
        seen.packets += ground.collect()
        seen.lost = ground.lost()
    for line in bytes(words).splitlines():
        _hear(line, seen)
    seen.seconds = time.monotonic() - began
    return seen


def _opened(ground: Ground) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def spawn(nic: socket.socket, udp: socket.socket, cell: str) -> OpenedRelay:
        return OpenedRelay(nic, udp.dup(), ground.wire)

    return spawn


async def _look(ground: Ground, seen: _Seen) -> None:
    """Empty the captures while the cell lives, so that they never overflow."""
    while True:
        seen.packets += ground.collect()
        await asyncio.sleep(0.05)


def _hear(line: bytes, seen: _Seen) -> None:
    """A line of the player's. It is the guest's, so anything may stand in it."""
    try:
        said = json.loads(line)
        if not isinstance(said, dict):
            return
        if "marks" in said:
            seen.marks[str(said["case"])] = [bytes.fromhex(mark) for mark in said["marks"]]
        elif said.get("done") is True:
            seen.done = True
        else:
            seen.words.append(str(said)[:200])
    except (ValueError, TypeError, KeyError):
        seen.words.append(repr(line[:200]))


async def play_all(
    ground: Ground, machines: Machines, boots: Sequence[Boot]
) -> AsyncIterator[tuple[str, list[Result]]]:
    """Every boot in turn, each with its results; the control's are used by those that follow."""
    controls: dict[str, bool] = {}
    for boot in boots:
        seen = await _boot(ground, machines, boot)
        if boot.opened and not boot.walls:
            for case in boot.cases:
                marks = seen.marks.get(case.name, [])
                controls[case.name] = bool(marks) and all(map(seen.carried, marks))
            yield boot.name, []
        elif boot.hostile_init:
            yield boot.name, [_first_instruction(seen)]
        else:
            yield boot.name, [_one(boot, case, seen, controls) for case in boot.cases]


def _one(boot: Boot, case: Case | Bypass, seen: _Seen, controls: dict[str, bool]) -> Result:
    """What one boot says of one of its cases."""
    due = Verdict.DROP if boot.walls and case.verdict is Verdict.KILL else case.verdict
    marks = seen.marks.get(case.name, [])
    # Of a boot with many cases a stray packet is the first one's, lest it be counted for each.
    leaks = seen.strays(opened=boot.opened) if case is boot.cases[0] else []
    # A duplicate of what passed once differs in nothing but its number, which quick counts.
    if due is not Verdict.PASS and case.name != "counter-again":
        leaks += [f"seen outside: {mark.hex()}" for mark in marks if seen.carried(mark)]
    outcome = seen.result.get("outcome")
    control = None if due is Verdict.PASS else controls.get(case.name, False)
    observation = Observation(
        leaks=tuple(leaks),
        cut=outcome == "rogue",
        alive=seen.done and outcome == "completed",
        arrived=due is Verdict.PASS and bool(marks) and all(map(seen.carried, marks)),
        lost=seen.lost,
        control=control and bool(marks),
        said=str(seen.result.get("reason") or ", ".join(_refused(seen))),
        seconds=seen.seconds / len(boot.cases),
        frames=max(len(marks), 1),
    )
    wall = "guest's firewall and namespace, alone" if boot.walls else "relay, with a VM before it"
    status, why = judge(due, Phase.RUNNING, observation, control_asked=due is not Verdict.PASS)
    return Result(
        case.name, case.group, case.does, wall, Phase.RUNNING, due, status, why, observation
    )


def _refused(seen: _Seen) -> list[str]:
    return [
        f"{reason} x{n}" for reason, n in seen.result.get("relay", {}).get("refused", {}).items()
    ]


def _first_instruction(seen: _Seen) -> Result:
    ended = seen.result.get("outcome")
    observation = Observation(
        leaks=tuple(seen.strays()),
        cut=ended in ("rogue", "guest_fault", "unverified"),
        lost=seen.lost,
        control=True,
        said=str(seen.result.get("reason")),
        seconds=seen.seconds,
    )
    status, why = judge(Verdict.KILL, Phase.BOOT, observation)
    return Result(
        _FIRST_INSTRUCTION,
        "bypass",
        "boots an init of its own, which turns ARP on and asks for DHCP",
        "relay, with a VM before it",
        Phase.BOOT,
        Verdict.KILL,
        status,
        why,
        observation,
    )
