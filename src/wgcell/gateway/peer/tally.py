"""Sums up a gateway's events for the few lines at the end of a run. The events may be hostile."""

from __future__ import annotations

from collections.abc import Mapping

from wgcell.gateway.model.flow import FAILED
from wgcell.gateway.model.policy import LEARNED

__all__ = ["Tally"]

_MOST_KEPT = 512
"""Refusals, and failures, that are kept one by one."""


class Tally:
    """Counts refusals, failures and learned rules."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, str], int] = {}
        self._learned: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._omitted = 0

    def add(self, event: Mapping[str, object]) -> bool:
        """Count one event. True for a refusal or a failure of a kind not seen before."""
        if event.get("event") == "flows_omitted":
            count = event.get("refuse", 0)
            self._omitted += count if isinstance(count, int) else 0
            return False
        if event.get("event") != "flow":
            return False
        rule = str(event.get("mend") or "")
        if event.get("verdict") == FAILED:
            what, known = self.what(event), len(self._failed)
            if known < _MOST_KEPT:
                self._failed.setdefault(what, str(event.get("reason") or ""))
            return len(self._failed) > known
        if event.get("verdict") == "allow":
            if event.get("rule") == LEARNED and rule:
                self._learned[rule] = self._learned.get(rule, 0) + 1
            return False
        key = (self.what(event), rule)
        if key not in self._refused and len(self._refused) >= _MOST_KEPT:
            self._omitted += 1
            return False
        self._refused[key] = self._refused.get(key, 0) + 1
        return self._refused[key] == 1

    @staticmethod
    def told(event: Mapping[str, object]) -> str:
        """The outcome of a flow, in a few words."""
        return "not found" if event.get("verdict") == FAILED else "refused by the gateway"

    @staticmethod
    def what(event: Mapping[str, object]) -> str:
        """The target of a flow, in a few characters."""
        where = str(event.get("host") or event.get("name") or event.get("address") or "?")
        if event.get("protocol") == "dns":
            return where if event.get("name") else "a query that is none"
        protocol = event.get("protocol")
        if protocol not in ("tcp", "udp"):
            return f"{where} ({protocol})"
        where = f"[{where}]" if ":" in where else where
        return f"{where}:{event.get('port')}" + ("/udp" if protocol == "udp" else "")

    def refusals(self) -> list[str]:
        """Each as "refused 3 \u00d7 a.example.com:443: --allow a.example.com:443"; most first."""
        lines = []
        for (what, rule), count in sorted(self._refused.items(), key=lambda item: -item[1]):
            option = rule if rule.startswith("--") else f"--allow {rule}"
            lines.append(f"refused {count} \u00d7 {what}" + (f": {option}" if rule else ""))
        lines += [f"not found: {name}: {reason}" for name, reason in self._failed.items()]
        if self._omitted:
            lines.append(f"refused {self._omitted} more, not listed one by one")
        return lines

    def learned(self) -> list[str]:
        """The rules, without their verbs, that would have sufficed."""
        return sorted(self._learned)
