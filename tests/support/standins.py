"""What stands in the place of a cell's processes. It is imported by programs, too: no pytest."""

from __future__ import annotations

from typing import Any

from wgcell.errors import HostError


class Child:
    """A relay, or a gateway, that goes when it is asked to."""

    missing: dict[str, str] = {}
    sealed = True

    def __init__(self) -> None:
        self.code, self.quits, self.closed = 0, 0, 0

    async def quit(self) -> int:
        self.quits += 1
        return self.code

    def send(self, command: str, **fields: Any) -> None: ...

    def close(self) -> None:
        self.closed += 1


class Dead:
    """A machine that dies when it is killed."""

    def __init__(self) -> None:
        self.kills, self.closed, self.immortal = 0, 0, False

    def kill(self) -> None:
        self.kills += 1

    async def dead(self) -> None:
        if self.immortal:
            raise HostError("QEMU did not die")

    async def reap(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed += 1


class Group:
    def __init__(self) -> None:
        self.removed = 0

    def remove(self) -> None:
        self.removed += 1
