"""Measures from outside what a cell takes of its host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wgcell.prove.battery.usage import ResourceUse

__all__ = ["Meter"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_QEMU = "qemu-system"
_FILES = {
    "scratch": "scratch.img",
    "console": "console.log",
    "output": "stderr.log",
    "evidence": "rogue.pcapng",
}
"""Files of a cell's folder, by the field of `ResourceUse` that has their size."""


@dataclass(slots=True)
class Meter:
    """Measures the processes below this one, and a cell's folder."""

    folder: Path
    use: ResourceUse = field(default_factory=ResourceUse)
    _started: float = field(default_factory=time.monotonic)
    _taken: dict[int, float] = field(default_factory=dict)

    def measure(self) -> None:
        """Measure all of it; to be called a few times a second."""
        machine = others = 0
        for pid, (name, seconds) in _descendants(os.getpid()).items():
            self._taken[pid] = seconds
            if name.startswith(_QEMU):
                machine += _resident(pid)
            else:
                others += _resident(pid)
        use = self.use
        use.machine, use.others = max(use.machine, machine), max(use.others, others)
        taken = sum(self._taken.values())
        use.processors = taken / max(time.monotonic() - self._started, 1.0)
        self.measure_folder()

    def measure_folder(self) -> None:
        """Measure the files alone, which also works once the cell has ended."""
        use = self.use
        use.disk = max(use.disk, _on_disk(self.folder.iterdir()))
        for field_name, name in _FILES.items():
            most = max(getattr(use, field_name), _on_disk([self.folder / name]))
            setattr(use, field_name, most)


def _resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _descendants(of: int) -> dict[int, tuple[str, float]]:
    """Every process below ``of``: its name, and its processor time in seconds (proc(5))."""
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
    """Bytes that the files take on the disk."""
    taken = 0
    for file in files:
        with contextlib.suppress(OSError):
            taken += file.stat().st_blocks * 512
    return taken
