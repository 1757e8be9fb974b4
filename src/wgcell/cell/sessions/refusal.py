"""Which sessions can begin in which state of a cell. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from wgcell.guest.frames import Attach, Subject

__all__ = ["refused"]

_ENDING = "the cell is ending"
_YET = "the cell is not running yet: its tunnel is verified first"
_STATES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("preparing", "consent", "booting", "verifying"), _YET),
        **dict.fromkeys(("terminating", "stopping", "ended"), _ENDING),
        "frozen": "the cell's machine is frozen: wgcell ps says how to look into it",
        "paused": "the cell is paused: wgcell unpause lets it go on",
    }
)
"""Why nothing can begin, by the cell's state; of ``running`` there is no reason."""


def refused(subject: Subject, state: str, *, connected: bool, reads: bool) -> str:
    """Why a session of that subject can't begin in a cell of that state; empty if it can.

    ``connected``: the guest can be spoken to. ``reads``: the workload has a standard input.
    """
    if isinstance(subject, Attach):
        if subject.stdin and not reads:
            return "the workload reads no standard input: its cell was started without one"
        if state == "terminating":  # it may have something to say still
            return ""
    return _STATES.get(state, "") or ("" if connected else _ENDING)
