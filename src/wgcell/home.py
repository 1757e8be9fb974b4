"""The user's home folder, below which everything of wgcell's is kept unless told otherwise."""

from __future__ import annotations

from pathlib import Path

from wgcell.errors import HostError, InputError

__all__ = ["expanded", "home"]


def home() -> Path:
    """This user's home folder. Raises HostError where there is none: no HOME, no account."""
    try:
        return Path.home()
    except RuntimeError:
        raise HostError(
            "this user has no home folder, and HOME is not set",
            mend="set HOME; or name folders of your own with WGCELL_STATE_DIR, WGCELL_CACHE_DIR "
            "and XDG_CONFIG_HOME",
        ) from None


def expanded(path: Path) -> Path:
    """``path`` of a command line, with a leading ``~`` or ``~user`` in its place.

    A shell leaves it alone behind an ``=``: ``--input=~/data``. Raises InputError.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(
            f"{path}: there is no such user, or no home folder", mend="write the path out"
        ) from None
