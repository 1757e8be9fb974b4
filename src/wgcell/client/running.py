"""What can be asked of a cell that runs, whoever has started it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable
from wgcell.cell.control.session_client import Closed, SessionClient
from wgcell.cell.folder import Folder
from wgcell.cell.states import Outcome
from wgcell.client import rules
from wgcell.client.asking import answer, following
from wgcell.client.commands import MOST_OUTPUT, Asked, Process, run_to_its_end
from wgcell.client.completed import (
    RAN_TO_ITS_END,
    Completed,
    Refusal,
    checked,
    completed_of,
    died,
    end_of,
    refusals,
    was_released,
)
from wgcell.client.files import Files
from wgcell.client.record import Event, event_of, lines, recorded_end
from wgcell.client.rules import Change, Rule
from wgcell.client.stopping import ask_to_end
from wgcell.errors import Ended, StateError, WgcellError
from wgcell.guest.subjects import Attach

__all__ = ["ENDS_WITHIN", "RunningCell"]

ENDS_WITHIN = 60.0
"""Seconds that a cell has to end which was let go of, or whose connection has broken off."""
_POLL = 0.1
"""Seconds between looks at a cell that has no control socket."""
_KILLED = 128
"""What a killed command's exit code is above."""
_ALIVE = ("running", "paused")
_PAUSES_WITHIN = 30.0
"""Seconds that a machine has to stand still, or to go on."""


class RunningCell:
    """One cell, by its folder and its control socket."""

    def __init__(self) -> None:
        self._folder: Folder | None = None
        self._ended: words.Ended | None = None
        self._sessions: SessionClient | None = None
        self._connecting = asyncio.Lock()
        self.files = Files(lambda: self._known, self._connect)
        """Its files: `read`, `write`, `list`."""

    # Its end.

    async def stop(self, *, now: bool = False) -> None:
        """End the cell, and wait until it has ended: its command gets SIGTERM, its grace period,
        then SIGKILL, and its outputs are brought; ``now``: at once, without any of it."""
        await asyncio.to_thread(ask_to_end, self._known, now=now)
        await self._end()

    async def wait(self) -> Completed:
        """Wait until the cell has ended.

        Returns what its command has come to. Raises Ended, Rogue or TimedOut for a cell that ended
        otherwise, NeverRan or OutcomeUnknown for one that died.
        """
        end = await self._end()
        if end is None:
            raise died(self._known)
        released = end.outcome in RAN_TO_ITS_END or was_released(self._known)
        error = end_of(self._known, end.outcome, end.exit_code, end.reason, released=released)
        if error is not None:
            raise error
        missing = end.reason if end.outcome == Outcome.INCOMPLETE.value else ""
        return await asyncio.to_thread(completed_of, self._known, end.exit_code, missing)

    async def _end(self) -> words.Ended | None:
        """How the cell has ended, once it has; None if it died."""
        if self._ended is None:
            try:
                async with contextlib.aclosing(following(self._known, words.End())) as said:
                    async for word in said:
                        if isinstance(word, words.Ended):
                            self._ended = word
            except (Unreachable, StateError):
                pass  # it has ended, or has no socket: its folder says the rest
            while self._known.alive:
                await asyncio.sleep(_POLL)
            self._ended = self._ended or recorded_end(self._known)
        return self._ended

    # What is run in it.

    async def exec(
        self,
        *command: str,
        input: bytes | str = b"",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        check: bool = False,
        most: int = MOST_OUTPUT,
    ) -> Completed:
        """Run a command in the cell, to its end.

        ``input`` is its standard input, ``timeout`` seconds that it has, ``env`` variables besides
        the cell's own, ``workdir`` its folder (/work), ``user`` its user, as ``name`` or
        ``uid:gid`` (root). ``most`` bytes are kept of each stream, the first ones. ``check``: an
        exit code other than 0 raises CommandFailed, or Refused if the gateway has refused
        something meanwhile.

        Raises TimedOut when its time is up: it is killed then. Raises StateError with why it can't
        be started: the cell is paused, or full. Raises Ended, Rogue or OutcomeUnknown if the cell
        ends before it does.
        """
        data = input.encode() if isinstance(input, str) else input
        asked = Asked.of(command, env=env, workdir=workdir, user=user, stdin=bool(data))
        began = time.time()
        process = Process(self._connect, asked.subject())
        try:
            done = await run_to_its_end(self._known, process, asked, data, timeout, most)
        except Closed as error:
            raise await self._broken_off(error) from None
        if done.exit_code > _KILLED and await self.state() not in _ALIVE:
            # With the cell, then: what it would have come to, nobody knows.
            raise await self._broken_off(StateError(f"{self.id}: the cell is ending"))
        if check and done.exit_code:
            return checked(done, await self.refusals(began))
        return done

    def spawn(
        self,
        *command: str,
        tty: bool | tuple[int, int] = False,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
    ) -> Process:
        """A command to write to and read from while it runs; started by ``async with``.

        ``tty``: it has a terminal, of so many rows and columns (24, 80). The rest as in `exec`.
        """
        asked = Asked.of(command, env=env, workdir=workdir, user=user, tty=tty)
        return Process(self._connect, asked.subject())

    def attach(self, *, stdin: bool = False) -> Process:
        """The cell's own command, from now on: what it prints and, with ``stdin``, its standard
        input, which one at a time may have. It ends when the cell does, with its exit code."""
        return Process(self._connect, Attach(stdin))

    async def _connect(self) -> SessionClient:
        """The connection for sessions; there is one, as long as it lasts."""
        async with self._connecting:
            if self._sessions is None or self._sessions.is_lost:
                self._sessions = await SessionClient.connect(self._known)
            return self._sessions

    async def _broken_off(self, closed: StateError) -> WgcellError:
        """The error that a connection is which has broken off: the cell's end, if it is that."""
        try:
            end = await asyncio.wait_for(self._end(), ENDS_WITHIN)
        except TimeoutError:
            return closed
        if end is None:
            return died(self._known)
        return end_of(
            *(self._known, end.outcome, end.exit_code, end.reason),
            released=was_released(self._known),
        ) or Ended(
            f"{self.id}: the cell has ended: {end.outcome}",
            cell=self.id,
            folder=str(self.folder),
            outcome=end.outcome,
            exit_code=end.exit_code,
        )

    # What it may reach.

    async def allow(self, rule: str, *, seconds: float | None = None, typed: bool = True) -> Change:
        """Let the cell reach ``rule``, as ``api.example.com:443``, for ``seconds`` or to its end.

        The rule stands before all others, at once; when its time is over, flows that it alone has
        allowed are cut. ``typed``: the word of whoever owns the cell; otherwise it is held to the
        provider's limits, as a stranger's job is. Raises StateError with why it can't be: the rule
        is none, the provider does not allow it, the cell has no gateway of its own.
        """
        return await self._changed(words.Allow(rule, typed, seconds))

    async def deny(self, rule: str) -> Change:
        """Let the cell not reach ``rule``, at once; open flows to it are cut. Raises as `allow`."""
        return await self._changed(words.Deny(rule))

    async def policy(self) -> tuple[Rule, ...]:
        """What the cell may reach: the rules, in the order in which its gateway reads them."""
        said = await self._asked(words.Policy(), rules.PATIENCE)
        return tuple(Rule.of(word) for word in said if isinstance(word, words.Rule))

    async def _changed(self, question: words.Allow | words.Deny) -> Change:
        said = await self._asked(question, rules.PATIENCE)
        for word in said:
            if isinstance(word, words.PolicyChanged):
                return Change.of(word)
        raise StateError(f"{self.id}: this is no answer to what was asked")

    # What it is.

    @property
    def id(self) -> str:
        """What ``wgcell ps`` calls it."""
        return self._known.id

    @property
    def folder(self) -> Path:
        """Where its records are: ``events.jsonl``, ``result.json``, the logs of its command."""
        return self._known.path

    @property
    def _known(self) -> Folder:
        if self._folder is None:
            raise StateError("this cell has not been started", hint="async with Cell(...) as cell")
        return self._folder

    async def state(self) -> str:
        """In a word: ``running``, ``paused``, ``stopping``; the outcome of one that has ended."""
        try:
            (word,) = await answer(self._known, words.State())
        except (Unreachable, StateError):
            return await asyncio.to_thread(self._known.status)
        return word.state if isinstance(word, words.Status) else ""

    async def pause(self) -> None:
        """Let the machine stand still. Raises StateError with why it can't."""
        await self._asked(words.Pause(), _PAUSES_WITHIN)

    async def unpause(self) -> None:
        """Let the machine go on. Raises StateError with why it can't."""
        await self._asked(words.Unpause(), _PAUSES_WITHIN)

    async def _asked(self, question: words.Question, patience: float) -> list[words.Answer]:
        try:
            return await answer(self._known, question, patience)
        except Unreachable as error:
            raise StateError(f"{self.id}: it can't be reached: {error}") from None

    # What happens to it.

    async def events(self, since: int = 0, *, follow: bool = True) -> AsyncGenerator[Event, None]:
        """The events from the sequence number ``since`` on; with ``follow`` until the cell ends."""
        at = since
        with contextlib.suppress(Unreachable):
            question = words.Events(since, follow)
            async with contextlib.aclosing(following(self._known, question)) as said:
                async for word in said:
                    if isinstance(word, words.Event):
                        at += 1
                        yield event_of(word.line)
                return
        for line in await asyncio.to_thread(lines, self._known, at):
            yield event_of(line)

    async def refusals(self, since: float = 0.0) -> tuple[Refusal, ...]:
        """What its gateway has refused since then (seconds since the epoch), each kind once."""
        found = [(one.time, one.fields) async for one in self.events(follow=False)]
        return refusals(found, since)

    async def _hang_up(self) -> None:
        """Close the connection for sessions: what runs on it gets SIGHUP."""
        if self._sessions is not None:
            await self._sessions.close()
            self._sessions = None
