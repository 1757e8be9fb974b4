"""Which VMs are booted, and what each shows.

- *control*: every wall of the guest down, and a `PassThroughRelay` in the relay's place. The
  captures must show each probe; a probe that they miss proves nothing in any other boot.
- *relay alone*: every wall of the guest down, and the real relay. One boot for each case that must
  end the cell, and one for all cases that the cell survives.
- *the guest's walls*, all of them and then each alone: a `PassThroughRelay` behind them. The
  workload is root, and makes all attacks that the wall must stop; the captures must show none.
- *first instruction*: an init that turns ARP on and asks for DHCP. Through a pass-through relay the
  captures must show it, through the real one they must not.
- *tampering* (`sabotage`): the guest's walls or the agent are taken down from within, or forged.
- *rules changed* (`policy`): the real relay, every wall down, and a gateway of the cell's own whose
  rules change, and which has published a port that is in use. The cases that the cell survives run
  behind that. No boot is its control: each case has its own, and the frames have theirs.
- *exhaustion* (`exhaustion`): all that a guest can take, while another cell's relay must work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wgcell import api
from wgcell.guest.walls import Wall
from wgcell.image import store
from wgcell.prove.battery.bypass import BYPASSES, Bypass
from wgcell.prove.battery.case import Case, Injection
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.exhaustion import EXHAUSTIONS, Exhaustion
from wgcell.prove.battery.policy import POLICIES, PolicyCase
from wgcell.prove.battery.sabotage import HONEST, SABOTAGES, Sabotage
from wgcell.prove.verdict import Phase, Verdict

__all__ = ["EVERY_WALL", "AnyCase", "Boot", "Machines", "all_cases", "find", "plan"]

EVERY_WALL = frozenset(Wall)

_KILLS = (
    *("lan-ping", "lan-right-but-address", "vlan", "source-mac-foreign", "arp-scan", "dhcp"),
    *("ipv6-rs", "fragment-first", "tcp-endpoint", "initiation-mac1", "counter-absurd"),
)
"""The frames that get a VM each in the default form; in the long form every frame does."""
_NOT_SENT_BY_A_KERNEL = ("runt",)
"""A guest's own kernel refuses these, so they run without a VM only."""

AnyCase = Case | Bypass | Sabotage | Exhaustion | PolicyCase
_RULES_CHANGED = "rules changed, a port published"


@dataclass(frozen=True, slots=True)
class Machines:
    """The image and the accelerator of the VMs. ``every``: each case that kills gets a boot."""

    platform: api.Platform
    every: bool = False

    def facts(self) -> list[tuple[str, str]]:
        """Names and values for the report."""
        image, accelerator = self.platform.image, self.platform.accelerator
        kernel = image.manifest.get("kernel_version", "?")
        shown = f"{accelerator.value} ({accelerator.assurance}): {self.platform.reason}"
        return [("accelerator", shown), ("image", f"{image.name}, kernel {kernel}")]


def find(*, every: bool) -> Machines:
    """The stock image, and the accelerator of this machine. Raises HostError with a hint."""
    return Machines(api.platform(store.load(api.STOCK_IMAGE)), every)


@dataclass(frozen=True, slots=True)
class Boot:
    """One VM, with ``walls`` of the guest up; ``pass_through``: a `PassThroughRelay` behind it."""

    name: str
    cases: tuple[AnyCase, ...]
    pass_through: bool = False
    walls: frozenset[Wall] = frozenset()

    @property
    def control(self) -> bool:
        """Whether it is the control of other boots."""
        return self.name.startswith("control")

    @property
    def own_gateway(self) -> bool:
        """Whether the cell's endpoint is a gateway of its own, beside it on the host."""
        return any(isinstance(case, PolicyCase) for case in self.cases)

    @property
    def sabotage(self) -> Sabotage | None:
        """Its first process, if that is not the stock one."""
        return next((case for case in self.cases if isinstance(case, Sabotage)), None)

    @property
    def exhaustion(self) -> Exhaustion | None:
        """The exhaustion that it runs, if any."""
        return next((case for case in self.cases if isinstance(case, Exhaustion)), None)


def all_cases() -> list[AnyCase]:
    """Every case, for the relay's process or for a VM."""
    return [*CASES, *BYPASSES, *SABOTAGES, *POLICIES, *EXHAUSTIONS]


def plan(machines: Machines, only: Sequence[str] = ()) -> list[Boot]:
    """The boots, each control before the boots that it is for. ``only``: the cases' names."""

    def chosen(cases: Sequence[AnyCase]) -> list[AnyCase]:
        return [case for case in cases if not only or case.name in only]

    every = machines.every or bool(only)
    attacks = chosen([*_frames(), *BYPASSES])
    return [
        *_wall_boots([case for case in attacks if case.verdict is not Verdict.PASS]),
        *_relay_boots(attacks, every=every),
        *_policy_boots(chosen(POLICIES), attacks),
        *_sabotage_boots([case for case in chosen(SABOTAGES) if isinstance(case, Sabotage)], every),
        *(Boot(case.name, (case,)) for case in chosen(EXHAUSTIONS)),
    ]


def _frames() -> list[Case]:
    """The cases of frames that a guest can send once its tunnel is up."""
    return [
        case
        for case in CASES
        if case.injection is Injection.FRAMES
        and Phase.RUNNING in case.phases
        and not case.wait
        and case.name not in _NOT_SENT_BY_A_KERNEL
    ]


def _wall_boots(attacks: Sequence[AnyCase]) -> list[Boot]:
    """The control; the guest's walls together; each of them alone."""
    if not attacks:
        return []
    boots = [
        Boot("control: every wall down", tuple(attacks), pass_through=True),
        Boot("the guest's walls", tuple(attacks), pass_through=True, walls=EVERY_WALL),
    ]
    for wall in Wall:
        stopped = tuple(case for case in attacks if _stopped_by(case, wall))
        name = f"the guest's {wall.value} alone"
        if stopped:
            boots.append(Boot(name, stopped, pass_through=True, walls=frozenset({wall})))
    return boots


def _stopped_by(case: AnyCase, wall: Wall) -> bool:
    """Whether this wall of the guest must stop the case, with the others down.

    Frames of a raw socket pass every firewall. The other walls prevent that a workload has one.
    """
    return wall in case.alone if isinstance(case, Bypass) else wall is not Wall.FIREWALL


def _in_order(survived: Sequence[AnyCase]) -> tuple[AnyCase, ...]:
    """A message far ahead makes the guest's own ones too old, so that case comes last."""
    return tuple(sorted(survived, key=lambda case: case.name == "counter-behind"))


def _relay_boots(attacks: Sequence[AnyCase], *, every: bool) -> list[Boot]:
    """The relay alone: all cases that the cell survives, then each that must end it."""
    survived = [case for case in attacks if case.verdict is not Verdict.KILL]
    boots = [Boot("what the cell survives", _in_order(survived))] if survived else []
    kills = (case for case in attacks if case.verdict is Verdict.KILL)
    return boots + [
        Boot(case.name, (case,))
        for case in kills
        if every or isinstance(case, Bypass) or case.name in _KILLS
    ]


def _policy_boots(policies: Sequence[AnyCase], attacks: Sequence[AnyCase]) -> list[Boot]:
    """The changes of rules, and behind them what the cell survives."""
    survived = [case for case in attacks if isinstance(case, Case) and case.verdict is Verdict.DROP]
    return [Boot(_RULES_CHANGED, (*policies, *_in_order(survived)))] if policies else []


def _sabotage_boots(sabotages: Sequence[Sabotage], every: bool) -> list[Boot]:
    """Each sabotage, behind its control: without it, or with its frames in sight."""
    chosen = [case for case in sabotages if every or not case.long]
    boots = []
    if any(not case.mark for case in chosen):
        boots.append(Boot("control: no sabotage", (HONEST,), walls=EVERY_WALL))
    for case in chosen:
        if case.mark:
            boots.append(Boot(f"control: {case.name}", (case,), pass_through=True))
        boots.append(Boot(case.name, (case,), walls=EVERY_WALL))
    return boots
