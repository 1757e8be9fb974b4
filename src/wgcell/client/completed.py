"""What a program gets of a cell that has ended, and of a command in one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wgcell.cell.folder import LOG_CAP, Folder
from wgcell.cell.states import Outcome, State
from wgcell.errors import (
    CellError,
    CommandFailed,
    Ended,
    NeverRan,
    OutcomeUnknown,
    Refused,
    Rogue,
    TimedOut,
    Unverified,
)
from wgcell.gateway.peer.tally import Tally

__all__ = [
    "RAN_TO_ITS_END",
    "Completed",
    "Refusal",
    "Usage",
    "checked",
    "completed_of",
    "died",
    "end_of",
    "refusals",
    "was_released",
]


@dataclass(frozen=True, slots=True)
class Usage:
    """What it took."""

    seconds: float
    """From the release of the cell's command, or the command's start, to its end."""
    sent: int | None = None
    """Bytes of WireGuard messages out of the cell; None: of a command alone nobody can say."""
    received: int | None = None
    """Likewise into the cell."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has run to its end, in a cell or as a cell's own."""

    cell: str
    """The cell's id."""
    folder: str
    """The path of the cell's records."""
    command: tuple[str, ...]
    exit_code: int
    """0 to 255; 128 and a signal's number of a command that was killed by one."""
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    usage: Usage
    truncated: bool = False
    """Whether it wrote more than was kept of a stream: its first bytes are here."""
    missing: str = ""
    """What is missing of the outputs that were asked for, in words. The exit code is then the
    command's, or 118 if that was 0."""

    @property
    def text(self) -> str:
        """``stdout`` as text; what is no UTF-8 in it is spelled out (``\\\\xff``)."""
        return self.stdout.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that the gateway refused, or could not reach."""

    what: str
    """As ``files.example.com:443``, or a name that was asked for."""
    rule: str
    """What would allow it (`Cell.allow`); empty where nothing can be named."""
    reason: str
    time: float
    """Seconds since the epoch."""

    @staticmethod
    def of(event: Mapping[str, Any], time: float) -> Refusal | None:
        """The refusal that an event of the record tells of, if it is one. It may be hostile."""
        if event.get("event") != "flow" or event.get("verdict") != "refuse":
            return None
        rule = str(event.get("hint") or "")
        reason = str(event.get("reason") or "no rule allows it")
        return Refusal(Tally.target(event), "" if rule.startswith("-") else rule, reason, time)


def refusals(
    events: Iterable[tuple[float, Mapping[str, Any]]], since: float
) -> tuple[Refusal, ...]:
    """Each kind of refusal among the ``events`` once, from that time on, the first ones first."""
    found: dict[tuple[str, str], Refusal] = {}
    for time, event in events:
        refusal = Refusal.of(event, time) if time >= since else None
        if refusal is not None:
            found.setdefault((refusal.what, refusal.rule), refusal)
    return tuple(found.values())


def checked(completed: Completed, refused: tuple[Refusal, ...]) -> Completed:
    """``completed``, if its exit code is 0. Raises CommandFailed, or Refused if something was."""
    if completed.exit_code == 0:
        return completed
    what = f"{completed.cell}: {' '.join(completed.command):.200} exited with {completed.exit_code}"
    cell, folder, code = completed.cell, completed.folder, completed.exit_code
    stdout, stderr = completed.stdout, completed.stderr
    if not refused:
        raise CommandFailed(
            what, cell=cell, folder=folder, exit_code=code, stdout=stdout, stderr=stderr
        )
    first = next((one for one in refused if one.rule), refused[0])
    raise Refused(
        f"{what}; the gateway refused {first.what}: {first.reason}",
        cell=cell,
        folder=folder,
        exit_code=code,
        rule=first.rule,
        what=first.what,
        stdout=stdout,
        stderr=stderr,
    )


# A cell's end, as an error.


def was_released(folder: Folder) -> bool:
    """Whether anything of the requester's may have run: the record says so before it happens."""
    states = (entry.get("state") for entry in folder.recorded("state"))
    return any(state == State.RUNNING.value for state in states)


RAN_TO_ITS_END = (Outcome.COMPLETED.value, Outcome.INCOMPLETE.value)
_KINDS: Mapping[Outcome, type[Ended]] = {Outcome.ROGUE: Rogue, Outcome.TIMEOUT: TimedOut}


def end_of(
    folder: Folder, outcome: str, exit_code: int, reason: str, *, released: bool
) -> CellError | None:
    """The error that an outcome is; None for ``completed`` and ``incomplete``."""
    about = {"cell": folder.id, "folder": str(folder.path)}
    sentence = f"{folder.id}: {outcome}: {reason}" if reason else f"{folder.id}: {outcome}"
    if not released:
        kind = Unverified if outcome == Outcome.UNVERIFIED.value else NeverRan
        return kind(sentence, **about)
    if outcome in RAN_TO_ITS_END:
        return None
    kinds = {known.value: kind for known, kind in _KINDS.items()}
    return kinds.get(outcome, Ended)(sentence, **about, outcome=outcome, exit_code=exit_code)


def died(folder: Folder) -> CellError:
    """The error that a cell without a record of its end is."""
    about = {"cell": folder.id, "folder": str(folder.path)}
    if was_released(folder):
        return OutcomeUnknown(f"{folder.id}: its supervisor died, and its machine with it", **about)
    return NeverRan(f"{folder.id}: its supervisor died before the workload was released", **about)


def completed_of(folder: Folder, exit_code: int, missing: str = "") -> Completed:
    """What a cell's own command has come to that has run to its end, from the cell's folder."""
    result, job = folder.read("result.json") or {}, folder.read("job.json") or {}
    stdout, more = _log(folder, "stdout.log")
    stderr, more_too = _log(folder, "stderr.log")
    command = job.get("command")
    return Completed(
        cell=folder.id,
        folder=str(folder.path),
        command=tuple(map(str, command)) if isinstance(command, list) else (),
        exit_code=exit_code,
        stdout=stdout,
        stderr=stderr,
        usage=_usage(result),
        truncated=more or more_too,
        missing=missing,
    )


def _usage(result: Mapping[str, object]) -> Usage:
    phases, relay = _numbers(result.get("phases")), _numbers(result.get("relay"))
    released = phases.get(State.RUNNING.value, 0.0)
    seconds = phases.get(State.STOPPING.value, released) - released
    sent, received = relay.get("bytes_out"), relay.get("bytes_in")
    return Usage(
        round(seconds, 3),
        None if sent is None else int(sent),
        None if received is None else int(received),
    )


def _numbers(table: object) -> Mapping[str, float]:
    if not isinstance(table, dict):
        return {}
    return {name: value for name, value in table.items() if isinstance(value, int | float)}


def _log(folder: Folder, name: str) -> tuple[bytes, bool]:
    """What a stream's log holds, and whether more was written than it holds."""
    try:
        with folder.open(name) as file:
            data = file.read(LOG_CAP + 1)
    except OSError:
        data = b""
    return data[:LOG_CAP], len(data) > LOG_CAP
