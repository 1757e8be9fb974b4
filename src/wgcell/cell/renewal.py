"""When a cell gets a fresh socket to its endpoint, and where that may lead.

A host that has moved (a cable for a Wi-Fi, a resume) sends from another address; an endpoint that
has moved answers no more, and its name leads elsewhere. In both cases the relay gets a fresh
socket. To the address that has consented it may lead as it is. Any other address must consent
first: whoever owns the name could else point a cell at anybody. All of it is decided here; the
sockets and the handshake are the supervisor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wgcell.net.addresses import Address

__all__ = ["LOOK", "MOST_ASKED", "Renewal"]

LOOK = 2.0
AGAIN = 30.0
"""Seconds between looks at the way to the endpoint, and between two renewals for the same way."""
UNHEARD = 2
"""The guest's latest initiations that nobody has answered: the endpoint is gone, or has moved."""
MOST_ASKED = 4
"""Addresses that are asked for consent in one renewal: a name may lead to any number."""


@dataclass(slots=True)
class Renewal:
    """What is known of the way: where it leads, and from where this host would send."""

    address: Address
    """The endpoint's, which has consented."""
    source: str | None
    """This host's own address on the way; None where there is no way."""
    at: float
    """When it was last renewed, in seconds of the caller's clock."""

    def moved(self, source: str | None) -> bool:
        """Whether this host would now send from another address. No way at all is no move."""
        return source is not None and source != self.source

    def due(self, source: str | None, unanswered: int, now: float) -> bool:
        """Whether a fresh socket is wanted.

        ``source`` is the address that this host would send from now, None without a way;
        ``unanswered`` counts the guest's latest initiations without an answer.
        """
        unheard = unanswered >= UNHEARD and now - self.at > AGAIN
        return source is not None and (self.moved(source) or unheard)

    def order(self, found: Sequence[Address], source: str | None) -> tuple[Address, ...]:
        """The addresses to try, of those that the name leads to now, all of them vetted.

        Where this host has moved, the one that has consented comes first, for most likely the
        endpoint has not. Where nobody answers there, it comes last.
        """
        others = [address for address in found if address != self.address][:MOST_ASKED]
        if self.address not in found:
            return tuple(others)
        known = (self.address,)
        return (*known, *others) if self.moved(source) else (*others, *known)

    def must_consent(self, address: Address) -> bool:
        """Whether ``address`` has not consented yet: it gets nothing of the guest's before."""
        return address != self.address

    def renewed(self, address: Address, source: str | None, now: float) -> None:
        """The relay has a fresh socket to ``address``."""
        self.address, self.source, self.at = address, source, now

    def refused(self, now: float) -> None:
        """No address would do: ask again when `AGAIN` has passed, also for the same move."""
        self.at = now
