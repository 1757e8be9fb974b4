"""A case of the battery: the frames that it sends, and what its attacker knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from wgcell.prove.battery import packets
from wgcell.prove.verdict import Phase, Verdict

__all__ = ["EVERYWHERE", "LIVE", "MTU", "Attacker", "Case", "Injection", "Probe"]

MTU = 1420
"""Of the tunnel, in bytes."""
EVERYWHERE = tuple(Phase)
LIVE = (Phase.RUNNING, Phase.REKEY)


@dataclass(slots=True)
class Attacker:
    """What an attacker in the guest knows: every key, and the indices of a real handshake.

    ``ours`` and ``theirs`` are the guest's and the endpoint's index of the live session; ``theirs``
    is None without a session. ``host`` is the address of the machine itself on the LAN, ``port``
    the relay's, which anyone on the path knows too.
    """

    guest_key: bytes
    endpoint_key: bytes
    host: bytes
    ours: int = 0
    theirs: int | None = None
    counter: int = 0
    port: int = 0

    def next_counter(self) -> int:
        """The next transport counter."""
        self.counter += 1
        return self.counter

    @property
    def receiver(self) -> int:
        """The receiver index of a transport message from the guest."""
        return 1 if self.theirs is None else self.theirs

    def transport(self, size: int = 96, counter: int | None = None) -> bytes:
        """A transport message of ``size`` bytes: junk behind a header that is in step."""
        number = self.next_counter() if counter is None else counter
        return packets.transport(self.receiver, number, os.urandom(size), size=size)

    def initiation(self, *, key: bytes = b"", mac2: bytes = bytes(16), size: int = 148) -> bytes:
        """An initiation from the guest: junk under a right mac1."""
        index = int.from_bytes(os.urandom(4), "little")
        return packets.initiation(
            index, key or self.endpoint_key, os.urandom(256), mac2=mac2, size=size
        )

    def payload(self) -> bytes:
        """A message from the guest that would pass now."""
        return self.initiation() if self.theirs is None else self.transport()


@dataclass(frozen=True, slots=True)
class Probe:
    """The frames to send: ``first`` are honest and pass, ``frames`` are the case's subject."""

    frames: tuple[bytes, ...]
    first: tuple[bytes, ...] = ()


class Injection(Enum):
    """Where a probe's frames are injected."""

    FRAMES = "frames"
    """Into the NIC, each behind its length."""
    STREAM = "stream"
    """Into the NIC's stream as they are, as a compromised QEMU could write them."""
    ENDPOINT = "endpoint"
    """As datagrams to the relay's port, from the endpoint's address and port."""
    STRANGER = "stranger"
    """As datagrams to the relay's port, from another host."""
    LAN = "LAN"
    """As frames from the LAN to the host."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    ``wait`` is the time in seconds between the live session and the probe; ``--long`` alone runs
    such a case.
    """

    name: str
    group: str
    does: str
    verdict: Verdict
    probe: Callable[[Attacker], Probe]
    injection: Injection = Injection.FRAMES
    wall: str = "relay"
    phases: tuple[Phase, ...] = (Phase.RUNNING,)
    wait: float = 0.0

    @property
    def inbound(self) -> bool:
        """Whether its frames come from outside, not from the guest."""
        return self.injection in (Injection.ENDPOINT, Injection.STRANGER, Injection.LAN)

    @property
    def long_phases(self) -> tuple[Phase, ...]:
        """Every phase in which the case has a meaning."""
        if self.group == "WireGuard" and self.phases == (Phase.RUNNING,) and not self.wait:
            return LIVE
        anywhere = not self.inbound and self.group != "WireGuard"
        if anywhere and self.verdict is Verdict.PASS:
            # Nothing passes through a dead relay.
            return tuple(phase for phase in Phase if phase is not Phase.KILLED)
        return EVERYWHERE if anywhere else self.phases
