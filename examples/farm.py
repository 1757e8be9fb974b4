"""A build farm: many builds at once, each in a cell of its own, their results in one folder.

Each folder on the command line is one build: its contents go into /work, and what the command has
left in ``out/`` comes back. A build that never ran, because its cell could not be started, is tried
again; one that failed is not.

    python3 examples/farm.py --command 'sh build.sh' --into results projects/*
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import wgcell

AT_ONCE = 2
TRIES = 3


@dataclass(frozen=True)
class Built:
    """What one build has come to."""

    project: Path
    exit_code: int | None
    """None: it did not run to its end."""
    words: str
    seconds: float = 0.0


async def build(
    project: Path, command: Sequence[str], into: Path, allow: Sequence[str], gate: asyncio.Semaphore
) -> Built:
    """Build one project; what it has left in ``out/`` is then in ``into``, under its name."""
    for left in reversed(range(TRIES)):
        try:
            async with (
                gate,
                wgcell.Cell(
                    *command,
                    name="build",
                    allow=allow,
                    inputs=[f"{project}/."],
                    outputs=["out"],
                    output_dir=into / project.name,
                    timeout="30m",
                    remove=True,
                ) as cell,
            ):
                done = await cell.wait()
                return Built(project, done.exit_code, done.text[-200:].strip(), done.usage.seconds)
        except wgcell.NeverRan as error:
            if not left:
                return Built(project, None, error.message)
        except wgcell.CellError as error:  # it may have run: what it did may have had its effect
            return Built(project, None, error.message)
    raise AssertionError("unreachable")


async def farm(
    projects: Sequence[Path],
    command: Sequence[str],
    into: Path,
    allow: Sequence[str] = (),
    at_once: int = AT_ONCE,
) -> list[Built]:
    """Build every project, so many at once."""
    gate = asyncio.Semaphore(at_once)
    works = [build(project, command, into, allow, gate) for project in projects]
    return list(await asyncio.gather(*works))


def main() -> int:
    """The command line; 0 if every build has succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--command", default="sh build.sh", type=shlex.split)
    parser.add_argument("--into", default=Path("results"), type=Path)
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--at-once", default=AT_ONCE, type=int)
    asked = parser.parse_args()
    asked.into.mkdir(parents=True, exist_ok=True)
    built = asyncio.run(farm(asked.projects, asked.command, asked.into, asked.allow, asked.at_once))
    for one in built:
        code = "no result" if one.exit_code is None else f"exit code {one.exit_code}"
        print(f"{one.project.name}: {code}, {one.seconds:.1f} s: {one.words}")
    return 0 if all(one.exit_code == 0 for one in built) else 1


if __name__ == "__main__":
    raise SystemExit(main())
