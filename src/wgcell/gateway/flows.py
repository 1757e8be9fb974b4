"""What is told of flows: bounded, and with the rule that would have allowed what was refused.

Events are JSON objects, one a line: ``flow`` when a flow is decided, before a byte moves;
``flow_end`` when an allowed one is over, with its bytes and duration, and whether its target could
be reached. A hostile guest opens flows
by the thousand, so of each peer only so many are told; the rest are counted in ``flows_omitted``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wgcell.gateway.limits import Bucket
from wgcell.gateway.policy import LEARNED, Address, may_be_advised

__all__ = ["FAILED", "Flow", "FlowCounts", "FlowLog", "Report", "Tally", "learned_rule", "mend"]

Report = Callable[[dict[str, object]], None]

FAILED = "fail"
"""In a verdict's place: a name that may be asked was not found; a target that is allowed, or a
service, could not be reached."""
MOST_TOLD = 256
"""Events of one peer told at once."""
TOLD_PER_SECOND = 4.0
"""Events of one peer told in the long run: about 100 MB a day, if it floods all day."""
SUMMARY_EVERY = 5.0
"""Seconds between two ``flows_omitted``."""
_MOST_KEPT = 512
_MOST_OPEN = 8192
"""Flows whose end is waited for; twice what a gateway joins."""


@dataclass(slots=True)
class Flow:
    """One flow's facts, and its counts of bytes: out of the cell, and into it."""

    number: int
    peer: str
    protocol: str
    """``tcp``, ``udp``, ``dns`` for a name that was asked, or another of IP's, as ``icmp``."""
    address: Address
    port: int
    name: str = ""
    """The name that led to ``address``, if one did."""
    rule: str = ""
    names: tuple[str, ...] = ()
    """Those it is allowed by, so that it must ask for one of them; empty if a rule is about its
    address. A changed policy changes them; what was asked for is the only one left."""
    checked: bool = True
    """Whether it must ask for one of them."""
    started: float = field(default_factory=time.monotonic)
    bytes_out: int = 0
    bytes_in: int = 0

    def event(self, kind: str, verdict: str, reason: str) -> dict[str, object]:
        """This flow as an event."""
        return {
            "event": kind,
            "time": round(time.time(), 3),
            "flow": self.number,
            "peer": self.peer,
            "protocol": self.protocol,
            "address": str(self.address),
            "port": self.port,
            "name": self.name,
            "verdict": verdict,
            "rule": self.rule,
            "reason": reason,
        }

    def end(self, verdict: str, reason: str) -> dict[str, object]:
        """Its last event."""
        return {
            **self.event("flow_end", verdict, reason),
            "bytes_out": self.bytes_out,
            "bytes_in": self.bytes_in,
            "duration": round(time.monotonic() - self.started, 3),
        }


def mend(protocol: str, port: int, host: str, *, checked: bool = True) -> str:
    """The rule, without its verb, that would allow a flow; for a name alone, on TLS's port.

    Empty if none would, as for a ping, and for a bare address: a rule with one is not advised.
    """
    if not may_be_advised(host) or protocol not in ("tcp", "udp", "dns"):
        return ""
    if protocol == "dns":
        return f"{host}:443"
    if not checked:
        return f"{host}:{port}/tcp/unchecked"
    return f"{host}:{port}" + ("/udp" if protocol == "udp" else "")


def learned_rule(flow: Flow, host: str) -> str:
    """The rule, without its verb, that allows what was learned: its address's if it has no name."""
    if host:
        return mend(flow.protocol, flow.port, host)
    where = f"[{flow.address}]" if flow.address.version == 6 else str(flow.address)
    return f"{where}:{flow.port}" + ("/udp" if flow.protocol == "udp" else "")


class FlowLog:
    """One peer's events, bounded in number."""

    def __init__(self, peer: str, report: Report) -> None:
        self._peer = peer
        self._report = report
        self._bucket = Bucket(TOLD_PER_SECOND, MOST_TOLD)
        self._omitted: dict[str, int] = {}

    def tell(self, event: dict[str, object]) -> None:
        """Tell one event, or count it."""
        if self._bucket.take(time.monotonic()):
            self._report(event)
            return
        kind = "ended" if event["event"] == "flow_end" else str(event["verdict"])
        self._omitted[kind] = self._omitted.get(kind, 0) + 1

    def summarise(self) -> None:
        """Tell what was only counted since the last time; nothing if nothing was."""
        if self._omitted:
            counts = {"allow": 0, "refuse": 0, "ended": 0, **self._omitted}
            self._omitted = {}
            about = {"time": round(time.time(), 3), "peer": self._peer}
            self._report({"event": "flows_omitted", **about, **counts})


class FlowCounts:
    """How many flows came to which verdict. Each counts once, by the last that is told of it."""

    def __init__(self) -> None:
        self.counts = {"allow": 0, "refuse": 0}
        self._open: dict[int, None] = {}

    def begun(self, number: int, verdict: str) -> None:
        """A ``flow`` was told: a new one, or an allowed one that is refused after it has begun."""
        self._ended(number)
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        if verdict == "allow":
            self._open[number] = None
            if len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]

    def ended(self, number: int, verdict: str) -> None:
        """A ``flow_end`` was told."""
        if self._ended(number):
            self.counts[verdict] = self.counts.get(verdict, 0) + 1

    def _ended(self, number: int) -> bool:
        """Whether it was open; then it counts no longer as allowed."""
        if number not in self._open:
            return False
        del self._open[number]
        self.counts["allow"] -= 1
        return True


_Key = tuple[str, str]
"""What a flow was to; and the rule that would allow it, or what has become of it."""


@dataclass(slots=True)
class _Told:
    """Flows that are told in one line."""

    advice: str
    """What would allow them; or, where nothing can be named, why they were not."""
    count: int = 0


def _most_first(among: dict[_Key, _Told]) -> list[tuple[_Key, _Told]]:
    return sorted(among.items(), key=lambda item: -item[1].count)


def _advice(event: Mapping[str, Any], rule: str) -> str:
    """The option with ``rule``; without one the reason. No address is advised: see `mend`."""
    if rule:
        return rule if rule.startswith("--") else f"--allow {rule}"
    reason = str(event.get("reason") or "no rule allows it")
    named = event.get("host") or event.get("name")
    if reason != "no rule allows it" or named or event.get("protocol") not in ("tcp", "udp"):
        return reason
    rule = f"NAME:{event.get('port')}" + ("/udp" if event.get("protocol") == "udp" else "")
    return f"{reason}, and no name led there; allow its name: --allow {rule}"


class Tally:
    """What was refused, not reached and learned, in the end's few lines. Events may be hostile."""

    def __init__(self) -> None:
        self._refused: dict[_Key, _Told] = {}
        self._failed: dict[_Key, _Told] = {}
        self._learned: dict[str, int] = {}
        self._omitted = 0

    def add(self, event: Mapping[str, Any]) -> bool:
        """Count one event; whether it is a refusal, or a failure, of a kind not seen before."""
        kind, verdict = event.get("event"), event.get("verdict")
        if kind == "flows_omitted":
            count = event.get("refuse", 0)
            self._omitted += count if isinstance(count, int) else 0
        elif verdict == FAILED and kind in ("flow", "flow_end"):
            reason = str(event.get("reason") or "")
            return self._count(self._failed, (self.what(event), self.told(event)), reason)
        elif kind == "flow":
            rule = str(event.get("mend") or "")
            if verdict != "allow":
                return self._count(self._refused, (self.what(event), rule), _advice(event, rule))
            if event.get("rule") == LEARNED and rule:
                self._learned[rule] = self._learned.get(rule, 0) + 1
        return False

    def _count(self, among: dict[_Key, _Told], key: _Key, advice: str) -> bool:
        """Whether it is the first of its kind that is kept."""
        if key not in among and len(among) >= _MOST_KEPT:
            self._omitted += among is self._refused
            return False
        told = among.setdefault(key, _Told(advice))
        told.count += 1
        return told.count == 1

    @staticmethod
    def told(event: Mapping[str, Any]) -> str:
        """What has become of it, in a few words."""
        if event.get("verdict") != FAILED:
            return "refused by the gateway"
        return "not found" if event.get("protocol") == "dns" else "could not be reached"

    @staticmethod
    def what(event: Mapping[str, Any]) -> str:
        """What a flow was to, in a few characters."""
        where = str(event.get("host") or event.get("name") or event.get("address") or "?")
        if event.get("protocol") == "dns":
            return where if event.get("name") else "a query that is none"
        protocol = event.get("protocol")
        if protocol not in ("tcp", "udp"):
            return f"{where} ({protocol})"
        where = f"[{where}]" if ":" in where else where
        return f"{where}:{event.get('port')}" + ("/udp" if protocol == "udp" else "")

    def summary(self) -> list[str]:
        """Each as "refused 3 \u00d7 a.example.com:443: --allow a.example.com:443"; most first."""
        lines = [
            f"refused {told.count} \u00d7 {what}: {told.advice}"
            for (what, _), told in _most_first(self._refused)
        ]
        lines += [
            f"{words}: {told.count} \u00d7 {what}: {told.advice}"
            for (what, words), told in _most_first(self._failed)
        ]
        if self._omitted:
            lines.append(f"refused {self._omitted} more, not listed one by one")
        return lines

    def learned(self) -> list[str]:
        """The rules, without their verbs, that would have sufficed.

        A name that was only asked needs none of its own if a flow to it was seen.
        """
        return sorted(self._learned)
