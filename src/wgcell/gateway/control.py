"""The events that a gateway writes to its standard output, for the process that started it.

Its standard input is a configuration a line, as `model.parsing` has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from wgcell.gateway.model.flow import FAILED
from wgcell.wire.lines import Counts, Number, OneOf, Seconds, Text, Vocabulary

__all__ = [
    "SAID",
    "Applied",
    "Fault",
    "Flow",
    "FlowEnd",
    "FlowsOmitted",
    "Ready",
    "Said",
    "ServerBroken",
    "Stumble",
]

LONGEST_LINE = 64 * 1024
"""Bytes. The longest line is ``ready``, with the port of each peer."""
MOST_PEERS = 250

_Peer = Annotated[str, Text(64)]
_Port = Annotated[int, Number(65535)]
_Count = Annotated[int, Number()]
_Name = Annotated[str, Text(1024)]
"""A DNS name: 255 bytes, each of which may be written as four characters."""
_Rule = Annotated[str, Text(1200)]
_Words = Annotated[str, Text(1500)]
_Time = Annotated[float, Seconds()]
_Protocol = Annotated[str, Text(16)]
_Address = Annotated[str, Text(64)]
_Verdict = Annotated[str, OneOf(("allow", "refuse", FAILED))]


@dataclass(frozen=True, slots=True)
class Ready:
    """The gateway listens: where, at which UDP port for each peer, with which engine.

    ``reason`` says why ``auto`` chose no other engine.
    """

    host: _Address
    port: _Port
    peers: Annotated[Mapping[str, int], Counts(MOST_PEERS)]
    engine: Annotated[str, OneOf(("embedded", "kernel", "namespace"))]
    reason: _Words


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow is decided. ``mend`` is the hint, ``host`` the host that the flow asked for."""

    time: _Time
    flow: _Count
    peer: _Peer
    protocol: _Protocol
    address: _Address
    port: _Port
    name: _Name
    verdict: _Verdict
    rule: _Rule
    reason: _Words
    mend: _Rule
    host: Annotated[str | None, Text(1024)] = None


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """A flow has ended: its bytes out of the cell and into it, and its duration in seconds."""

    time: _Time
    flow: _Count
    peer: _Peer
    protocol: _Protocol
    address: _Address
    port: _Port
    name: _Name
    verdict: _Verdict
    rule: _Rule
    reason: _Words
    bytes_out: _Count
    bytes_in: _Count
    duration: _Time


@dataclass(frozen=True, slots=True)
class FlowsOmitted:
    """The numbers of events of a peer that were not reported one by one."""

    time: _Time
    peer: _Peer
    allow: _Count
    refuse: _Count
    ended: _Count
    fail: Annotated[int, Number()] = 0


@dataclass(frozen=True, slots=True)
class ServerBroken:
    """A peer has broken its WireGuard server, which restarts in ``again_in`` seconds."""

    time: _Time
    peer: _Peer
    again_in: _Time


@dataclass(frozen=True, slots=True)
class Applied:
    """The last configuration is in force."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A configuration was refused, or something that the gateway needs has failed."""

    detail: Annotated[str, Text(8192)]


@dataclass(frozen=True, slots=True)
class Stumble:
    """An error that no code has caught. Its event is still named ``stumble``."""

    detail: _Words


Said = Ready | Flow | FlowEnd | FlowsOmitted | ServerBroken | Applied | Fault | Stumble

SAID: Vocabulary[Said] = Vocabulary(
    "event",
    LONGEST_LINE,
    {
        "ready": Ready,
        "flow": Flow,
        "flow_end": FlowEnd,
        "flows_omitted": FlowsOmitted,
        "door_broken": ServerBroken,
        "applied": Applied,
        "fault": Fault,
        "stumble": Stumble,
    },
)
