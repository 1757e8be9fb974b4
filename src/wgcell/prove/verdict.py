"""What an observation proves. No I/O, and no word of the relay counts.

The captures decide. A relay that reports a frame as stopped has leaked it if the captures show it;
a relay that reports it as passed has not leaked it if they do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Observation", "Phase", "Result", "Status", "Verdict", "accepted", "judge", "passes"]


class Verdict(Enum):
    """The outcome of a probe."""

    KILL = "kill"
    """Nothing leaves, and the link is cut."""
    DROP = "drop"
    """Nothing leaves, and the cell goes on."""
    STOP = "stop"
    """Nothing leaves, and the cell may end or go on: all that is due for a user's own frame."""
    PASS = "pass"  # noqa: S105 - a verdict
    """The payload arrives at the other end of the tunnel, and nowhere else."""


class Phase(Enum):
    """The cell's state when the probe is sent."""

    BOOT = "boot"
    BEFORE = "before the tunnel"
    RUNNING = "running"
    REKEY = "during a rekey"
    SILENT = "endpoint silent"
    KILLED = "relay killed"


class Status(Enum):
    """The result of a case."""

    HELD = "held"
    LEAKED = "leaked"
    WRONG = "wrong verdict"
    """Nothing leaked, but the cell ended, or went on, against the verdict that was due."""
    NOT_PROVEN = "not proven"
    """The captures have missed the control, or other packets: they show nothing of the wall."""
    NOT_PLAYED = "not played"


def accepted(verdict: Verdict, phase: Phase) -> frozenset[Verdict]:
    """The outcomes that are right for a probe with ``verdict`` in ``phase``."""
    # During the boot nothing of the requester's runs yet, and the cell is never released.
    mild = verdict is Verdict.KILL and phase is Phase.BOOT
    if mild or verdict is Verdict.STOP:
        return frozenset({Verdict.DROP, Verdict.KILL})
    return frozenset({verdict})


@dataclass(frozen=True, slots=True)
class Observation:
    """One case, run once.

    ``leaks`` has a line for each packet that has left the host outside the tunnel, and for each
    frame that has reached the guest against the rules. ``cut``: the host has closed the NIC or
    ended the machine. ``alive``: an honest message passed behind the probe. ``arrived``: a probe
    that must pass has passed. ``beyond`` has a sentence for each bound of the host that did not
    hold. ``lost`` is the number of packets that the captures have missed. ``control``: whether
    they have shown the control, None without one. ``said`` is the relay's own account, which is
    shown and decides nothing.
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
    """The status and the reason for it; the worst status that applies."""
    if seen.leaks:
        more = f" and {len(seen.leaks) - 1} more" if len(seen.leaks) > 1 else ""
        return Status.LEAKED, seen.leaks[0] + more
    if seen.lost:
        return Status.NOT_PROVEN, f"the capture lost {seen.lost} packets"
    if control_asked and seen.control is None:
        return Status.NOT_PROVEN, "no control was run"
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
    """Whether every case that was run has held, and at least one was run."""
    played = [result for result in results if result.status is not Status.NOT_PLAYED]
    return bool(played) and all(result.status is Status.HELD for result in played)
