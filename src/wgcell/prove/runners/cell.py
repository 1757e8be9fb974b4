"""One VM of a boot, from its start to its end.

It is a whole cell, started by the supervisor, on the testbed. The captures are read while it lives,
so that they never overflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from importlib.resources import files
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from wgcell import api
from wgcell.cell import consent
from wgcell.cell.inputs import Input
from wgcell.cell.job import Job
from wgcell.cell.wgquick import VpnConfig
from wgcell.image import store
from wgcell.prove.battery.case import MTU
from wgcell.prove.battery.overlay import forged_report, overlay
from wgcell.prove.battery.policy import PolicyCase
from wgcell.prove.battery.sabotage import Sabotage
from wgcell.prove.battery.usage import DISK, MEMORY
from wgcell.prove.runners.boots import Boot, Machines
from wgcell.prove.runners.gateway import LiveGateway, started
from wgcell.prove.runners.harness import Harness
from wgcell.prove.runners.recording import Recording
from wgcell.prove.testbed.base import HOST, Testbed
from wgcell.prove.testbed.capture import Packet
from wgcell.prove.testbed.meter import Meter
from wgcell.prove.testbed.passthrough import PassThroughRelay
from wgcell.prove.verdict import Phase

__all__ = ["CARRIED", "GUEST_RUNNER", "altered_image", "carry", "run"]

GUEST_RUNNER = "wgcell.prove.runners.guest"
CARRIED = ("guest", "prove", "prove/battery", "prove/runners", "relay", "wire")
"""Folders of the package that the guest runner needs. They import the standard library alone."""
_TASKS = "tasks.json"
_TUNNEL = (ip_interface("10.99.0.2/32"),)
_ALLOWED = "0.0.0.0/0"
_TIMEOUT = 120.0
"""Seconds for the workload."""
_VERIFY_TIMEOUT = 30.0
"""Seconds until a sabotaged guest must be verified; it never is."""
_LATE_PACKETS = 0.1
"""Seconds for packets that are on their way when the cell has ended."""


async def run(testbed: Testbed, machines: Machines, boot: Boot) -> Recording:
    """Run the cell of ``boot``, and record it.

    Raises HostError if it needs a gateway of its own, and there can be none.
    """
    recording = Recording()
    began = time.monotonic()
    testbed.collect()
    testbed.lost()
    async with contextlib.AsyncExitStack() as ending:
        temporary = tempfile.TemporaryDirectory(prefix="wgcell-prove-")
        folder = Path(ending.enter_context(temporary))
        gateway = await ending.enter_async_context(started()) if boot.own_gateway else None
        vpn = _vpn(testbed) if gateway is None else gateway.vpn
        (folder / _TASKS).write_text(json.dumps(_tasks(boot, vpn)))
        platform = machines.platform
        if boot.sabotage is not None:
            forged = forged_report(vpn.peer_public_key, _ALLOWED, vpn.keepalive)
            image = altered_image(platform.image, folder, overlay(boot.sabotage, forged))
            platform = replace(platform, image=image)
        job = _job(boot, machines.platform.image.name, (carry(folder), folder / _TASKS))
        plan = api.Plan(job, platform, vpn, (ip_address(vpn.endpoint_host),))
        await _live(testbed, boot, plan, folder, recording, gateway)
        recording.lost = testbed.lost()
    recording.seconds = time.monotonic() - began
    return recording


async def _live(
    testbed: Testbed,
    boot: Boot,
    plan: api.Plan,
    folder: Path,
    recording: Recording,
    gateway: LiveGateway | None,
) -> None:
    """The cell's life, and what runs beside it; ``folder`` gets the cell's folder."""
    output = bytearray()
    over = asyncio.Event()
    beside = [_collect(testbed, recording, over)]
    with api.Cell(plan, folder) as cell:
        if boot.exhaustion is not None:
            beside.append(_measure(Meter(cell.folder.path, recording.use), over))
            beside.append(_use_another_relay(testbed, recording, over))
        if gateway is not None:
            beside.append(_change_rules(gateway, boot, recording))
        if boot.sabotage is not None and boot.pass_through:
            beside.append(_end_when_seen(cell, boot.sabotage, recording, over))
        tasks = [asyncio.create_task(one) for one in beside]
        recording.result = await cell.run(
            stdout=output.extend,
            stderr=lambda data: recording.messages.append(data.decode("utf-8", "replace")),
            spawn_relay=_pass_through(testbed) if boot.pass_through else None,
        )
    await asyncio.sleep(_LATE_PACKETS)
    over.set()
    await asyncio.gather(*tasks)
    for line in bytes(output).splitlines():
        recording.add_line(line)


# What the cell is made of.


def _tasks(boot: Boot, vpn: VpnConfig) -> dict[str, object]:
    """The guest runner's tasks: keys and cases, and how to run them.

    ``pause`` is the time in seconds between a case's marks and its frames: where one frame ends the
    cell, its marks must be out before. ``stay`` is the time from the last case to the guest's end.
    """
    alone = len(boot.cases) == 1
    stay = 8.0 if alone else 2.0
    return {
        "guest_key": consent.public_key(vpn.private_key).hex(),
        "endpoint_key": vpn.peer_public_key.hex(),
        "host": HOST,
        "cases": [case.name for case in boot.cases if not isinstance(case, Sabotage)],
        "sniff": not boot.walls and boot.sabotage is None,
        "pause": 0.3 if alone else 0.02,
        "stay": stay if boot.sabotage is None else boot.sabotage.patience,
    }


def _job(boot: Boot, image: str, inputs: tuple[Path, ...]) -> Job:
    return Job(
        name="prove",
        command=("python3", "-m", GUEST_RUNNER, _TASKS),
        image=image,
        inputs=tuple(map(Input, inputs)),
        outputs=(),
        timeout=_TIMEOUT,
        env=(),
        cpus=1,
        memory=MEMORY,
        disk=DISK,
        vpn=None,
        gateway=None,
        guest_walls=boot.walls,
        verify_timeout=_VERIFY_TIMEOUT if boot.sabotage is not None else None,
    )


def _vpn(testbed: Testbed) -> VpnConfig:
    host, port = testbed.endpoint.address
    return VpnConfig(
        private_key=testbed.endpoint.next_key(),
        peer_public_key=testbed.endpoint.public_key(),
        endpoint_host=host,
        endpoint_port=port,
        addresses=_TUNNEL,
        allowed_ips=(ip_network(_ALLOWED),),
        mtu=MTU,
    )


def carry(folder: Path) -> Path:
    """Copy the modules that the guest runner needs to ``folder``; the package's new path."""
    target = folder / "wgcell"
    for room in ("", *CARRIED):
        (target / room).mkdir(parents=True, exist_ok=True)
        (target / room / "__init__.py").write_text("")
    for room in CARRIED:
        for source in files("wgcell").joinpath(room).iterdir():
            if source.name.endswith(".py") and source.name != "__init__.py":
                (target / room / source.name).write_bytes(source.read_bytes())
    return target


def altered_image(image: store.Image, folder: Path, overlay: bytes) -> store.Image:
    """The image with ``overlay``, a cpio archive, behind its initramfs."""
    made = folder / "hostile"
    made.mkdir()
    for name in ("kernel", "rootfs"):
        (made / name).symlink_to(image.folder / name)
    # A copy, because a cell's records are made without following links.
    (made / "manifest.json").write_bytes((image.folder / "manifest.json").read_bytes())
    (made / "initramfs").write_bytes(image.initramfs.read_bytes() + overlay)
    return store.Image("hostile", made, image.manifest)


def _pass_through(testbed: Testbed) -> Callable[..., Coroutine[object, None, Any]]:
    async def spawn(
        nic: socket.socket, udp: socket.socket, cell: str, fuse: Any
    ) -> PassThroughRelay:
        return PassThroughRelay(nic, udp.dup(), testbed.wire)

    return spawn


# Tasks beside the cell. Each ends when ``over`` is set, so none is cancelled within a call.


async def _collect(testbed: Testbed, recording: Recording, over: asyncio.Event) -> None:
    """Read the captures."""
    while not over.is_set():
        await asyncio.sleep(0.05)
        recording.packets += testbed.collect()


async def _change_rules(gateway: LiveGateway, boot: Boot, recording: Recording) -> None:
    """The host's part of each change; one that comes to nothing is noted."""
    for case in boot.cases:
        if isinstance(case, PolicyCase):
            try:
                await gateway.run(case, recording)
            except OSError as error:  # TimeoutError is one
                recording.messages.append(f"{case.name}: {error!r}")


async def _measure(meter: Meter, over: asyncio.Event) -> None:
    """Measure what the cell takes of its host."""
    while not over.is_set():
        meter.measure()
        await asyncio.sleep(0.3)
    meter.measure_folder()


async def _end_when_seen(
    cell: api.Cell, sabotage: Sabotage, recording: Recording, over: asyncio.Event
) -> None:
    """End a control as soon as the captures show its mark."""
    while not over.is_set() and not recording.carried(sabotage.mark):
        await asyncio.sleep(0.2)
    cell.cancel("the control was seen")


async def _use_another_relay(testbed: Testbed, recording: Recording, over: asyncio.Event) -> None:
    """Send messages through another cell's relay, and time each."""
    harness = await Harness.with_relay(_SharedCaptures(testbed, recording))
    try:
        attacker = await harness.prepare(Phase.RUNNING)
        while not over.is_set():
            harness.packets.clear()
            began = time.monotonic()
            if not await harness.deliver(attacker.transport()):
                recording.messages.append("a message of another cell's did not get through")
            recording.use.neighbour.append(time.monotonic() - began)
            await asyncio.sleep(0.3)
    finally:
        await harness.close()


@dataclass(slots=True)
class _SharedCaptures:
    """The testbed for a second reader of its captures: each packet reaches both readers."""

    testbed: Testbed
    recording: Recording
    position: int = 0

    def collect(self) -> list[Packet]:
        """All packets since the last call of this reader."""
        self.recording.packets += self.testbed.collect()
        found = self.recording.packets[self.position :]
        self.position += len(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.testbed, name)
