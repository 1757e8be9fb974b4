"""A job, its host and its supervisor, for tests that start no machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wgcell.cell.events import Event
from wgcell.cell.folder import CappedLog, create
from wgcell.cell.host import HostContext
from wgcell.cell.job import GatewayAsked, Job
from wgcell.cell.streams import Stream
from wgcell.cell.supervisor import Supervisor
from wgcell.guest import protocol
from wgcell.image.store import Image
from wgcell.vm.spec import Accelerator

CONFIG = protocol.GuestConfig(
    0, "h", frozenset(), b"", b"\1" * 32, None, (), (), 1420, 0, (), "", False, (), (), ()
)


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
