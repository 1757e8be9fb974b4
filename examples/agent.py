"""An agent's loop: a model says what to do next, a cell does it, and the model sees the result.

The model here is a script, so that the example runs by itself. Put yours in its place: it gets the
conversation so far, and answers with one action. Whatever it makes up runs in a cell that reaches
nothing but what a person has allowed. The gateway's refusals are shown to the model, and a person
is asked for more.

    python3 examples/agent.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import wgcell

MOST_STEPS = 20
MOST_SHOWN = 2000
"""Characters of an output that the model sees."""


@dataclass(frozen=True)
class Write:
    """Write a file."""

    path: str
    text: str


@dataclass(frozen=True)
class Run:
    """Run a command."""

    command: tuple[str, ...]


@dataclass(frozen=True)
class Allow:
    """Ask a person for a way out."""

    rule: str
    why: str


@dataclass(frozen=True)
class Answer:
    """The task is done."""

    text: str


Action = Write | Run | Allow | Answer
Model = Callable[[list[str]], Action]


@dataclass
class Agent:
    """One task, done by a model in a cell."""

    cell: wgcell.Cell
    model: Model
    ask: Callable[[str], bool]
    """Asks a person; whether it is allowed."""
    seen: list[str] = field(default_factory=list)

    async def work(self) -> str:
        """What the model answers in the end."""
        for _ in range(MOST_STEPS):
            action = self.model(self.seen)
            if isinstance(action, Answer):
                return action.text
            self.seen.append(await self._do(action))
        raise RuntimeError(f"no answer within {MOST_STEPS} steps")

    async def _do(self, action: Action) -> str:
        match action:
            case Write(path, text):
                await self.cell.files.write(path, text)
                return f"wrote {path}"
            case Run(command):
                return await self._run(command)
            case Allow(rule, why):
                if not self.ask(f"allow {rule} for ten minutes? {why}"):
                    return f"{rule} was not allowed"
                await self.cell.allow(rule, seconds=600)
                return f"{rule} is allowed for ten minutes"
            case _:
                return "that is no action"

    async def _run(self, command: tuple[str, ...]) -> str:
        try:
            done = await self.cell.exec(*command, timeout=120, check=True)
        except wgcell.Refused as refused:
            return f"exit code {refused.exit_code}; {refused.what} was refused: {refused.rule}"
        except wgcell.CommandFailed as failed:
            said = failed.stderr.decode("utf-8", "backslashreplace")
            return f"exit code {failed.exit_code}\n{said[-MOST_SHOWN:]}"
        except wgcell.TimedOut:
            return "it ran for two minutes, and was killed"
        return done.text[:MOST_SHOWN]


def scripted(seen: list[str]) -> Action:
    """A model that makes one mistake, sees it, and corrects it."""
    primes = "print([n for n in range(2, 50) if all(n % d for d in range(2, {}))])\n"
    match len(seen):
        case 0:
            return Write("primes.py", primes.format("n-"))
        case 1 | 3:
            return Run(("python3", "primes.py"))
        case 2 if "SyntaxError" in seen[-1]:
            return Write("primes.py", primes.format("n"))
        case _:
            return Answer(seen[-1].strip())


async def main() -> None:
    """Do the script's task."""

    def ask(question: str) -> bool:
        return input(f"{question} [y/N] ").strip().lower() == "y"

    async with wgcell.Cell(memory="512MiB", remove=True, remark=print) as cell:
        print(await Agent(cell, scripted, ask).work())


if __name__ == "__main__":
    asyncio.run(main())
