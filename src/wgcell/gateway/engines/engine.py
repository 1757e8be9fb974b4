"""What every engine does: it serves one gateway's configuration until it is stopped."""

from __future__ import annotations

from typing import Protocol

from wgcell.gateway.model.config import GatewayConfig

__all__ = ["Engine"]


class Engine(Protocol):
    """One running gateway. It reports its events itself."""

    async def start(self) -> None:
        """Serve, and report ``ready``. Raises HostError, PolicyError or OSError; then nothing of
        the engine stays."""

    async def apply(self, config: GatewayConfig) -> int:
        """Change to ``config``. Returns how many open flows that has ended: those of peers that
        are gone, and those that the rules no longer allow.

        Raises as `start` does. Which peers are then served, each engine says."""

    async def stop(self) -> None:
        """End all flows, and take away everything that was made."""
