"""What an observation proves. Pure: no socket, no clock, and nothing the relay says.

The verdict is the capture's. A relay that claims to have stopped a frame which the capture saw has
leaked it; one that claims to have let it pass when nothing came has not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Observation", "Phase", "Result", "Status", "Verdict", "accepted", "judge", "passes"]


class Verdict(Enum):
    """What must become of a probe."""

    KILL = "kill"
    """Nothing leaves, and the link is cut."""
    DROP = "drop"
    """Nothing leaves, and the cell lives on."""
    STOP = "stop"
    """Nothing leaves, whatever becomes of the cell: all that can be asked of a stranger's frame."""
    PASS = "pass"  # noqa: S105 - a verdict
    """It arrives, as payload at the other end of the tunnel and nowhere else."""


class Phase(Enum):
    """Where in its life the cell is when the probe comes."""

    BOOT = "boot"
    BEFORE = "before the tunnel"
    RUNNING = "running"
    REKEY = "during a rekey"
    SILENT = "endpoint silent"
    KILLED = "relay killed"


class Status(Enum):
    """What is known after a case was played."""

    HELD = "held"
    LEAKED = "leaked"
    WRONG = "wrong verdict"
    """Nothing leaked, but the cell did not end, or ended, when it should not have."""
    NOT_PROVEN = "not proven"
    """The control was not seen, or the capture has holes: whatever the wall did, nobody saw it."""
    NOT_PLAYED = "not played"


def accepted(verdict: Verdict, phase: Phase) -> frozenset[Verdict]:
    """What may become of a probe of that verdict in a phase other than the one it is stated for."""
    # In boot nothing of the requester's runs yet, and either way the cell is never released.
    mild = verdict is Verdict.KILL and phase is Phase.BOOT
    if mild or verdict is Verdict.STOP:
        return frozenset({Verdict.DROP, Verdict.KILL})
    return frozenset({verdict})


@dataclass(frozen=True, slots=True)
class Observation:
    """One case, played once.

    ``leaks``: packets that were on their way out and are not the tunnel's, and frames that reached
    the guest and should not have, a line each. ``cut``: the NIC was closed from the host's side,
    or the machine was ended. ``alive``: an honest message still came through behind the probe.
    ``arrived``: a probe that must pass did. ``beyond``: bounds of the host's that
    did not hold. ``control`` is None where none was played. ``said`` is the relay's own word,
    shown and never judged.
    """

    leaks: tuple[str, ...] = ()
    cut: bool = False
    alive: bool = True
    arrived: bool = False
    beyond: tuple[str, ...] = ()
    lost: int = 0
    control: bool | None = None
    said: str = ""
    seconds: float = 0.0
    frames: int = 1


def judge(
    verdict: Verdict, phase: Phase, seen: Observation, *, control_asked: bool = True
) -> tuple[Status, str]:
    """The status, and why in a sentence; the worst that is true comes first."""
    if seen.leaks:
        more = f" and {len(seen.leaks) - 1} more" if len(seen.leaks) > 1 else ""
        return Status.LEAKED, seen.leaks[0] + more
    if seen.lost:
        return Status.NOT_PROVEN, f"the capture lost {seen.lost} packets"
    if control_asked and seen.control is None:
        return Status.NOT_PROVEN, "no control was played"
    if seen.control is False:
        return Status.NOT_PROVEN, "with the wall down the probe was not seen either"
    if seen.beyond:
        return Status.WRONG, seen.beyond[0]
    if not seen.cut and not seen.alive:
        return Status.WRONG, "the link was not cut, and yet nothing honest passes any more"
    got = Verdict.KILL if seen.cut else Verdict.PASS if seen.arrived else Verdict.DROP
    if got not in accepted(verdict, phase):
        return Status.WRONG, f"{verdict.value} was due, {_SHOWN[got]}"
    return Status.HELD, _SHOWN[got]


_SHOWN = {
    Verdict.KILL: "nothing left, the link was cut",
    Verdict.DROP: "nothing left, the cell lives",
    Verdict.PASS: "it arrived, and nothing else did",
}


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report."""

    case: str
    group: str
    does: str
    wall: str
    phase: Phase
    expected: Verdict
    status: Status
    why: str
    observation: Observation = field(default_factory=Observation)


def passes(results: Iterable[Result]) -> bool:
    """Whether a run proves what it should: something was played, and all that was held."""
    played = [result for result in results if result.status is not Status.NOT_PLAYED]
    return bool(played) and all(result.status is Status.HELD for result in played)
