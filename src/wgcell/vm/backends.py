"""The machine backends, a line each, the preferred one first.

A new one is a folder beside ``qemu`` with a `wgcell.vm.machine.Backend`, and its line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from wgcell import programs
from wgcell.vm.machine import Backend
from wgcell.vm.qemu.backend import Qemu

__all__ = ["BACKENDS", "default"]

BACKENDS: Mapping[str, Callable[[], Backend]] = MappingProxyType({"qemu": Qemu})


def default() -> Backend:
    """The backend that cells run on: the first whose programs are installed here.

    If none has all of its own, the first, whose `Backend.probe` says what is missing.
    """
    made = [make() for make in BACKENDS.values()]
    return next((one for one in made if all(map(programs.find, one.programs))), made[0])
