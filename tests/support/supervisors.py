"""A job, its host and its supervisor, for tests that start no machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.standins import Child, Dead, Group

from wgcell.cell.archive import Unpacked
from wgcell.cell.core import events as seen
from wgcell.cell.ending import EndStep
from wgcell.cell.events import Event, first_bad
from wgcell.cell.folder import CappedLog, Folder, create
from wgcell.cell.host import HostContext
from wgcell.cell.job import GatewayAsked, Job
from wgcell.cell.states import State
from wgcell.cell.streams import Stream
from wgcell.cell.supervisor import Supervisor
from wgcell.guest import protocol
from wgcell.image.store import Image
from wgcell.relay.evidence import CapturedFrame
from wgcell.vm.spec import Accelerator


def job(**changed: Any) -> Job:
    """A job that asks for little."""
    given: dict[str, Any] = {
        "name": "cell",
        "command": ("true",),
        "image": "i",
        "inputs": (),
        "outputs": (),
        "timeout": None,
        "env": (),
        "cpus": 1,
        "memory": 1 << 28,
        "disk": 1 << 30,
        "vpn": None,
        "gateway": GatewayAsked(),
        "grace": 1.0,
        "quota": 0,
        "guest_walls": frozenset(),
    }
    return Job(**{**given, **changed})


def host(cells: Path, **changed: Any) -> HostContext:
    """A host with a folder for the cell, and an image that is never read."""
    image = cells / "image"
    image.mkdir(exist_ok=True)
    (image / "manifest.json").write_text("{}")
    folder = create(cells, "cell")
    given: dict[str, Any] = {
        "folder": folder,
        "image": Image("i", image, SimpleNamespace()),  # type: ignore[arg-type]
        "accelerator": Accelerator.KVM,
        "accelerator_reason": "",
        "vpn": None,
    }
    return HostContext(**{**given, **changed})


MADE: list[Supervisor] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what a supervisor that was never run keeps open."""
    yield
    while MADE:
        one = MADE.pop()
        for stream in one.outlets.streams.values():
            stream._log.close()
        one.outlets.close_logs()
        with contextlib.suppress(OSError):
            one.log.close()


def supervisor(
    cells: Path,
    report: Callable[[Event], None] = lambda event: None,
    kind: type[Supervisor] = Supervisor,
    **changed: Any,
) -> Supervisor:
    """One that has started nothing yet; ``changed`` is of the job."""
    one = kind(
        job(**changed),
        host(cells),
        report=report,
        stdout=lambda data: None,
        stderr=lambda data: None,
    )
    MADE.append(one)
    return one


def with_streams(one: Supervisor) -> Supervisor:
    """``one``, whose streams are there but carry nothing. Needs a running loop."""
    for name in protocol.STREAMS:
        log = CappedLog(one.host.folder.path / f"{name}.log")
        one.outlets.streams[name] = Stream(name, lambda data: None, log, lambda: None)
    return one


class Finished(Supervisor):
    """A cell whose workload has ended and whose results are home: `completed`, but for its end."""

    def __init__(self, cells: Path) -> None:
        self.told: list[Any] = []
        sinks: list[bytes] = []
        super().__init__(
            job(outputs=("results",)),
            host(cells),
            report=self.told.append,
            stdout=sinks.append,
            stderr=sinks.append,
        )
        self.folder: Folder = self.host.folder
        self.folder.write("job.json", {})
        self.machine, self.relay, self.gateway, self.group = Dead(), Child(), Child(), Group()
        self.changed: Callable[[tuple[EndStep, ...]], tuple[EndStep, ...]] = lambda steps: steps
        self.script: list[seen.Event] = [
            seen.FromGuest(protocol.Exited(0, 0, 0)),
            seen.FromGuest(protocol.Outputs(0, 0, "a" * 64)),
        ]
        """What is heard once the cell runs."""
        self.outlets.unpack = self.unpack  # type: ignore[method-assign]

    async def live(self) -> None:
        launch, outlets = self.launch, self.outlets
        launch.own_machine(self.machine)  # type: ignore[arg-type]
        launch.own_relay(self.relay)  # type: ignore[arg-type]
        launch.own_gateway(self.gateway)  # type: ignore[arg-type]
        launch.own_cgroup(self.group)  # type: ignore[arg-type]
        for name in ("scratch.img", "inputs.tar"):
            (self.folder.path / name).write_bytes(b"x")
        outlets.console = CappedLog(self.folder.path / "console.log")
        for name in protocol.STREAMS:
            log = CappedLog(self.folder.path / f"{name}.log")
            outlets.streams[name] = Stream(name, lambda data: None, log, lambda: None)
            log.close()
        arriving = SimpleNamespace(received=0, moved=0.0, close=int, state=lambda *_: None)
        outlets.arriving = arriving  # type: ignore[assignment]
        self.core.frames.append(CapturedFrame(b"frame", 1.0, "out of step"))
        self.core.state, self.core.phases["running"] = State.RUNNING, 0.1
        for event in self.script:
            self.feed(event)

    async def unpack(self, arriving: Any) -> Unpacked:
        return Unpacked(0, 0, 0, 0, (), (), (), "")

    def steps(self) -> tuple[EndStep, ...]:
        return self.changed(super().steps())

    @property
    def written(self) -> dict[str, Any] | None:
        return self.folder.read("result.json")

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.folder.path / "events.jsonl").read_bytes().splitlines()
        assert first_bad(lines) is None
        return [json.loads(line) for line in lines]


def lived(cell: Finished) -> tuple[dict[str, Any] | None, BaseException | None]:
    """What `run` returned, and what it raised."""
    try:
        return asyncio.run(cell.run()).as_json(), None
    except (Exception, asyncio.CancelledError) as error:
        return None, error
