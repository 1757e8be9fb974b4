"""Runs the battery from within VMs: each boot in turn, and a result for each of its cases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from wgcell.cell.states import Outcome
from wgcell.errors import HostError
from wgcell.prove.battery.bypass import Bypass
from wgcell.prove.battery.case import Case
from wgcell.prove.battery.exhaustion import Exhaustion
from wgcell.prove.battery.policy import POLICIES, Ends, PolicyCase
from wgcell.prove.battery.sabotage import HONEST, SABOTAGES, Sabotage
from wgcell.prove.runners import cell
from wgcell.prove.runners.boots import EVERY_WALL, AnyCase, Boot, Machines
from wgcell.prove.runners.recording import Recording
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.testbed.capture import carries
from wgcell.prove.verdict import Observation, Phase, Result, Status, Verdict, judge

__all__ = ["run_all"]

_RELAY = "relay, with a VM before it"
_WATCH = "supervisor, watching the guest"
_GATEWAY = "relay, with rules changed and a port published"
_ALLOWED = tuple(case.before for case in POLICIES if case.ends is not Ends.NEVER_WAS)
_INCOMPLETE = "it needs network namespaces, to see what leaves the host"
_BOUNDS = "bounds of the cell, with a VM in it"
_ROGUE, _COMPLETED = Outcome.ROGUE.value, Outcome.COMPLETED.value
_DUPLICATE = "counter-again"
"""A case whose frame differs from an honest one in its number alone, which `direct` counts."""


async def run_all(
    testbed: Testbed, machines: Machines, boots: Sequence[Boot]
) -> AsyncIterator[tuple[str, list[Result]]]:
    """Run each boot in turn: its name and its results. A control has none of its own."""
    controls: dict[str, bool] = {}
    for boot in boots:
        if boot.own_gateway and not testbed.complete:
            yield boot.name, [_not_played(boot, case, _INCOMPLETE) for case in boot.cases]
            continue
        try:
            recording = await cell.run(testbed, machines, boot)
        except HostError as error:
            if not boot.own_gateway:
                raise
            yield boot.name, [_not_played(boot, case, error.message) for case in boot.cases]
            continue
        if boot.control:
            controls.update(_controls(boot, recording))
            yield boot.name, []
        else:
            yield boot.name, [_result(boot, case, recording, controls) for case in boot.cases]


def _controls(boot: Boot, recording: Recording) -> dict[str, bool]:
    """By case, whether its control has succeeded."""
    if boot.sabotage is HONEST:
        completed = recording.outcome in HONEST.ends
        return {case.name: completed for case in SABOTAGES if not case.mark}
    if boot.sabotage is not None:
        return {boot.sabotage.name: recording.carried(boot.sabotage.mark)}
    marks = {case.name: recording.marks.get(case.name, []) for case in boot.cases}
    return {name: bool(of) and all(map(recording.carried, of)) for name, of in marks.items()}


def _result(boot: Boot, case: AnyCase, recording: Recording, controls: dict[str, bool]) -> Result:
    match case:
        case Sabotage():
            return _sabotage(case, recording, controls)
        case Exhaustion():
            return _exhaustion(case, recording)
        case PolicyCase():
            return _policy(boot, case, recording)
        case _:
            return _attack(boot, case, recording, controls)


def _attack(
    boot: Boot, case: Case | Bypass, recording: Recording, controls: dict[str, bool]
) -> Result:
    """The result of a frame or a bypass."""
    due = Verdict.DROP if boot.walls and case.verdict is Verdict.KILL else case.verdict
    passes = due is Verdict.PASS
    marks = recording.marks.get(case.name, [])
    seen = bool(marks) and all(map(recording.carried, marks))
    observation = Observation(
        leaks=tuple(_leaks(boot, case, recording, passes=passes)),
        cut=recording.outcome == _ROGUE,
        alive=recording.done and recording.outcome == _COMPLETED,
        arrived=passes and seen,
        lost=recording.lost,
        control=None if passes else controls.get(case.name, False) and bool(marks),
        said=recording.reason or ", ".join(recording.refusals()),
        seconds=recording.seconds / len(boot.cases),
        frames=max(len(marks), 1),
    )
    status, why = judge(due, Phase.RUNNING, observation, control_asked=not passes)
    return Result(
        *(case.name, case.group, case.does, _wall(boot), Phase.RUNNING, due),
        *(status, why, observation),
    )


def _leaks(boot: Boot, case: Case | Bypass, recording: Recording, *, passes: bool) -> list[str]:
    # A stray packet can't be ascribed to one of several cases: it is the first one's.
    first = case is boot.cases[0]
    leaks = recording.strays(pass_through=boot.pass_through) if first else []
    if boot.own_gateway:  # its first case has the strays
        leaks = []
    if not passes and case.name != _DUPLICATE:
        marks = recording.marks.get(case.name, [])
        leaks += [f"seen outside: {mark.hex()}" for mark in marks if recording.carried(mark)]
    return leaks


def _wall(boot: Boot) -> str:
    """The name of the walls under test, for the report."""
    if boot.own_gateway:
        return _GATEWAY
    if not boot.walls:
        return _RELAY
    return "guest's walls" if boot.walls == EVERY_WALL else boot.name.removeprefix("the ")


def _policy(boot: Boot, case: PolicyCase, recording: Recording) -> Result:
    """The result of a change of rules, whose own first mark is its control."""
    host_only = case.ends is Ends.NEVER_WAS
    cable = recording.on_cable()
    leaks = [f"seen outside: {case.after!r}"] if carries(cable, case.after) else []
    if case is boot.cases[0]:
        leaks += recording.strays_beside(_ALLOWED)
    observation = Observation(
        leaks=tuple(leaks),
        cut=recording.outcome == _ROGUE,
        alive=recording.done and recording.outcome == _COMPLETED,
        lost=recording.lost,
        control=carries(recording.packets if host_only else cable, case.before),
        said=recording.reason or "; ".join(recording.messages),
        seconds=recording.seconds / len(boot.cases),
    )
    status, why = judge(case.verdict, Phase.RUNNING, observation)
    return Result(
        *(case.name, case.group, case.does, _wall(boot), Phase.RUNNING, case.verdict),
        *(status, why, observation),
    )


def _not_played(boot: Boot, case: AnyCase, why: str) -> Result:
    return Result(
        *(case.name, case.group, case.does, _wall(boot), Phase.RUNNING, case.verdict),
        *(Status.NOT_PLAYED, why),
    )


def _sabotage(case: Sabotage, recording: Recording, controls: dict[str, bool]) -> Result:
    observation = Observation(
        leaks=tuple(recording.strays()),
        cut=recording.outcome in case.ends,
        alive=recording.outcome == _COMPLETED,
        lost=recording.lost,
        control=controls.get(case.name, False),
        said=recording.reason,
        seconds=recording.seconds,
    )
    status, why = judge(Verdict.KILL, Phase.RUNNING, observation)
    wall = _RELAY if case.mark else _WATCH
    return Result(
        *(case.name, case.group, case.does, wall, case.phase, Verdict.KILL),
        *(status, why, observation),
    )


def _exhaustion(case: Exhaustion, recording: Recording) -> Result:
    ended = recording.outcome
    left = len({packet.tunnel for packet in recording.packets if packet.out and packet.tunnel})
    completed = ended == _COMPLETED
    lived = completed and (recording.done or case.verdict is Verdict.STOP)
    observation = Observation(
        leaks=tuple(recording.strays()),
        cut=ended == _ROGUE or (case.verdict is Verdict.STOP and not completed),
        alive=lived,
        arrived=case.verdict is Verdict.PASS and lived,
        beyond=tuple(recording.use.beyond()),
        lost=recording.lost,
        control=case.seen(recording.use, left),
        said=recording.use.shown(),
        seconds=recording.seconds,
    )
    status, why = judge(case.verdict, Phase.RUNNING, observation)
    return Result(
        *(case.name, case.group, case.does, _BOUNDS, Phase.RUNNING, case.verdict),
        *(status, why, observation),
    )
