"""The words on a cell's control socket: one question a connection, its answer, the end.

A client sends `Hello` with its version, then one question. The cell sends `Hello`, the answer's
words, and `Over`; or `QuestionRefused`, with a reason to print. `Hello` and `QuestionRefused` have
the same form in every version, so a client of another version still learns why it gets no answer.
See `wgcell.wire.lines` for the values that a line may hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wgcell.cell.states import Outcome
from wgcell.wire.lines import Data, Exact, Flag, Number, OneOf, Seconds, Text, Vocabulary

__all__ = [
    "ANSWERS",
    "MOST_BYTES",
    "OUTPUTS",
    "QUESTIONS",
    "VERSION",
    "Accepted",
    "Allow",
    "Answer",
    "Deny",
    "End",
    "Ended",
    "Event",
    "Events",
    "Hello",
    "Output",
    "Outputs",
    "Over",
    "Pause",
    "Policy",
    "PolicyChanged",
    "Question",
    "QuestionRefused",
    "Rule",
    "Sessions",
    "State",
    "Status",
    "Stop",
    "Stopping",
    "Unpause",
]

VERSION = 1
MOST_BYTES = 1 << 20
"""Bytes of one event, or of one piece of output."""
OUTPUTS = ("stdout", "stderr", "console")
"""Each is the file ``<name>.log`` of the cell's folder."""

_LONGEST_QUESTION = 4096
_LONGEST_ANSWER = 4 * (MOST_BYTES // 3 + 1) + 4096
_Offset = Annotated[int, Number()]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word of either end: the version of these words that it speaks."""

    version: Annotated[int, Number(1 << 16)]


@dataclass(frozen=True, slots=True)
class State:
    """The cell's state."""


@dataclass(frozen=True, slots=True)
class Events:
    """The events from the sequence number ``since`` on; with ``follow``, until the cell ends."""

    since: Annotated[int, Number()]
    follow: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The output, of each stream from an offset in bytes on; with ``follow``, to the end."""

    stdout: _Offset
    stderr: _Offset
    console: _Offset
    which: Annotated[str, OneOf(("workload", "console"))]
    follow: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the cell: in order, with its grace period and its results; or ``now``, without."""

    now: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Sessions:
    """Begin sessions on this connection, which speaks frames from the answer `Accepted` on.

    They are hung up when it closes; ``detached`` ones go on, and what they print is dropped.
    """

    detached: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Pause:
    """Let the machine's processors stand still; its memory stays, and its time stops."""


@dataclass(frozen=True, slots=True)
class Unpause:
    """Let a paused machine go on."""


@dataclass(frozen=True, slots=True)
class End:
    """How the cell has ended: answered then."""


_OneRule = Annotated[str, Exact(1200)]


@dataclass(frozen=True, slots=True)
class Allow:
    """Let the cell reach what ``rule`` names, by its own gateway: before all other rules.

    ``typed``: a person has typed it. Otherwise it is a stranger's wish, and is granted within the
    provider's limits. After ``seconds`` it is over.
    """

    rule: _OneRule
    typed: Annotated[bool, Flag()]
    seconds: Annotated[float | None, Seconds()] = None


@dataclass(frozen=True, slots=True)
class Deny:
    """Let the cell not reach what ``rule`` names: before all other rules."""

    rule: _OneRule


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of the cell's own gateway, in the order in which they are read."""


Question = (
    Hello
    | State
    | Events
    | Outputs
    | Stop
    | Pause
    | Unpause
    | Allow
    | Deny
    | Policy
    | End
    | Sessions
)

QUESTIONS: Vocabulary[Question] = Vocabulary(
    "ask",
    _LONGEST_QUESTION,
    {
        "hello": Hello,
        "state": State,
        "events": Events,
        "outputs": Outputs,
        "stop": Stop,
        "sessions": Sessions,
        "pause": Pause,
        "unpause": Unpause,
        "allow": Allow,
        "deny": Deny,
        "policy": Policy,
        "end": End,
    },
)


@dataclass(frozen=True, slots=True)
class QuestionRefused:
    """There is no answer, and why."""

    reason: Annotated[str, Text(300)]


@dataclass(frozen=True, slots=True)
class Status:
    """The cell's state, and the supervisor's pid."""

    state: Annotated[str, Text(40)]
    pid: Annotated[int, Number(1 << 31)]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the cell's record, as it is on the disk, without its newline."""

    line: Annotated[bytes, Data(MOST_BYTES)]


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what was printed."""

    stream: Annotated[str, OneOf(OUTPUTS)]
    data: Annotated[bytes, Data(MOST_BYTES)]


@dataclass(frozen=True, slots=True)
class Stopping:
    """The cell is being ended."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The last word: what follows on this connection are frames, of `wgcell.guest.channel`."""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """The rule is in force, until then (Unix seconds, or to the end); flows that it has ended."""

    rule: _OneRule
    cut: _Offset
    until: Annotated[float | None, Seconds()] = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule in force; one of an order has the user who gave it, and perhaps an end."""

    rule: _OneRule
    origin: Annotated[str, OneOf(("order", "start", "service", "published"))]
    by: Annotated[int | None, Number(1 << 32)] = None
    until: Annotated[float | None, Seconds()] = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The cell has ended, as ``result.json`` says, whatever becomes of that file."""

    outcome: Annotated[str, OneOf(tuple(outcome.value for outcome in Outcome))]
    exit_code: Annotated[int, Number(255)]
    reason: Annotated[str, Text(4096)]


@dataclass(frozen=True, slots=True)
class Over:
    """The answer is whole."""


Answer = (
    Hello
    | QuestionRefused
    | Status
    | Event
    | Output
    | Stopping
    | PolicyChanged
    | Rule
    | Accepted
    | Ended
    | Over
)

ANSWERS: Vocabulary[Answer] = Vocabulary(
    "say",
    _LONGEST_ANSWER,
    {
        "hello": Hello,
        "refused": QuestionRefused,
        "status": Status,
        "event": Event,
        "output": Output,
        "stopping": Stopping,
        "policy_changed": PolicyChanged,
        "rule": Rule,
        "accepted": Accepted,
        "ended": Ended,
        "over": Over,
    },
)
