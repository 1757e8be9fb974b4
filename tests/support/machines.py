"""A cell whose sessions a test opens itself: the real machine, and frames by hand.

The supervisor is given another end of the port, on which nobody speaks.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.openers import Opener
from tests.support.waiting import until

from wgcell import api
from wgcell.cell.events import Event
from wgcell.cell.job import JobOptions
from wgcell.guest import protocol
from wgcell.guest.frames import Signal
from wgcell.vm.qemu.process import QemuMachine

__all__ = ["Sessioned", "sessioned"]

BOOTED_WITHIN = 120.0
"""Seconds, for an emulated guest on a busy machine."""


class Sessioned:
    """A running cell. Its ``opener`` is the only one on the port."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.printed = {name: bytearray() for name in protocol.STREAMS}
        self.result: api.Result | None = None
        self.opener: Opener
        self._idle: list[socket.socket] = []
        self._taken = threading.Event()

    def hand_out(self, real: socket.socket) -> socket.socket:
        """Keep the machine's port, and return one on which nobody speaks."""
        self.opener = Opener(real)
        self._taken.set()
        ours, idle = socket.socketpair()
        self._idle.append(ours)
        return idle

    def until_released(self) -> None:
        """Wait until the workload runs."""
        until(lambda: self.runs or self.result, "the release", BOOTED_WITHIN)
        assert self.result is None, self.result

    @property
    def runs(self) -> bool:
        """Whether the workload was released."""
        return any(event.get("state") == "running" for event in self.events)

    def close(self) -> None:
        for one in self._idle:
            one.close()
        self.opener.port.close()


@contextmanager
def sessioned(cells: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Sessioned]:
    """One with such a job, released; afterwards it has ended, and ``result`` is there."""
    made = Sessioned()
    take = QemuMachine.take

    def taken(machine: QemuMachine, channel: str) -> socket.socket:
        real = take(machine, channel)
        return made.hand_out(real) if channel == protocol.SESSIONS else real

    monkeypatch.setattr(QemuMachine, "take", taken)
    given = {"allow": ("api.example.com:443",), "idle": True, "name": "t", **options}
    job = api.read_job(JobOptions(**given), cells=cells)
    with api.Cell(api.plan(job), cells) as cell:

        async def live() -> None:
            made.result = await cell.run(
                event=made.events.append,
                stdout=made.printed["stdout"].extend,
                stderr=made.printed["stderr"].extend,
            )

        thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
        thread.start()
        try:
            made.until_released()
            yield made
            if made.result is None:
                made.opener.send(Signal(0, 9))
        finally:
            if made.result is None and not made.runs:
                cell.abort("the test is over")
            thread.join(BOOTED_WITHIN)
            made.close()
    assert made.result is not None, "the cell did not end"
