"""Makes the best testbed that this machine allows."""

from __future__ import annotations

from wgcell.prove.testbed.base import Testbed
from wgcell.prove.testbed.lan import LanTestbed
from wgcell.prove.testbed.namespaces import why_refused
from wgcell.prove.testbed.socket_only import SocketTestbed

__all__ = ["prepare"]


def prepare(relays: int) -> Testbed:
    """A testbed for ``relays`` relays; to be called before this process starts a thread.

    Raises HostError if namespaces are allowed, and their links can't be made.
    """
    why = why_refused()
    if why:
        return SocketTestbed(f"no namespaces here: {why}", relays)
    return LanTestbed(relays)
