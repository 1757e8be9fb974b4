"""The events that the supervisor reports to the core.

Times are in seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from wgcell.cell.archive import Unpacked
from wgcell.cell.states import Cause
from wgcell.gateway import words as gateway
from wgcell.guest import protocol
from wgcell.guest.config import GuestConfig
from wgcell.relay import control as relay

__all__ = [
    "AbortAsked",
    "AddressMet",
    "Alarm",
    "Began",
    "Booting",
    "CancelAsked",
    "Caused",
    "Crashed",
    "Event",
    "FromGateway",
    "FromGuest",
    "FromRelay",
    "GatewayGone",
    "LandingEnded",
    "Looked",
    "MachineDead",
    "MachineEnded",
    "OrderAsked",
    "PathSeen",
    "Paused",
    "RecordClosed",
    "RelayGone",
    "SessionExited",
    "SessionOpened",
    "StepFailed",
    "StreamFacts",
    "Tick",
    "UnpackingEnded",
    "Unpaused",
]


@dataclass(frozen=True, slots=True)
class Began:
    """The supervisor runs."""


@dataclass(frozen=True, slots=True)
class Caused:
    """Something that needs no judgement: a step of the start, a failure, a process's death."""

    cause: Cause
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A user, or the system, asks for an end: in order the first time, at once the second."""

    reason: str


@dataclass(frozen=True, slots=True)
class AbortAsked:
    """A user, or the system, asks for an end at once."""

    reason: str


@dataclass(frozen=True, slots=True)
class Paused:
    """The machine stands still now; that user asked for it."""

    uid: int


@dataclass(frozen=True, slots=True)
class Unpaused:
    """The machine goes on; that user asked for it."""

    uid: int


@dataclass(frozen=True, slots=True)
class Booting:
    """The relay stands and the machine is about to run. ``pid`` is the machine's."""

    config: GuestConfig
    pid: int


@dataclass(frozen=True, slots=True)
class FromGuest:
    """The guest's agent has sent a message."""

    message: protocol.Message


@dataclass(frozen=True, slots=True)
class FromRelay:
    """The relay has sent a message."""

    message: relay.Event


@dataclass(frozen=True, slots=True)
class FromGateway:
    """The cell's own gateway has sent a message."""

    message: gateway.Event


@dataclass(frozen=True, slots=True)
class OrderAsked:
    """A user wants the cell's own gateway to change its rules, or to list them."""

    order: gateway.Allow | gateway.Deny | gateway.ListRules


@dataclass(frozen=True, slots=True)
class RelayGone:
    """The relay's control socket has closed."""


@dataclass(frozen=True, slots=True)
class GatewayGone:
    """The gateway's pipe has closed."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """The progress of one of the workload's streams."""

    name: str
    delivered: int = 0
    """Bytes that the reader has taken (or that were dropped, once it was gone)."""
    reader_gone: bool = False
    failure: str | None = None
    """Why the bytes could not be written."""
    ended: bool = False
    """The port has ended: nothing more is delivered."""
    moved: float = 0.0
    """When bytes last came or went."""
    waits_for_reader: bool = False


@dataclass(frozen=True, slots=True)
class Looked:
    """How far everything is that the workload writes. The supervisor feeds it before any other
    event, so that the core never judges by an old look."""

    streams: tuple[StreamFacts, ...]
    outputs_received: int = 0
    outputs_moved: float = 0.0


@dataclass(frozen=True, slots=True)
class UnpackingEnded:
    """The outputs are unpacked."""

    unpacked: Unpacked


@dataclass(frozen=True, slots=True)
class PathSeen:
    """The way to the endpoint carries packets of ``path`` bytes, so the tunnel ``fits`` bytes.

    ``path`` is 0 without a way. ``may_grow``: this is another way than before.
    """

    path: int
    fits: int
    may_grow: bool


@dataclass(frozen=True, slots=True)
class AddressMet:
    """The supervisor has made a handshake with another address of the endpoint."""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Somebody asked for a session beside the workload, and the guest was asked to begin it.

    ``session`` is 0 for a client that is attached to the workload itself.
    """

    session: int
    kind: str
    words: tuple[str, ...]
    """The command, or the path."""
    terminal: bool
    uid: int
    """The user who asked, as the kernel says."""


@dataclass(frozen=True, slots=True)
class SessionExited:
    """A session is over. ``exit_code`` None: it never began, or the machine ended before it did."""

    session: int
    exit_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A second has passed. ``clock`` is the time of day, in Unix seconds."""

    clock: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """The time of a `Wake` has come."""


@dataclass(frozen=True, slots=True)
class MachineDead:
    """The machine is dead. ``boottime`` is when, in seconds since the host's boot."""

    boottime: float


@dataclass(frozen=True, slots=True)
class MachineEnded:
    """`EndMachine` was executed, or there was no machine."""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step of the end failed: whatever the guest said, this cell was not completed."""

    step: str
    why: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """The supervisor, or the record, failed."""

    why: str


@dataclass(frozen=True, slots=True)
class LandingEnded:
    """The outputs were moved to their place, or some of them were not."""

    whole: bool
    files: int
    interrupted: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class RecordClosed:
    """Later causes come too late for the outcome."""


Event = (
    Began
    | Caused
    | CancelAsked
    | AbortAsked
    | Paused
    | Unpaused
    | Booting
    | FromGuest
    | FromRelay
    | FromGateway
    | OrderAsked
    | RelayGone
    | GatewayGone
    | Looked
    | UnpackingEnded
    | PathSeen
    | AddressMet
    | SessionOpened
    | SessionExited
    | Tick
    | Alarm
    | MachineDead
    | MachineEnded
    | StepFailed
    | Crashed
    | LandingEnded
    | RecordClosed
)
