"""Which names lead to an address now: each for as long as the answer that said so lives."""

from __future__ import annotations

from wgcell.net.addresses import Address

__all__ = ["FLOOR", "GRACE", "MOST_LEADS", "NameTable", "lease"]

GRACE = 10.0
"""Seconds beyond its TTL for which an answer still opens: look-up and connect take time."""
FLOOR = 60.0
"""Seconds for which an answer opens at least: a client keeps an address longer than a second."""
MOST_LEADS = 4096
"""Pairs of name and address that a table keeps: a peer must not grow it without end."""


def lease(ttl: float) -> float:
    """For how many seconds an answer of that TTL opens its addresses."""
    return max(FLOOR, ttl + GRACE)


class NameTable:
    """Which names lead to an address, each until its lease's end. Time is an argument."""

    def __init__(self) -> None:
        # address -> name -> when the last answer that said so ends
        self._leads: dict[Address, dict[str, float]] = {}
        self._count = 0

    def learn(self, name: str, addresses: tuple[Address, ...], ttl: float, now: float) -> None:
        """``name`` was answered with ``addresses`` for ``ttl`` seconds."""
        for address in addresses:
            names = self._leads.setdefault(address, {})
            self._count += name not in names
            # Out and in again: the youngest answer is the last.
            names[name] = max(names.pop(name, 0.0), now + lease(ttl))
        if self._count > MOST_LEADS:
            self._shrink(now)

    def names(self, address: Address, now: float) -> tuple[str, ...]:
        """The names that lead to ``address`` now, the youngest answer last."""
        return tuple(name for name, end in self._leads.get(address, {}).items() if end > now)

    def ended(self, address: Address, now: float) -> dict[str, float]:
        """The names that led to ``address`` and do no more, each with the seconds since then.

        Not all that ever did: what ended first makes room.
        """
        names = self._leads.get(address, {})
        return {name: now - end for name, end in names.items() if end <= now}

    def short(self, name: str, address: Address, now: float) -> bool:
        """Whether ``name`` leads to ``address`` for less than half of `FLOOR` from now on."""
        return self._leads.get(address, {}).get(name, 0.0) < now + FLOOR / 2

    def living(self, now: float) -> list[tuple[str, Address, float]]:
        """Each name and address that it leads to, and for how many seconds more."""
        return [
            (name, address, end - now)
            for address, names in self._leads.items()
            for name, end in names.items()
            if end > now
        ]

    def _shrink(self, now: float) -> None:
        """Drop what has ended, and then what ends first, to half of the room."""
        longest = sorted(self.living(now), key=lambda lead: lead[2], reverse=True)
        self._leads, self._count = {}, 0
        for name, address, left in longest[: MOST_LEADS // 2]:
            self._leads.setdefault(address, {})[name] = now + left
            self._count += 1
