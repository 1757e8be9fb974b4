"""What a user asks of the battery, and the steps that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from wgcell.errors import InputError
from wgcell.prove.battery.case import Case
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.pcap import UserFrame
from wgcell.prove.runners.boots import Machines, all_cases
from wgcell.prove.runners.direct import Step
from wgcell.vm.spec import Accelerator

__all__ = ["Mode", "Request", "description", "steps"]


class Mode(Enum):
    """How much is run, and with what."""

    QUICK = "quick"
    DEFAULT = "default"
    LONG = "long"
    FRAMES = "frames"


@dataclass(frozen=True, slots=True)
class Request:
    """A user's request. Without ``machines`` no VM is booted.

    ``only`` names the cases to run; empty means all. In the long form, ``times`` is how often each
    case runs, and ``storm`` the number of rogue frames in the storm. ``command`` is the command
    line, for the report.
    """

    mode: Mode
    only: tuple[str, ...] = ()
    frames: tuple[UserFrame, ...] = ()
    times: int = 1
    storm: int = 1_000_000
    machines: Machines | None = None
    command: str = ""


def steps(request: Request) -> list[Step]:
    """The cases for the relay's process, each in its phases.

    Raises InputError if ``only`` names a case that does not exist.
    """
    if request.mode is Mode.FRAMES:
        return [(frame.case(), phase) for frame in request.frames for phase in frame.phases]
    _check_names(request.only)
    chosen = [case for case in CASES if not request.only or case.name in request.only]
    if request.mode is Mode.LONG:
        return [step for case in chosen for step in _long_steps(case, request.times)]
    return [(case, phase) for case in chosen if not case.wait for phase in case.phases]


def _check_names(names: Sequence[str]) -> None:
    """Raise InputError for a name that no case has."""
    known = {case.name for case in all_cases()}
    for name in names:
        if name not in known:
            raise InputError(
                f"there is no case {name!r}", hint="wgcell prove --list names every case"
            )


def _long_steps(case: Case, times: int) -> list[Step]:
    """Every phase, ``times`` times; a case that waits for minutes once."""
    repeats = 1 if case.wait else times
    return [(case, phase) for phase in case.long_phases for _ in range(repeats)]


def description(request: Request) -> str:
    """One sentence on the mode and on the machines, if any."""
    mode = request.mode.value
    if request.machines is None:
        frames = "your own frames" if request.mode is Mode.FRAMES else "frames"
        return (
            f"Run as {mode}: {frames} were put into the relay's own process; no virtual machine "
            "was booted."
        )
    emulated = request.machines.platform.accelerator is Accelerator.TCG
    kind = (
        "emulated by QEMU, which its authors do not call a security boundary"
        if emulated
        else "on KVM"
    )
    return (
        f"Run as {mode}: frames were put into the relay's own process, and real virtual machines "
        f"were booted, {kind}."
    )
