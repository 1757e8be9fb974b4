"""The words between the relay and its supervisor, on the control socket.

`SAID` is what the relay says, `TOLD` what it is told. It is sealed, and yet the supervisor believes
it no more than a line can hold: see `wgcell.wire.lines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from wgcell.wire.lines import Data, Flag, Number, OneOf, Seconds, Table, Text, Vocabulary

__all__ = [
    "EVIDENCE_BYTES",
    "SAID",
    "TOLD",
    "Alive",
    "Begun",
    "Closed",
    "Configure",
    "Fault",
    "Handshake",
    "OutOfStep",
    "Quit",
    "Quota",
    "Ready",
    "Renewed",
    "Rogue",
    "Said",
    "Stats",
    "Told",
    "Verified",
]

LONGEST_LINE = 16 * 1024
"""Bytes. The longest are a rogue frame's, with its evidence, and the statistics."""
EVIDENCE_BYTES = 2048
"""Of a rogue frame, so many are reported."""

_Reason = Annotated[str, Text(64)]
_Detail = Annotated[str, Text(300)]
_Count = Annotated[int, Number()]
_Counts = Annotated[Mapping[str, int], Table(64, Number())]
_Key = Annotated[bytes, Data(32, 32)]


@dataclass(frozen=True, slots=True)
class Begun:
    """It runs, and has its descriptors."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It is configured and sealed: whether wholly, and which stages are missing, and why."""

    seal: Annotated[bool, Flag()]
    missing: Annotated[Mapping[str, str], Table(16, Text(300))]


@dataclass(frozen=True, slots=True)
class Verified:
    """A handshake that the guest asked for is complete, and transport has passed both ways."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A valid message of the endpoint's has come; at most once a second."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """One is complete, and who asked for it."""

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
    """Seconds since boot, when it was read."""


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """A message was dropped that loss or reordering can explain; a reason at most once a second."""

    reason: _Reason
    detail: _Detail


@dataclass(frozen=True, slots=True)
class Quota:
    """The job's quota is spent, and the link cut."""

    bytes: _Count


@dataclass(frozen=True, slots=True)
class Stats:
    """What has passed and what was refused so far; at most once a second, and at the end."""

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


Said = (
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

SAID: Vocabulary[Said] = Vocabulary(
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
    """The first word: whose tunnel it is. ``rate`` is bytes a second each way, ``quota`` bytes."""

    guest_public_key: _Key
    endpoint_public_key: _Key
    mtu: Annotated[int, Number(65535)]
    rate: Annotated[float | None, Seconds()] = None
    quota: Annotated[int | None, Number()] = None
    lenient: Annotated[bool, Flag()] = False
    """A rogue frame is dropped and cuts nothing: for storms of them, never for a cell."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """With this line comes a fresh UDP socket, in the old one's place.

    ``met``: it leads to another address, so what was agreed with the old one is void.
    """

    met: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Quit:
    """Say the last figures, and end."""


Told = Configure | Renewed | Quit

TOLD: Vocabulary[Told] = Vocabulary(
    "command",
    LONGEST_LINE,
    {"configure": Configure, "renewed": Renewed, "quit": Quit},
)
