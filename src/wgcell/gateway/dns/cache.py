"""The DNS cache of one peer: which names lead to an address, each for the life of its answer. Pure.

Time is an argument, in seconds of the monotonic clock.
"""

from __future__ import annotations

from wgcell.net.addresses import Address

__all__ = ["GRACE", "LEAST_LIFETIME", "MOST_ENTRIES", "DnsCache", "Resolved", "lifetime"]

GRACE = 10.0
"""Seconds beyond its TTL for which an answer is valid: a look-up and a connect take time."""
LEAST_LIFETIME = 60.0
"""Seconds for which an answer is valid at least: clients keep an address longer than a second."""
MOST_ENTRIES = 4096
"""Pairs of name and address in a cache: a peer must not grow it without end."""

Resolved = tuple[str, Address, float]
"""A name, an address that it leads to, and the TTL in seconds."""


def lifetime(ttl: float) -> float:
    """The seconds for which an answer of that TTL is valid."""
    return max(LEAST_LIFETIME, ttl + GRACE)


class DnsCache:
    """The names that lead to each address, with the end of each answer's life."""

    def __init__(self) -> None:
        # address -> name -> the end of the last answer that said so
        self._ends: dict[Address, dict[str, float]] = {}
        self._count = 0

    def add(self, name: str, addresses: tuple[Address, ...], ttl: float, now: float) -> None:
        """An answer led from ``name`` to ``addresses``, for ``ttl`` seconds."""
        for address in addresses:
            names = self._ends.setdefault(address, {})
            self._count += name not in names
            # Removed and inserted again: the latest answer is the last.
            names[name] = max(names.pop(name, 0.0), now + lifetime(ttl))
        if self._count > MOST_ENTRIES:
            self._shrink(now)

    def names(self, address: Address, now: float) -> tuple[str, ...]:
        """The names that lead to ``address`` now, the latest answer last."""
        return tuple(name for name, end in self._ends.get(address, {}).items() if end > now)

    def expired(self, address: Address, now: float) -> dict[str, float]:
        """The names that no longer lead to ``address``, each with the seconds since its end.

        Not every name that ever did: the entries that ended first make room.
        """
        names = self._ends.get(address, {})
        return {name: now - end for name, end in names.items() if end <= now}

    def expires_soon(self, name: str, address: Address, now: float) -> bool:
        """Whether ``name`` leads to ``address`` for less than half of `LEAST_LIFETIME`."""
        return self._ends.get(address, {}).get(name, 0.0) < now + LEAST_LIFETIME / 2

    def valid(self, now: float) -> list[Resolved]:
        """Each name with an address that it leads to, and the seconds that are left."""
        return [
            (name, address, end - now)
            for address, names in self._ends.items()
            for name, end in names.items()
            if end > now
        ]

    def clear(self) -> None:
        """Forget everything."""
        self._ends, self._count = {}, 0

    def __len__(self) -> int:
        return self._count

    def _shrink(self, now: float) -> None:
        """Drop the expired entries, and those that expire first, down to half of the room."""
        longest = sorted(self.valid(now), key=lambda entry: entry[2], reverse=True)
        self.clear()
        for name, address, left in longest[: MOST_ENTRIES // 2]:
            self._ends.setdefault(address, {})[name] = now + left
            self._count += 1
