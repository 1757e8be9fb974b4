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


def _advice(event: Mapping[str, object], rule: str) -> str:
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

    def add(self, event: Mapping[str, object]) -> bool:
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
    def told(event: Mapping[str, object]) -> str:
        """What has become of it, in a few words."""
        if event.get("verdict") != FAILED:
            return "refused by the gateway"
        return "not found" if event.get("protocol") == "dns" else "could not be reached"

    @staticmethod
    def what(event: Mapping[str, object]) -> str:
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
