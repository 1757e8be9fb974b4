"""What a cell takes of its host, read off from outside, and the bounds it is held to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DISK", "MEMORY", "Meter", "Toll"]

MEMORY, DISK = 256 << 20, 64 << 20
"""Bytes that the cell is given."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_MACHINE = "qemu-system"


@dataclass(slots=True)
class Toll:
    """The most that a cell took, as its host saw it. Bytes, seconds, and shares of a processor."""

    machine: int = 0
    """Resident memory of QEMU."""
    others: int = 0
    """Resident memory of the relay, bubblewrap, and the keepers of both."""
    disk: int = 0
    """Of the cell's folder and its scratch disk."""
    scratch: int = 0
    console: int = 0
    output: int = 0
    evidence: int = 0
    processors: float = 0.0
    """Processor seconds a second, of all processes together."""
    neighbour: list[float] = field(default_factory=list)
    """Seconds that an honest message took through the relay of another cell."""

    def beyond(self) -> list[str]:
        """What is beyond its bound, a sentence each."""
        slowest = max(self.neighbour, default=0.0)
        bounds = (
            ("QEMU's memory", self.machine, MEMORY + (1536 << 20)),
            ("the other processes' memory", self.others, 96 << 20),
            # Three logs of 16 MiB at most, the evidence, the scratch disk, the records.
            ("the cell's disk", self.disk, DISK + (52 << 20)),
            ("the evidence", self.evidence, 1 << 20),
            ("the processors", self.processors, 2.5),
            ("another cell's message, in seconds,", slowest, 1.0),
        )
        return [f"{what} took {took}, of {most}" for what, took, most in bounds if took > most]

    def shown(self) -> str:
        """For the report."""
        slowest = 1000 * max(self.neighbour, default=0.0)
        return (
            f"QEMU {self.machine >> 20} MiB, the rest {self.others >> 20} MiB, "
            f"disk {self.disk >> 20} MiB, {self.processors:.1f} processors, "
            f"another cell's slowest message {slowest:.0f} ms"
        )


@dataclass(slots=True)
class Meter:
    """Looks at the processes below this one, and at a cell's folder, and keeps the most it saw."""

    folder: Path
    toll: Toll = field(default_factory=Toll)
    _began: float = field(default_factory=time.monotonic)
    _taken: dict[int, float] = field(default_factory=dict)

    def look(self) -> None:
        """Once; to be called a few times a second."""
        machine = others = 0
        for pid, (name, seconds) in _descendants(os.getpid()).items():
            self._taken[pid] = seconds
            if name.startswith(_MACHINE):
                machine += _resident(pid)
            else:
                others += _resident(pid)
        toll = self.toll
        toll.machine, toll.others = max(toll.machine, machine), max(toll.others, others)
        taken = sum(self._taken.values())
        toll.processors = taken / max(time.monotonic() - self._began, 1.0)
        self.look_at_folder()

    def look_at_folder(self) -> None:
        """The files alone: also once the cell is gone."""
        toll = self.toll
        toll.disk = max(toll.disk, _on_disk(self.folder.iterdir()))
        for kept, name in (
            *(("scratch", "scratch.img"), ("console", "console.log")),
            *(("output", "stderr.log"), ("evidence", "rogue.pcapng")),
        ):
            setattr(toll, kept, max(getattr(toll, kept), _on_disk([self.folder / name])))


def _resident(pid: int) -> int:
    """Bytes; 0 of a process that is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _descendants(of: int) -> dict[int, tuple[str, float]]:
    """Every process below ``of``: its name and the processor seconds it has taken (proc(5))."""
    found: dict[int, tuple[int, str, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            head, _, rest = (folder / "stat").read_text().rpartition(")")
            words = rest.split()
            taken = (int(words[11]) + int(words[12])) / _TICK
            found[int(folder.name)] = int(words[1]), head.partition("(")[2], taken
    below = {of}
    while more := {pid for pid, (parent, _, _) in found.items() if parent in below} - below:
        below |= more
    return {pid: found[pid][1:] for pid in below - {of}}


def _on_disk(files: Iterable[Path]) -> int:
    """Bytes that they take."""
    taken = 0
    for file in files:
        with contextlib.suppress(OSError):
            taken += file.stat().st_blocks * 512
    return taken
