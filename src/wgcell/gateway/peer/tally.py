"""Sums up a gateway's events for the few lines at the end of a run. The events may be hostile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wgcell.gateway.model.policy import LEARNED
from wgcell.gateway.words import FAILED

__all__ = ["FlowCounts", "Tally"]

_MOST_KEPT = 512
"""Refusals, and failures, that are kept one by one."""
_MOST_OPEN = 8192
"""Flows whose end is awaited; twice as many as a gateway proxies."""


class FlowCounts:
    """The number of flows by verdict. Each flow counts once, by its latest verdict."""

    def __init__(self) -> None:
        self.counts = {"allow": 0, "refuse": 0}
        self._open: dict[int, None] = {}

    def begun(self, number: int, verdict: str) -> None:
        """Count a ``flow``: a new one, or an allowed one that is refused after it has begun."""
        self._ended(number)
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        if verdict == "allow":
            self._open[number] = None
            if len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]

    def ended(self, number: int, verdict: str) -> None:
        """Count a ``flow_end``."""
        if self._ended(number):
            self.counts[verdict] = self.counts.get(verdict, 0) + 1

    def _ended(self, number: int) -> bool:
        """Whether it was open. It counts as allowed no longer."""
        if number not in self._open:
            return False
        del self._open[number]
        self.counts["allow"] -= 1
        return True


_Key = tuple[str, str]
"""A flow's target; and the rule that would allow it, or its fate."""


@dataclass(slots=True)
class _Group:
    """Flows that are summed up in one line."""

    advice: str
    """The option that would allow them; or, if there is none, why they were not allowed."""
    count: int = 0


def _most_first(among: dict[_Key, _Group]) -> list[tuple[_Key, _Group]]:
    return sorted(among.items(), key=lambda item: -item[1].count)


def _advice(event: Mapping[str, object], rule: str) -> str:
    """The option with ``rule``; without one the reason. No address is advised: see `flow.hint`."""
    if rule:
        return rule if rule.startswith("--") else f"--allow {rule}"
    reason = str(event.get("reason") or "no rule allows it")
    named = event.get("host") or event.get("name")
    if reason != "no rule allows it" or named or event.get("protocol") not in ("tcp", "udp"):
        return reason
    rule = f"NAME:{event.get('port')}" + ("/udp" if event.get("protocol") == "udp" else "")
    return f"{reason}, and no name led there; allow its name: --allow {rule}"


class Tally:
    """Refused, failed and learned flows, for the lines at the end. Events may be hostile."""

    def __init__(self) -> None:
        self._refused: dict[_Key, _Group] = {}
        self._failed: dict[_Key, _Group] = {}
        self._learned: dict[str, int] = {}
        self._omitted = 0

    def add(self, event: Mapping[str, object]) -> bool:
        """Count one event; whether it is a refusal, or a failure, of a kind not seen before."""
        kind, verdict = event.get("event"), event.get("verdict")
        if kind == "flows_omitted":
            count = event.get("refuse", 0)
            self._omitted += count if isinstance(count, int) else 0
        elif verdict == FAILED and kind in ("flow", "flow_end"):
            reason = str(event.get("reason") or "")
            return self._count(self._failed, (self.target(event), self.fate(event)), reason)
        elif kind == "flow":
            rule = str(event.get("hint") or "")
            if verdict != "allow":
                return self._count(self._refused, (self.target(event), rule), _advice(event, rule))
            if event.get("rule") == LEARNED and rule:
                self._learned[rule] = self._learned.get(rule, 0) + 1
        return False

    def _count(self, among: dict[_Key, _Group], key: _Key, advice: str) -> bool:
        """Whether it is the first of its kind that is kept."""
        if key not in among and len(among) >= _MOST_KEPT:
            self._omitted += among is self._refused
            return False
        group = among.setdefault(key, _Group(advice))
        group.count += 1
        return group.count == 1

    @staticmethod
    def fate(event: Mapping[str, object]) -> str:
        """The fate of a flow that was not allowed, or failed, in a few words."""
        if event.get("verdict") != FAILED:
            return "refused by the gateway"
        return "not found" if event.get("protocol") == "dns" else "could not be reached"

    @staticmethod
    def target(event: Mapping[str, object]) -> str:
        """The target of a flow, in a few characters."""
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
            f"refused {group.count} \u00d7 {what}: {group.advice}"
            for (what, _), group in _most_first(self._refused)
        ]
        lines += [
            f"{words}: {group.count} \u00d7 {what}: {group.advice}"
            for (what, words), group in _most_first(self._failed)
        ]
        if self._omitted:
            lines.append(f"refused {self._omitted} more, not listed one by one")
        return lines

    def learned(self) -> list[str]:
        """The rules, without their verbs, that would have sufficed.

        A name that was only asked needs none of its own if a flow to it was seen.
        """
        return sorted(self._learned)
