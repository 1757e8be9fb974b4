"""The most that a cell has taken of its host, and the bounds of that. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DISK", "MEMORY", "ResourceUse"]

MEMORY, DISK = 256 << 20, 64 << 20
"""Bytes that the cell's job gives it."""


@dataclass(slots=True)
class ResourceUse:
    """The maxima that the host has measured. Bytes, seconds, and shares of a processor."""

    machine: int = 0
    """Resident memory of QEMU."""
    others: int = 0
    """Resident memory of the relay, bubblewrap, and the namespace holders of both."""
    disk: int = 0
    """All files of the cell's folder, its scratch disk included."""
    scratch: int = 0
    console: int = 0
    output: int = 0
    evidence: int = 0
    processors: float = 0.0
    """Processor seconds a second, of all processes together."""
    neighbour: list[float] = field(default_factory=list)
    """Seconds that each honest message took through the relay of another cell."""

    def beyond(self) -> list[str]:
        """A sentence for each value beyond its bound."""
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
        return [f"{name} took {value}, of {most}" for name, value, most in bounds if value > most]

    def shown(self) -> str:
        """One line for the report."""
        slowest = 1000 * max(self.neighbour, default=0.0)
        return (
            f"QEMU {self.machine >> 20} MiB, the rest {self.others >> 20} MiB, "
            f"disk {self.disk >> 20} MiB, {self.processors:.1f} processors, "
            f"another cell's slowest message {slowest:.0f} ms"
        )
