"""The machine backends, a line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from wgcell.vm.machine import Backend
from wgcell.vm.qemu.backend import Qemu

__all__ = ["BACKENDS", "default"]

BACKENDS: Mapping[str, Callable[[], Backend]] = MappingProxyType({"qemu": Qemu})


def default() -> Backend:
    """The backend that cells run on."""
    return BACKENDS["qemu"]()
