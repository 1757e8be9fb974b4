"""The words between a gateway and the process that started it. Both ends use this module.

`ORDERS` go to the gateway's standard input, `EVENTS` come from its standard output: one encoder and
one strict decoder, see `wgcell.wire.lines`. An order is right in form only; what its texts mean,
`model.parsing` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from wgcell.wire.lines import (
    Exact,
    Flag,
    Number,
    OneOf,
    Record,
    Seconds,
    Several,
    Table,
    Text,
    Vocabulary,
)

__all__ = [
    "ENGINES",
    "EVENTS",
    "FAILED",
    "MOST_LISTED",
    "MOST_PEERS",
    "ORDERS",
    "RULES_AT_ONCE",
    "Allow",
    "Applied",
    "Configure",
    "Deny",
    "Event",
    "Fault",
    "Flow",
    "FlowEnd",
    "FlowsOmitted",
    "Limits",
    "ListRules",
    "Order",
    "OrderRefused",
    "Peer",
    "PolicyChanged",
    "Published",
    "Ready",
    "RuleInForce",
    "RulesListed",
    "ServerBroken",
    "Stumble",
]

ENGINES = ("embedded", "namespace", "kernel")
MOST_PEERS = 250
FAILED = "fail"
"""In place of a verdict: an allowed name that was not found; an allowed target, or a service, that
could not be reached."""

_LONGEST_ORDER = 1 << 20
"""Bytes. A gateway's file has no more either."""
_LONGEST_EVENT = 64 * 1024
"""Bytes. The longest is ``ready``, with the port of each peer."""
RULES_AT_ONCE = 32
"""Rules in one event."""
MOST_LISTED = 1 << 13
"""Rules in all events that answer one order."""
_MOST = 1 << 16
"""Of rules, services, resolvers and networks; the line holds fewer."""

_Port = Annotated[int, Number(65535)]
_Count = Annotated[int, Number()]

# Orders: to the gateway.

_Key = Annotated[str, Exact(64)]
_Place = Annotated[str, Exact(64)]
"""An address, or an address and a port."""
_Rules = Annotated[tuple[str, ...], Several(_MOST, Exact(4096))]
_Limit = Annotated[int | None, Number()]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one peer. Those that are not given are the gateway's, or `model.policy.Limits`."""

    flows: _Limit = None
    flows_per_second: _Limit = None
    queries_per_second: _Limit = None
    bytes_per_second: _Limit = None


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer. ``port`` is the embedded engine's, ``preshared_key`` for the others."""

    public_key: _Key
    address: _Place
    preshared_key: Annotated[str | None, Exact(64)] = field(default=None, repr=False)
    address6: Annotated[str | None, Exact(64)] = None
    port: Annotated[int | None, Number(65535)] = None
    rules: _Rules = ()
    publish: Annotated[tuple[str, ...], Several(_MOST, Exact(100))] = ()
    """Ports of the peer that the gateway publishes on its own side, as [ADDRESS:]PORT:PORT."""
    limits: Annotated[Limits, Record(Limits)] = Limits()


@dataclass(frozen=True, slots=True)
class Configure:
    """Be this gateway. The first order; a further one changes it. The keys are a file's."""

    private_key: _Key = field(repr=False)
    engine: Annotated[str, OneOf(ENGINES)] = ENGINES[0]
    listen: _Place = "0.0.0.0:51820"
    endpoint: Annotated[str, Exact(300)] = ""
    """The host in the peers' files; without a port, the peer's."""
    address: _Place = "10.99.0.1"
    address6: Annotated[str | None, Exact(64)] = None
    rules: _Rules = ()
    resolver: Annotated[tuple[str, ...], Several(_MOST, Exact(64))] = ()
    protected: Annotated[tuple[str, ...], Several(_MOST, Exact(64))] = ()
    services: Annotated[Mapping[str, str], Table(_MOST, Exact(300))] = field(default_factory=dict)
    """The target, HOST:PORT, of each address and port in the tunnel."""
    limits: Annotated[Limits, Record(Limits)] = Limits()
    learn: Annotated[bool, Flag()] = False
    peers: Annotated[Mapping[str, Peer], Table(MOST_PEERS, Record(Peer))] = field(
        default_factory=dict
    )


_User = Annotated[int, Number(1 << 32)]
"""A uid."""
_OneRule = Annotated[str, Exact(1200)]


@dataclass(frozen=True, slots=True)
class Allow:
    """Put an ``allow`` before all rules; ``rule`` is without its verb.

    The answer is `PolicyChanged` or `OrderRefused` with the same ``number``. After ``seconds``, by
    a clock that goes on while the machine sleeps, it is over. ``who`` has asked for it.
    """

    number: _Count
    rule: _OneRule
    who: _User
    seconds: Annotated[float | None, Seconds()] = None


@dataclass(frozen=True, slots=True)
class Deny:
    """Put a ``deny`` before all rules; as `Allow`."""

    number: _Count
    rule: _OneRule
    who: _User


@dataclass(frozen=True, slots=True)
class ListRules:
    """Say which rules are in force, in as many `RulesListed` as that takes."""

    number: _Count


Order = Configure | Allow | Deny | ListRules
"""Any order."""

ORDERS: Vocabulary[Order] = Vocabulary(
    "order",
    _LONGEST_ORDER,
    {"configure": Configure, "allow": Allow, "deny": Deny, "list_rules": ListRules},
)


# Events: from the gateway.

_Name = Annotated[str, Text(1024)]
"""A DNS name: 255 bytes, each of which may be written as four characters."""
_PeerName = Annotated[str, Text(64)]
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
    peers: Annotated[Mapping[str, int], Table(MOST_PEERS, Number())]
    engine: Annotated[str, OneOf(ENGINES)]
    reason: _Words


@dataclass(frozen=True, slots=True)
class Flow:
    """A decided flow. ``hint`` is the rule that would allow it, ``host`` the host it asked for."""

    time: _Time
    flow: _Count
    peer: _PeerName
    protocol: _Protocol
    address: _Address
    port: _Port
    name: _Name
    verdict: _Verdict
    rule: _Rule
    reason: _Words
    hint: _Rule
    host: Annotated[str | None, Text(1024)] = None


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """A flow has ended: its bytes out of the cell and into it, and its duration in seconds."""

    time: _Time
    flow: _Count
    peer: _PeerName
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
    peer: _PeerName
    allow: _Count
    refuse: _Count
    ended: _Count
    fail: Annotated[int, Number()] = 0


@dataclass(frozen=True, slots=True)
class ServerBroken:
    """A peer has broken its WireGuard server, which restarts in ``again_in`` seconds."""

    time: _Time
    peer: _PeerName
    again_in: _Time


@dataclass(frozen=True, slots=True)
class Applied:
    """The last configuration is in force."""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """A rule of an order's is in force, or is over. ``cut`` open flows have ended by that."""

    time: _Time
    change: Annotated[str, OneOf(("allow", "deny", "expired"))]
    rule: _OneRule
    """With its verb."""
    who: _User
    cut: _Count
    number: Annotated[int | None, Number()] = None
    """The order's; None if the rule has expired."""
    until: Annotated[float | None, Seconds()] = None
    """When it is over, in Unix seconds; None: with the gateway."""


@dataclass(frozen=True, slots=True)
class OrderRefused:
    """An order was not followed, and everything is as it was."""

    number: _Count
    reason: _Words
    hint: _Words = ""


@dataclass(frozen=True, slots=True)
class RuleInForce:
    """One rule, a service or a published port, as it is written."""

    rule: _OneRule
    origin: Annotated[str, OneOf(("order", "start", "service", "published"))]
    who: Annotated[int | None, Number(1 << 32)] = None
    """Of an order: who has asked for it."""
    until: Annotated[float | None, Seconds()] = None
    """When it is over, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class RulesListed:
    """Rules in force, in the order in which they are read. ``more``: others follow."""

    number: _Count
    rules: Annotated[tuple[RuleInForce, ...], Several(RULES_AT_ONCE, Record(RuleInForce))]
    more: Annotated[bool, Flag()]


@dataclass(frozen=True, slots=True)
class Published:
    """The gateway listens at ``address`` and ``port``, for the port ``inside`` of a peer."""

    peer: _PeerName
    address: _Address
    port: _Port
    inside: _Port


@dataclass(frozen=True, slots=True)
class Fault:
    """A configuration was refused, or something that the gateway needs has failed."""

    detail: Annotated[str, Text(8192)]


@dataclass(frozen=True, slots=True)
class Stumble:
    """An error that no code has caught. Its event is still named ``stumble``."""

    detail: _Words


Event = (
    Ready
    | Flow
    | FlowEnd
    | FlowsOmitted
    | ServerBroken
    | Applied
    | PolicyChanged
    | OrderRefused
    | RulesListed
    | Published
    | Fault
    | Stumble
)

EVENTS: Vocabulary[Event] = Vocabulary(
    "event",
    _LONGEST_EVENT,
    {
        "ready": Ready,
        "flow": Flow,
        "flow_end": FlowEnd,
        "flows_omitted": FlowsOmitted,
        "door_broken": ServerBroken,
        "applied": Applied,
        "policy_changed": PolicyChanged,
        "order_refused": OrderRefused,
        "rules_listed": RulesListed,
        "published": Published,
        "fault": Fault,
        "stumble": Stumble,
    },
)
