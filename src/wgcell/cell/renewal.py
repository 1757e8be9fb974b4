"""When a cell gets a fresh socket to its endpoint, and to which address.

A host that has moved (a cable for a Wi-Fi, a resume) sends from another address. An endpoint that
has moved is silent, and its name resolves to another address. In both cases the relay gets a fresh
socket. The address that has consented may be used at once. Any other address must consent first,
for the owner of the name could otherwise point a cell at anybody. All of it is decided here; the
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
"""Addresses that are asked for consent at the start, and in one renewal: a name may lead to any
number."""


@dataclass(slots=True)
class Renewal:
    """The state of the way: its address, and the address from which this host would send."""

    address: Address
    """The endpoint's, which has consented."""
    source: str | None
    """This host's own address on the way; None where there is no way."""
    at: float
    """When it was last renewed, in seconds of the caller's clock."""
    not_before: float = 0.0
    """Strangers were asked in vain: until then nobody is."""

    def moved(self, source: str | None) -> bool:
        """Whether this host would now send from another address. No way at all is no move."""
        return source is not None and source != self.source

    def due(self, source: str | None, unanswered: int, now: float) -> bool:
        """Whether a fresh socket is wanted.

        ``source`` is the address that this host would send from now, None without a way;
        ``unanswered`` counts the guest's latest initiations without an answer.
        """
        unheard = unanswered >= UNHEARD and now - self.at > AGAIN
        return source is not None and now > self.not_before and (self.moved(source) or unheard)

    def order(self, found: Sequence[Address], source: str | None) -> tuple[Address, ...]:
        """The addresses to try, of those that the name has now, all of them vetted.

        If this host has moved, the one that has consented comes first, for most likely the endpoint
        has not moved. If nobody answers there, it comes last.
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

    def refused(self, now: float, *, asked: bool) -> None:
        """No address would do. If one was ``asked`` for consent, nobody is for `AGAIN`, also for
        the same move; a host that found no name or no way tries again at its next look."""
        self.at = now
        if asked:
            self.not_before = now + AGAIN
