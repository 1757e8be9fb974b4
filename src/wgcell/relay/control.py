"""The words between the relay and its supervisor, on the control socket. Both ends use this module.

`EVENTS` come from the relay, `ORDERS` go to it: one encoder and one strict decoder, see
`wgcell.wire.lines`. The relay is sealed, and yet the supervisor trusts no line of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from wgcell.wire.lines import Data, Flag, Number, OneOf, Seconds, Table, Text, Vocabulary

__all__ = [
    "EVENTS",
    "EVIDENCE_BYTES",
    "ORDERS",
    "Alive",
    "Begun",
    "Closed",
    "Configure",
    "Event",
    "Fault",
    "Handshake",
    "Order",
    "OutOfStep",
    "Quit",
    "Quota",
    "Ready",
    "Renewed",
    "Rogue",
    "Stats",
    "Verified",
]

LONGEST_LINE = 16 * 1024
"""Bytes. The longest are a rogue frame's, with its evidence, and the statistics."""
EVIDENCE_BYTES = 2048
"""Of a rogue frame that are reported."""

_Reason = Annotated[str, Text(64)]
_Detail = Annotated[str, Text(300)]
_Count = Annotated[int, Number()]
_Counts = Annotated[Mapping[str, int], Table(64, Number())]
_Key = Annotated[bytes, Data(32, 32)]


@dataclass(frozen=True, slots=True)
class Begun:
    """The relay runs, and has its descriptors."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The relay is configured. ``seal``: every stage of its seal stands."""

    seal: Annotated[bool, Flag()]
    missing: Annotated[Mapping[str, str], Table(16, Text(300))]
    """The stages that do not stand, and why."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A handshake that the guest began is complete: transport has passed both ways."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A valid message of the endpoint has come; at most one event a second."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """A handshake is complete. ``initiator`` began it."""

    initiator: Annotated[str, OneOf(("guest", "endpoint"))]


@dataclass(frozen=True, slots=True)
class Rogue:
    """A frame that no honest guest could send; the link is cut, the kill switch pulled."""

    reason: _Reason
    detail: _Detail
    frame: Annotated[bytes, Data(EVIDENCE_BYTES)]
    time: Annotated[float, Seconds()]
    """Unix time."""
    boottime: Annotated[float, Seconds()]
    """Seconds since boot, when the frame was read."""


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """A dropped message that loss or reordering can explain; one event a second for a reason."""

    reason: _Reason
    detail: _Detail


@dataclass(frozen=True, slots=True)
class Quota:
    """The job's quota is spent, and the link cut."""

    bytes: _Count


@dataclass(frozen=True, slots=True)
class Stats:
    """Messages that have passed or were refused so far; at most once a second, and at the end."""

    messages_out: _Count
    messages_in: _Count
    bytes_out: _Count
    bytes_in: _Count
    handshakes: _Count
    refused: _Counts
    dropped_in: _Counts
    lost: _Count
    unanswered: _Count


@dataclass(frozen=True, slots=True)
class Closed:
    """QEMU's end is closed."""

    which: Annotated[str, OneOf(("nic",))]


@dataclass(frozen=True, slots=True)
class Fault:
    """An error of the relay's own, which ends it."""

    detail: _Detail


Event = (
    Begun
    | Ready
    | Verified
    | Alive
    | Handshake
    | Rogue
    | OutOfStep
    | Quota
    | Stats
    | Closed
    | Fault
)

EVENTS: Vocabulary[Event] = Vocabulary(
    "event",
    LONGEST_LINE,
    {
        "begun": Begun,
        "ready": Ready,
        "verified": Verified,
        "alive": Alive,
        "handshake": Handshake,
        "rogue": Rogue,
        "out_of_step": OutOfStep,
        "quota": Quota,
        "stats": Stats,
        "closed": Closed,
        "fault": Fault,
    },
)


@dataclass(frozen=True, slots=True)
class Configure:
    """The first order: the tunnel. ``rate`` is bytes a second each way, ``quota`` bytes."""

    guest_public_key: _Key
    endpoint_public_key: _Key
    mtu: Annotated[int, Number(65535)]
    rate: Annotated[float | None, Seconds()] = None
    quota: Annotated[int | None, Number()] = None
    lenient: Annotated[bool, Flag()] = False
    """A rogue frame is dropped and cuts nothing: for storms of them, never for a cell."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A fresh UDP socket comes with this line, and takes the old one's place.

    ``met``: it is connected to another address, so the old one's sessions are void.
    """

    met: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Quit:
    """Report the last figures, and end."""


Order = Configure | Renewed | Quit

ORDERS: Vocabulary[Order] = Vocabulary(
    "order",
    LONGEST_LINE,
    {"configure": Configure, "renewed": Renewed, "quit": Quit},
)
