"""How a running cell is asked to end: over its socket, or by a signal."""

from __future__ import annotations

import os
import signal

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder
from wgcell.errors import StateError

__all__ = ["ask_to_end"]


def ask_to_end(cell: Folder, *, now: bool) -> None:
    """Ask ``cell`` over its socket to end; send a signal if it doesn't answer there.

    ``now``: without a grace period. Raises StateError for a cell that can't be reached.
    """
    try:
        list(ask(cell, words.Stop(now)))
    except (Unreachable, StateError):
        _signal_to_end(cell, now=now)


def _signal_to_end(cell: Folder, *, now: bool) -> None:
    pid = cell.supervisor()
    if pid is None:
        if cell.alive:
            raise StateError(
                f"{cell.id}: its supervisor can't be reached",
                hint=f"look at {cell.path}/lock, and end that process yourself",
            )
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Asked again with the pidfd in hand: the pid can't have been recycled in between.
        if cell.supervisor() == pid:
            signal.pidfd_send_signal(pidfd, signal.SIGQUIT if now else signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise StateError(
            f"{cell.id} is {cell.user}'s", hint="stop it as that user, or as root"
        ) from None
    finally:
        os.close(pidfd)
