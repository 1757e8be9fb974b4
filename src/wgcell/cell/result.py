"""How a cell ended, and the one place that writes ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from wgcell.cell.folder import Folder
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.guest.walls import Wall
from wgcell.relay.control import Stats
from wgcell.vm.spec import Accelerator

__all__ = ["FILE", "CellResult", "HostWalls", "exit_code"]

FILE = "result.json"


@dataclass(frozen=True, slots=True)
class HostWalls:
    """The host's walls that stand for a cell, and why the others don't."""

    seal: bool
    jail: bool
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CellResult:
    """The authority on how one cell ended."""

    cell: str
    outcome: Outcome
    reason: str
    failures: tuple[str, ...]
    """Steps of the end that failed, and why."""
    workload_exit_code: int | None
    accelerator: Accelerator
    phases: Mapping[str, float]
    """Seconds from the start to each state."""
    relay: Stats | None
    killed_after: float | None
    """Seconds from the relay's reading of the first rogue frame until the machine was dead."""
    guest_drops: int
    flows: Mapping[str, int]
    image: str
    limits: str
    """The bounds on the machine's process on this host."""
    host_walls: HostWalls
    guest_walls: frozenset[Wall]
    gateway: bool
    """Whether the cell had a gateway of its own."""

    @property
    def exit_code(self) -> int:
        """wgcell's own exit code."""
        return exit_code(self.outcome, self.workload_exit_code)

    def as_json(self) -> dict[str, object]:
        """The content of ``result.json``."""
        return {
            "cell": self.cell,
            "outcome": self.outcome.value,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "failures": list(self.failures),
            "workload_exit_code": self.workload_exit_code,
            "accelerator": self.accelerator.value,
            "assurance": self.accelerator.assurance,
            "phases": dict(self.phases),
            "relay": {} if self.relay is None else asdict(self.relay),
            "killed_after": self.killed_after,
            "guest_drops": self.guest_drops,
            "flows": dict(self.flows),
            "image": self.image,
            "limits": self.limits,
            "walls": {
                "relay": True,
                **asdict(self.host_walls),
                **{f"guest_{wall.value}": wall in self.guest_walls for wall in Wall},
                "gateway": self.gateway,
            },
        }

    def write(self, folder: Folder) -> None:
        """Write it whole or not at all. Raises StateError."""
        folder.write(FILE, self.as_json())


def exit_code(outcome: Outcome, workload: int | None) -> int:
    """The exit code for ``outcome``: the workload's own where that has one to give."""
    code = EXIT_CODES.get(outcome)
    if code is None or (outcome is Outcome.INCOMPLETE and workload):
        return workload if workload is not None else EXIT_CODES[Outcome.ERROR]
    return code
