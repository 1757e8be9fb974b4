"""One run: a request on a testbed becomes a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.sabotage import SABOTAGES
from wgcell.prove.provenance import facts
from wgcell.prove.report.content import Report
from wgcell.prove.request import Mode, Request, description, steps
from wgcell.prove.runners import boots, direct, vm
from wgcell.prove.runners.storm import fuzz, storm
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.verdict import Result

__all__ = ["Progress", "run"]

Progress = Callable[[str, int, int], None]
"""Gets the name of the present step, how many steps are done, and how many there are."""


async def run(request: Request, testbed: Testbed, progress: Progress) -> Report:
    """Run all that ``request`` asks for; ``progress`` gets each step."""
    began, started = time.monotonic(), datetime.now(UTC)
    await testbed.start()
    results = await _results(request, testbed, progress)
    await testbed.endpoint.stop()
    mode = request.mode.value
    return Report(
        mode=mode,
        oracle=testbed.sees,
        seconds=time.monotonic() - began,
        facts=tuple(facts(mode, started, testbed.sees, request.machines)),
        results=tuple(results),
        not_shown=tuple(_not_shown(request, testbed)),
        description=description(request),
        command=request.command,
    )


async def _results(request: Request, testbed: Testbed, progress: Progress) -> list[Result]:
    results: list[Result] = []
    cases = steps(request)
    booted = boots.plan(request.machines, request.only) if request.machines else []
    total = len(cases) + len(booted)
    progress("the relay's process", 0, total)
    async for result in direct.run_all(testbed, cases):
        results.append(result)
        progress(f"{result.group}: {result.case}", len(results), total)
    if request.mode is Mode.LONG and request.storm and not request.only:
        results.append(await storm(testbed, CASES, request.storm))
        results.append(await fuzz(testbed, request.storm // 4))
    if request.machines is not None:
        done = len(cases)
        async for name, found in vm.run_all(testbed, request.machines, booted):
            results += found
            done += 1
            progress(name, done, total)
    return results


def _not_shown(request: Request, testbed: Testbed) -> list[str]:
    """Sentences on the limits of this run."""
    machines = request.machines
    sentences = [
        "Junk behind the header of a live session passes, to the one endpoint, which discards it: "
        "a relay without a key can't distinguish it from traffic.",
        "The captures show packets. They do not show signals between two cells through the "
        "processor's caches or the load of the machine.",
        "A bound of 3/N is for frames drawn like these. An attacker may find others.",
    ]
    if not testbed.complete:
        sentences.append(
            "No network namespaces could be made, so only the relay's own socket was watched: "
            "the captures would have missed a packet that took another way."
        )
    if machines is None:
        sentences.append("No VM was booted: QEMU, its jail and the guest's own walls took no part.")
    elif not machines.every:
        sentences.append(
            "Of the frames, a representative few were sent from within a VM with every wall of "
            "the guest down; --long sends each."
        )
    if request.mode is not Mode.LONG:
        slow = [case.name for case in CASES if case.wait]
        if machines is not None:
            slow += [case.name for case in SABOTAGES if case.long]
        names = ", ".join(slow)
        sentences.append(f"Run by --long only, because they wait for minutes: {names}.")
    return sentences
