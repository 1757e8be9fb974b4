"""The guest's own walls, by name. The host's are the relay, its seal and the jail."""

from __future__ import annotations

from enum import Enum

__all__ = ["Wall"]


class Wall(Enum):
    """A wall of the guest's. Each can be left out, to show what the others hold."""

    FIREWALL = "firewall"
    NAMESPACE = "namespace"
    """The card is in another network namespace than the workload."""
    PRIVILEGES = "privileges"
    """Few capabilities, namespaces of its own, nothing of the initramfs in sight."""
