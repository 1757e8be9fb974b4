"""The description of a machine, for every backend."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

__all__ = ["CONSOLE", "Accelerator", "Drive", "MachineSpec"]

CONSOLE = "console"
"""The channel that carries the guest's serial console; the others have their port's name."""


class Accelerator(Enum):
    """The executor of the guest's instructions. Only KVM is a security boundary in QEMU's own
    terms."""

    KVM = "kvm"
    TCG = "tcg"

    @property
    def assurance(self) -> str:
        """``hardware`` or ``emulated``, as ``result.json`` says it."""
        return "hardware" if self is Accelerator.KVM else "emulated"


@dataclass(frozen=True, slots=True)
class Drive:
    """A raw image, seen as the next of /dev/vda, /dev/vdb, …

    It is given as an open descriptor to read, and where it may be written, another to read and
    write: QEMU begins with the first and changes over.
    """

    fd: int
    writable_fd: int | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """Its descriptors."""
        return (self.fd,) if self.writable_fd is None else (self.fd, self.writable_fd)


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine to start. Its one network card has the address ``mac`` and ends in ``nic``.

    ``memory`` is in bytes; ``disk`` is the most bytes that any file it writes may have. ``ports``
    are the names of its virtio-serial ports.
    """

    accelerator: Accelerator
    kernel: Path
    initramfs: Path
    cpus: int
    memory: int
    disk: int
    drives: tuple[Drive, ...]
    mac: str
    nic: socket.socket
    ports: tuple[str, ...]
