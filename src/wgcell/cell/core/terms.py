"""The core's knowledge of a cell's job and machine: times, bounds, requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from wgcell.cell.job import Job, OnRogue
from wgcell.guest.walls import Wall
from wgcell.vm.spec import Accelerator
from wgcell.wire.wireguard import REJECT_AFTER_TIME

__all__ = ["HEARTBEAT_TIMEOUT", "KILL_PATIENCE", "TUNNEL_TIMEOUT", "VERIFY_TIMEOUT", "Terms"]

VERIFY_TIMEOUT: Mapping[Accelerator, float] = MappingProxyType(
    {Accelerator.KVM: 30.0, Accelerator.TCG: 120.0}
)
"""Seconds from the machine's start to a verified tunnel."""

TUNNEL_TIMEOUT = REJECT_AFTER_TIME + 20.0
"""Seconds without a valid message from the endpoint: REJECT_AFTER_TIME and a margin."""

HEARTBEAT_TIMEOUT: Mapping[Accelerator, float] = MappingProxyType(
    {Accelerator.KVM: 20.0, Accelerator.TCG: 60.0}
)
"""Seconds without a message from the guest's agent, which sends one every 5 s."""

KILL_PATIENCE: Mapping[Accelerator, float] = MappingProxyType(
    {Accelerator.KVM: 5.0, Accelerator.TCG: 20.0}
)
"""Seconds from the order to kill the workload until the guest reports its end."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one cell. Times are in seconds, sizes in bytes."""

    accelerator: Accelerator
    verify_timeout: float
    tunnel_timeout: float
    heartbeat_timeout: float
    kill_patience: float
    grace: float
    timeout: float | None
    memory: int
    disk: int
    quota: int | None
    freeze_rogue: bool
    every_wall: bool
    """The guest builds all its walls, so a change of one is an attack."""
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, job: Job, accelerator: Accelerator) -> Terms:
        """The terms of ``job`` on that accelerator."""
        return cls(
            accelerator=accelerator,
            verify_timeout=job.verify_timeout or VERIFY_TIMEOUT[accelerator],
            tunnel_timeout=job.tunnel_timeout or TUNNEL_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT[accelerator],
            kill_patience=KILL_PATIENCE[accelerator],
            grace=job.grace,
            timeout=job.timeout,
            memory=job.memory,
            disk=job.disk,
            quota=job.quota,
            freeze_rogue=job.on_rogue is OnRogue.FREEZE,
            every_wall=job.guest_walls == frozenset(Wall),
            outputs=job.outputs,
        )
