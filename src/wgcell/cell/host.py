"""The host's part of a cell: everything that its job does not have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from wgcell.cell.folder import Folder
from wgcell.cell.outputs import Landed
from wgcell.cell.wgquick import VpnConfig
from wgcell.image.store import Image
from wgcell.net.addresses import Address
from wgcell.vm.spec import Accelerator

__all__ = ["HostContext"]


@dataclass(frozen=True, slots=True)
class HostContext:
    """One cell's place on this host.

    ``vpn`` is None for the cell's own gateway, which has no ``addresses``: those are its
    endpoint's, vetted, in the order in which they are to be tried.
    """

    folder: Folder
    image: Image
    accelerator: Accelerator
    accelerator_reason: str
    vpn: VpnConfig | None
    addresses: tuple[Address, ...] = ()
    require_walls: bool = False
    gateway_engine: str = "auto"
    """Of the cell's own gateway: ``auto``, ``namespace`` or ``embedded``."""
    vet_rule: Callable[[str], str] | None = None
    """What a stranger's ``allow`` of a rule would open beyond the provider's limits; see
    `wgcell.cell.orders.Vet`. None: no stranger's wish is granted."""
    land: Callable[[Mapping[str, object]], Awaitable[Landed]] | None = None
    """Moves the outputs to their place, when all else has ended; the argument is the event about
    their unpacking. None leaves them in the cell's folder. Raises StateError."""
    known_links: frozenset[tuple[str, str]] = frozenset()
    """Links among the inputs that lead out, by path and target: no news if they come back."""
    vet_again: Callable[[], tuple[Address, ...]] | None = None
    """Resolves the endpoint's name anew and vets its addresses, as the start did. Raises
    EndpointError if none may be an endpoint."""
