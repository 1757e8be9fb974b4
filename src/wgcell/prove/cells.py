"""The battery from within real VMs: whole cells, brought up by the supervisor, on the `ground`.

The kinds of boot, and what each shows:

- *control*: every wall of the guest's down and an `OpenedRelay` in the relay's place. Each probe
  must be seen by the captures; a probe that is not proves nothing in any other boot.
- *relay alone*: every wall of the guest's down, the real relay. One boot a case that must kill;
  one for all cases together that the cell survives.
- *the guest's walls*, all of them and then each alone: an `OpenedRelay` behind them. The workload
  is root, and plays everything at once that this wall must stop; nothing of it may be captured.
- *first instruction*: the guest's init replaced by one that turns ARP on and asks for DHCP; the
  opened relay lets the captures see it, the real one must not.
- *tampering* (`hostile`): the guest's walls or their watcher taken down from within, or forged.
- *exhaustion* (`exhaustion`): all that can be taken, while another cell's relay must go on.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from wgcell import api
from wgcell.cell import consent
from wgcell.cell.inputs import Input
from wgcell.cell.job import Job
from wgcell.cell.wgquick import VpnConfig
from wgcell.guest.walls import Wall
from wgcell.image import store
from wgcell.prove.battery import CASES, MTU, Case, Play
from wgcell.prove.bypass import BYPASSES, Bypass
from wgcell.prove.exhaustion import EXHAUSTIONS, Exhaustion
from wgcell.prove.ground import HOST, PORT, Ground
from wgcell.prove.hostile import HONEST, SABOTAGES, Sabotage, forged_report, laid_over
from wgcell.prove.opened import OpenedRelay
from wgcell.prove.oracle import Packet, is_port_unreachable, shown, tunnel_payload
from wgcell.prove.quick import Stand
from wgcell.prove.toll import DISK, MEMORY, Meter, Toll
from wgcell.prove.verdict import Observation, Phase, Result, Verdict, judge
from wgcell.relay import link

__all__ = ["Boot", "Machines", "find", "names", "plan", "play_all"]

_HOST = socket.inet_aton(HOST)
_GATEWAY = frozenset({link.GATEWAY_ADDRESS})
_TUNNEL = (ip_interface("10.99.0.2/32"),)
_CARRIED = ("guest", "prove", "relay", "wire")
KILLS = (
    *("lan-ping", "lan-right-but-address", "vlan", "source-mac-foreign", "arp-scan", "dhcp"),
    *("ipv6-rs", "fragment-first", "tcp-endpoint", "initiation-mac1", "counter-absurd"),
)
"""The frames that get a VM each in the default form; every one does in the long form."""
_NO_CARD_SENDS = ("runt",)
"""A guest's own kernel refuses these, so only the quick form can play them."""
_VERIFY_WITHIN = 30.0
"""Seconds that a guest gets which will never be verified."""
_EVERY_WALL = frozenset(Wall)
_RELAY = "relay, with a VM before it"
_WATCH = "supervisor, watching the guest"
_BOUNDS = "bounds of the cell, with a VM in it"


@dataclass(frozen=True, slots=True)
class Machines:
    """What VMs are made of here. ``every``: each case that kills gets a boot of its own."""

    platform: api.Platform
    every: bool = False

    def facts(self) -> list[tuple[str, str]]:
        """For the report."""
        image, accelerator = self.platform.image, self.platform.accelerator
        kernel = image.manifest.get("kernel_version", "?")
        return [
            (
                "accelerator",
                f"{accelerator.value} ({accelerator.assurance}): {self.platform.reason}",
            ),
            ("image", f"{image.name}, kernel {kernel}"),
        ]


def find(*, every: bool) -> Machines:
    """The stock image and what can run it. Raises HostError naming the hint."""
    return Machines(api.platform(store.load(api.STOCK_IMAGE)), every)


AnyCase = Case | Bypass | Sabotage | Exhaustion


@dataclass(frozen=True, slots=True)
class Boot:
    """One VM. ``opened``: an `OpenedRelay` behind it; ``walls``: the guest's that are up."""

    name: str
    cases: tuple[AnyCase, ...]
    opened: bool = False
    walls: frozenset[Wall] = frozenset()

    @property
    def sabotage(self) -> Sabotage | None:
        """What its first process does, if that is not the stock one."""
        return next((case for case in self.cases if isinstance(case, Sabotage)), None)

    @property
    def exhaustion(self) -> Exhaustion | None:
        """What it takes all of, if it does."""
        return next((case for case in self.cases if isinstance(case, Exhaustion)), None)


def names() -> list[AnyCase]:
    """Every case there is for a VM and not for the quick form."""
    return [*BYPASSES, *SABOTAGES, *EXHAUSTIONS]


def plan(machines: Machines, only: Sequence[str] = ()) -> list[Boot]:
    """The boots, each control before what it is the control of."""

    def chosen(cases: Sequence[AnyCase]) -> list[AnyCase]:
        return [case for case in cases if not only or case.name in only]

    frames = [
        case
        for case in CASES
        if case.play is Play.FRAMES
        and Phase.RUNNING in case.phases
        and not case.wait
        and case.name not in _NO_CARD_SENDS
    ]
    every = chosen([*frames, *BYPASSES])
    kills = [
        case
        for case in every
        if case.verdict is Verdict.KILL
        and (machines.every or only or isinstance(case, Bypass) or case.name in KILLS)
    ]
    # A message far ahead makes the guest's own come too late, so that case is the last.
    lives = [case for case in every if case.verdict is not Verdict.KILL]
    lives.sort(key=lambda case: case.name == "counter-behind")
    outward = tuple(case for case in every if case.verdict is not Verdict.PASS)
    boots = []
    if outward:
        boots.append(Boot("control: every wall down", outward, opened=True))
        boots.append(Boot("the guest's walls", outward, opened=True, walls=_EVERY_WALL))
        for wall in Wall:
            mine = tuple(case for case in outward if _stopped_by(case, wall))
            name = f"the guest's {wall.value} alone"
            boots += [Boot(name, mine, opened=True, walls=frozenset({wall}))] if mine else []
    if lives:
        boots.append(Boot("what the cell survives", tuple(lives)))
    boots += [Boot(case.name, (case,)) for case in kills]
    sabotages = [
        case
        for case in chosen(SABOTAGES)
        if isinstance(case, Sabotage) and (machines.every or only or not case.long)
    ]
    if any(not case.mark for case in sabotages):
        boots.append(Boot("control: no sabotage", (HONEST,), walls=_EVERY_WALL))
    for case in sabotages:
        if case.mark:
            boots.append(Boot(f"control: {case.name}", (case,), opened=True))
        boots.append(Boot(case.name, (case,), walls=_EVERY_WALL))
    return [*boots, *(Boot(case.name, (case,)) for case in chosen(EXHAUSTIONS))]


def _stopped_by(case: AnyCase, wall: Wall) -> bool:
    """Whether this wall of the guest's, alone, must stop it.

    A raw socket's frames pass no firewall; that no raw socket can be had is the others' work.
    """
    return wall in case.alone if isinstance(case, Bypass) else wall is not Wall.FIREWALL


@dataclass(slots=True)
class _Seen:
    """What one boot left to look at."""

    packets: list[Packet] = field(default_factory=list)
    lost: int = 0
    marks: dict[str, list[bytes]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    done: bool = False
    result: api.Result | None = None
    seconds: float = 0.0
    toll: Toll = field(default_factory=Toll)

    def ended_as(self) -> str:
        """The cell's outcome."""
        return "" if self.result is None else self.result.outcome.value

    def said(self) -> str:
        """Why the cell ended."""
        return "" if self.result is None else self.result.reason

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


def _altered(image: store.Image, folder: Path, laid: bytes) -> store.Image:
    """The image with files laid over its initramfs."""
    made = folder / "hostile"
    made.mkdir()
    for name in ("kernel", "rootfs"):
        (made / name).symlink_to(image.folder / name)
    # A copy: what is recorded of a cell is opened without following links.
    (made / "manifest.json").write_bytes((image.folder / "manifest.json").read_bytes())
    (made / "initramfs").write_bytes(image.initramfs.read_bytes() + laid)
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
            "cases": [case.name for case in boot.cases if not isinstance(case, Sabotage)],
            "sniff": not boot.walls and boot.sabotage is None,
            "pause": 0.02 if len(boot.cases) > 1 else 0.3,
            "stay": _stay(boot),
        }
        (folder / "orders.json").write_text(json.dumps(orders))
        job = Job(
            name="prove",
            command=("python3", "-m", "wgcell.prove.player", "orders.json"),
            image=machines.platform.image.name,
            inputs=(Input(_carry(folder)), Input(folder / "orders.json")),
            outputs=(),
            timeout=120.0,
            env=(),
            cpus=1,
            memory=MEMORY,
            disk=DISK,
            vpn=None,
            gateway=None,
            guest_walls=boot.walls,
            verify_timeout=_VERIFY_WITHIN if boot.sabotage is not None else None,
        )
        host, port = ground.endpoint
        vpn = VpnConfig(
            private_key=key,
            peer_public_key=ground.endpoint_public_key(),
            endpoint_host=host,
            endpoint_port=port,
            addresses=_TUNNEL,
            allowed_ips=(ip_network("0.0.0.0/0"),),
            mtu=MTU,
        )
        on = machines.platform
        if boot.sabotage is not None:
            forged = forged_report(ground.endpoint_public_key(), "0.0.0.0/0", vpn.keepalive)
            on = replace(on, image=_altered(on.image, folder, laid_over(boot.sabotage, forged)))
        words = bytearray()
        over = asyncio.Event()
        looks = [_look(ground, seen, over)]
        with api.Cell(api.Plan(job, on, vpn, (ip_address(host),)), folder) as cell:
            if boot.exhaustion is not None:
                looks.append(_measure(Meter(cell.folder.path, seen.toll), over))
                looks.append(_neighbour(ground, seen, over))
            if boot.sabotage is not None and boot.opened:
                looks.append(_end_when_seen(cell, boot.sabotage, seen, over))
            looking = [asyncio.create_task(look) for look in looks]
            seen.result = await cell.run(
                stdout=words.extend,
                stderr=lambda data: seen.words.append(data.decode("utf-8", "replace")),
                spawn_relay=_opened(ground) if boot.opened else None,
            )
        await asyncio.sleep(0.1)
        over.set()
        await asyncio.gather(*looking)
        seen.lost = ground.lost()
    for line in bytes(words).splitlines():
        _hear(line, seen)
    seen.seconds = time.monotonic() - began
    return seen


def _opened(ground: Ground) -> Callable[..., Coroutine[object, None, Any]]:
    async def spawn(nic: socket.socket, udp: socket.socket, cell: str, fuse: Any) -> OpenedRelay:
        return OpenedRelay(nic, udp.dup(), ground.wire)

    return spawn


def _stay(boot: Boot) -> float:
    """Seconds that the workload stays when it has played all."""
    if boot.sabotage is not None:
        return boot.sabotage.patience
    return 2.0 if len(boot.cases) > 1 else 8.0


# What goes on beside a cell, until it is over; none is cancelled half way through a wait.


async def _look(ground: Ground, seen: _Seen, over: asyncio.Event) -> None:
    """Empty the captures while the cell lives, so that they never overflow."""
    while not over.is_set():
        await asyncio.sleep(0.05)
        seen.packets += ground.collect()


async def _measure(meter: Meter, over: asyncio.Event) -> None:
    while not over.is_set():
        meter.look()
        await asyncio.sleep(0.3)
    meter.look_at_folder()


async def _end_when_seen(
    cell: api.Cell, sabotage: Sabotage, seen: _Seen, over: asyncio.Event
) -> None:
    """A control has shown all it can once its probe was captured."""
    while not over.is_set() and not seen.carried(sabotage.mark):
        await asyncio.sleep(0.2)
    cell.cancel("the control was seen")


async def _neighbour(ground: Ground, seen: _Seen, over: asyncio.Event) -> None:
    """Another cell's relay, which sends a message now and then: how long each takes."""
    stand = await Stand.sealed(_Shared(ground, seen))
    try:
        scene = await stand.prepare(Phase.RUNNING)
        while not over.is_set():
            stand.packets.clear()
            began = time.monotonic()
            if not await stand.pass_through(scene.transport()):
                seen.words.append("a message of another cell's did not get through")
            seen.toll.neighbour.append(time.monotonic() - began)
            await asyncio.sleep(0.3)
    finally:
        await stand.close()


@dataclass(slots=True)
class _Shared:
    """The ground, for a second one who looks: whoever empties the captures, both see all."""

    ground: Ground
    seen: _Seen
    position: int = 0

    def collect(self) -> list[Packet]:
        """All frames since the last time."""
        self.seen.packets += self.ground.collect()
        found = self.seen.packets[self.position :]
        self.position += len(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ground, name)


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
        if boot.name.startswith("control"):
            controls.update(_controls(boot, seen))
            yield boot.name, []
        else:
            yield boot.name, [_result(boot, case, seen, controls) for case in boot.cases]


def _controls(boot: Boot, seen: _Seen) -> dict[str, bool]:
    """What was seen with the wall down, by case."""
    if boot.sabotage is HONEST:
        completed = seen.ended_as() in HONEST.ends
        return {case.name: completed for case in SABOTAGES if not case.mark}
    if boot.sabotage is not None:
        return {boot.sabotage.name: seen.carried(boot.sabotage.mark)}
    marks = {case.name: seen.marks.get(case.name, []) for case in boot.cases}
    return {name: bool(of) and all(map(seen.carried, of)) for name, of in marks.items()}


def _result(boot: Boot, case: AnyCase, seen: _Seen, controls: dict[str, bool]) -> Result:
    """What one boot says of one of its cases."""
    match case:
        case Sabotage():
            return _tampered(case, seen, controls)
        case Exhaustion():
            return _exhausted(case, seen)
        case _:
            return _one(boot, case, seen, controls)


def _one(boot: Boot, case: Case | Bypass, seen: _Seen, controls: dict[str, bool]) -> Result:
    """What one boot says of one of its cases."""
    due = Verdict.DROP if boot.walls and case.verdict is Verdict.KILL else case.verdict
    marks = seen.marks.get(case.name, [])
    # Of a boot with many cases a stray packet is the first one's, lest it be counted for each.
    leaks = seen.strays(opened=boot.opened) if case is boot.cases[0] else []
    # A duplicate of what passed once differs in nothing but its number, which quick counts.
    if due is not Verdict.PASS and case.name != "counter-again":
        leaks += [f"seen outside: {mark.hex()}" for mark in marks if seen.carried(mark)]
    outcome = seen.ended_as()
    control = None if due is Verdict.PASS else controls.get(case.name, False)
    observation = Observation(
        leaks=tuple(leaks),
        cut=outcome == "rogue",
        alive=seen.done and outcome == "completed",
        arrived=due is Verdict.PASS and bool(marks) and all(map(seen.carried, marks)),
        lost=seen.lost,
        control=control and bool(marks),
        said=seen.said() or ", ".join(_refused(seen)),
        seconds=seen.seconds / len(boot.cases),
        frames=max(len(marks), 1),
    )
    wall = _RELAY
    if boot.walls:
        wall = "guest's walls" if boot.walls == _EVERY_WALL else boot.name.removeprefix("the ")
    status, why = judge(due, Phase.RUNNING, observation, control_asked=due is not Verdict.PASS)
    return Result(
        case.name, case.group, case.does, wall, Phase.RUNNING, due, status, why, observation
    )


def _refused(seen: _Seen) -> list[str]:
    refused = {} if seen.result is None else seen.result.refused
    return [f"{reason} x{n}" for reason, n in refused.items()]


def _tampered(case: Sabotage, seen: _Seen, controls: dict[str, bool]) -> Result:
    ended = seen.ended_as()
    observation = Observation(
        leaks=tuple(seen.strays()),
        cut=ended in case.ends,
        alive=ended == "completed",
        lost=seen.lost,
        control=controls.get(case.name, False),
        said=seen.said(),
        seconds=seen.seconds,
    )
    status, why = judge(Verdict.KILL, Phase.RUNNING, observation)
    wall = _RELAY if case.mark else _WATCH
    return Result(
        case.name, case.group, case.does, wall, case.phase, Verdict.KILL, status, why, observation
    )


def _exhausted(case: Exhaustion, seen: _Seen) -> Result:
    ended = seen.ended_as()
    left = len({packet.tunnel for packet in seen.packets if packet.out and packet.tunnel})
    lived = ended == "completed" and (seen.done or case.verdict is Verdict.STOP)
    observation = Observation(
        leaks=tuple(seen.strays()),
        cut=ended == "rogue" or (case.verdict is Verdict.STOP and ended != "completed"),
        alive=lived,
        arrived=case.verdict is Verdict.PASS and lived,
        beyond=tuple(seen.toll.beyond()),
        lost=seen.lost,
        control=case.seen(seen.toll, left),
        said=seen.toll.shown(),
        seconds=seen.seconds,
    )
    status, why = judge(case.verdict, Phase.RUNNING, observation)
    return Result(
        *(case.name, case.group, case.does, _BOUNDS, Phase.RUNNING, case.verdict),
        *(status, why, observation),
    )
