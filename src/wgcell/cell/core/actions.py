"""The actions that the core asks for. The supervisor executes them in order.

A `Record` only writes an event to the record. After `EndMachine` the core asks for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wgcell.cell.states import State
from wgcell.gateway import words as gateway

__all__ = [
    "Action",
    "AnswerOrder",
    "EndMachine",
    "Ended",
    "ExpectOutputs",
    "FreeBootFiles",
    "GiveUpReader",
    "Log",
    "LogBounded",
    "Record",
    "ResumeMachine",
    "SendConfiguration",
    "SendGateway",
    "SendGuest",
    "SetGuestClock",
    "StartUnpacking",
    "StateEntered",
    "Wake",
]


@dataclass(frozen=True, slots=True)
class StateEntered:
    """Write down the cell's new state. If that fails, the supervisor fails."""

    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """Write an event into the cell's record, to the disk."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogBounded:
    """Write an event that a guest, a relay or a gateway can cause at will: at a bounded rate."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


Record = StateEntered | Log | LogBounded


@dataclass(frozen=True, slots=True)
class SendGuest:
    """Send the guest's agent this line."""

    line: bytes


@dataclass(frozen=True, slots=True)
class SendGateway:
    """Give the cell's own gateway this order."""

    order: gateway.Order


@dataclass(frozen=True, slots=True)
class AnswerOrder:
    """Give whoever has asked for an order the gateway's answer, or a part of it."""

    answer: gateway.PolicyChanged | gateway.OrderRefused | gateway.RulesListed


@dataclass(frozen=True, slots=True)
class SendConfiguration:
    """Send the guest its configuration, with the time of day."""


@dataclass(frozen=True, slots=True)
class SetGuestClock:
    """Send the guest the time of day."""


@dataclass(frozen=True, slots=True)
class FreeBootFiles:
    """Give back the memory that holds the kernel and the initramfs: the guest has booted."""


@dataclass(frozen=True, slots=True)
class ExpectOutputs:
    """The guest has stated the size in bytes and the SHA-256 of the tar of its outputs."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StartUnpacking:
    """Unpack the outputs as they arrive."""


@dataclass(frozen=True, slots=True)
class GiveUpReader:
    """Deliver nothing more to a reader that does not read."""

    stream: str


@dataclass(frozen=True, slots=True)
class ResumeMachine:
    """Let a machine that was paused go on."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Feed an `Alarm` at this time, in seconds of the clock that `Core.handle` is given."""

    at: float


@dataclass(frozen=True, slots=True)
class EndMachine:
    """Kill the machine, then feed `MachineEnded`.

    ``freeze``: stop its processors first, and keep it until somebody ends the cell.
    """

    freeze: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The cell's life is over; its end begins."""


Action = (
    StateEntered
    | Log
    | LogBounded
    | SendGuest
    | SendGateway
    | AnswerOrder
    | SendConfiguration
    | SetGuestClock
    | FreeBootFiles
    | ExpectOutputs
    | StartUnpacking
    | GiveUpReader
    | ResumeMachine
    | Wake
    | EndMachine
    | Ended
)
