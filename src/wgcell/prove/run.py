"""One run, from what was asked to a `Run`: which cases in which phases, and what it can't show."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import wgcell
from wgcell import programs
from wgcell.cell.vouched import file_digest
from wgcell.errors import InputError
from wgcell.prove.battery import pcap
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.sabotage import SABOTAGES
from wgcell.prove.report import Run
from wgcell.prove.runners import direct, vm
from wgcell.prove.runners.boots import Machines, all_cases
from wgcell.prove.runners.boots import plan as plan_boots
from wgcell.prove.runners.storm import fuzz, storm
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.verdict import Result
from wgcell.vm.spec import Accelerator

__all__ = ["Asked", "Mode", "conduct", "plan"]


class Mode(Enum):
    """How much is played, and with what."""

    QUICK = "quick"
    DEFAULT = "default"
    LONG = "long"
    FRAMES = "frames"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for. ``times`` and ``storm`` count in the long form only."""

    mode: Mode
    only: tuple[str, ...] = ()
    own: tuple[pcap.UserFrame, ...] = ()
    times: int = 1
    storm: int = 1_000_000
    machines: Machines | None = None
    command: str = ""
    """What was typed, for the report."""


def plan(asked: Asked) -> list[direct.Step]:
    """The cases that are played into a relay's process, each in its phases.

    Raises InputError if ``only`` names a case that does not exist.
    """
    if asked.mode is Mode.FRAMES:
        return [(frame.case(), phase) for frame in asked.own for phase in frame.phases]
    known = {case.name for case in all_cases()}
    for name in asked.only:
        if name not in known:
            raise InputError(
                f"there is no case {name!r}",
                hint="wgcell prove --list names every case",
            )
    chosen = [case for case in CASES if not asked.only or case.name in asked.only]
    if asked.mode is Mode.LONG:
        return [
            (case, phase)
            for case in chosen
            for phase in case.long_phases
            for _ in range(1 if case.wait else asked.times)
        ]
    return [(case, phase) for case in chosen if not case.wait for phase in case.phases]


Told = Callable[[str, int, int], None]
"""What is being played, how many are done, how many there are."""


async def conduct(asked: Asked, testbed: Testbed, told: Told) -> Run:
    """Injection everything asked for; ``told`` hears of each step."""
    began, started = time.monotonic(), datetime.now(UTC)
    await testbed.start()
    results: list[Result] = []
    played = plan(asked)
    boots = plan_boots(asked.machines, asked.only) if asked.machines else []
    total = len(played) + len(boots)
    told("the relay's process", 0, total)
    async for result in direct.run_all(testbed, played):
        results.append(result)
        told(f"{result.group}: {result.case}", len(results), total)
    if asked.mode is Mode.LONG and asked.storm and not asked.only:
        results.append(await storm(testbed, CASES, asked.storm))
        results.append(await fuzz(testbed, asked.storm // 4))
    if asked.machines is not None:
        done = len(played)
        async for name, found in vm.run_all(testbed, asked.machines, boots):
            results += found
            done += 1
            told(name, done, total)
    await testbed.endpoint.stop()
    facts = [
        ("wgcell", wgcell.__version__),
        ("commit", commit()),
        ("when", started.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("host", f"{platform.node()}, Linux {platform.release()}, {platform.machine()}"),
        ("Python", platform.python_version()),
        ("mode", asked.mode.value),
        ("oracle", testbed.sees),
        *(_machines(asked.machines) if asked.machines else [("machines", "none were booted")]),
    ]
    return Run(
        asked.mode.value,
        testbed.sees,
        time.monotonic() - began,
        tuple(facts),
        tuple(results),
        tuple(_not_shown(asked, testbed, results)),
        played_in_words(asked),
        asked.command,
    )


def _machines(machines: Machines) -> list[tuple[str, str]]:
    facts = dict(machines.facts())
    manifest = file_digest(machines.platform.image.folder / "manifest.json")["sha256"]
    return list({**facts, "image": f"{facts['image']}, manifest's SHA-256 {manifest}"}.items())


def played_in_words(asked: Asked) -> str:
    """One sentence on what is run: the mode, and whether there were machines, and of what kind."""
    if asked.machines is None:
        own = "your own frames" if asked.mode is Mode.FRAMES else "frames"
        return (
            f"Run as {asked.mode.value}: {own} were put into the relay's own process; no virtual "
            "machine was booted."
        )
    emulated = asked.machines.platform.accelerator is Accelerator.TCG
    kind = (
        "emulated by QEMU, which its authors do not call a security boundary"
        if emulated
        else "on KVM"
    )
    return (
        f"Run as {asked.mode.value}: frames were put into the relay's own process, and real "
        f"virtual machines were booted, {kind}."
    )


def commit() -> str:
    """The commit that this wgcell was made of, as git or the package's installer has it."""
    with contextlib.suppress(PackageNotFoundError, ValueError, KeyError, TypeError):
        direct = json.loads(distribution("wgcell").read_text("direct_url.json") or "{}")
        return str(direct["vcs_info"]["commit_id"])
    package = Path(wgcell.__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # Tracked: a virtual environment may lie in somebody else's repository.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        dirty = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(package, "rev-parse", "HEAD") + (", with changes" if dirty else "")
    return "not known: not a checkout"


def _git(folder: Path, *words: str) -> str:
    argv = ["git", "-C", str(folder), *words]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
        env=programs.environment("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"),
    )
    return done.stdout.strip()


def _not_shown(asked: Asked, testbed: Testbed, results: Sequence[Result]) -> list[str]:
    sentences = [
        "Junk behind the header of a live session passes, to the one endpoint, which discards it: "
        "a relay without a key can't tell it from traffic.",
        "The captures see packets; they do not see what a guest might tell another cell through "
        "the processor's caches or the load of the machine.",
        "A bound of 3/N is for frames drawn like these. It is no bound on an attacker's wit.",
    ]
    if not testbed.complete:
        sentences.append(
            "No network namespaces could be made, so only the relay's own socket was watched: "
            "a packet that took another way would not have been seen."
        )
    if asked.machines is None:
        sentences.append("No VM was booted: QEMU, its jail and the guest's own walls took no part.")
    elif not asked.machines.every:
        sentences.append(
            "Of the frames, a representative few were played from within a VM with every wall of "
            "the guest's down; --long plays each."
        )
    if asked.mode is not Mode.LONG:
        slow = [case.name for case in CASES if case.wait]
        if asked.machines is not None:
            slow += [case.name for case in SABOTAGES if case.long]
        late = ", ".join(slow)
        sentences.append(f"Played by --long only, because they wait for minutes: {late}.")
    return sentences
