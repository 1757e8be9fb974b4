"""The user's home folder. Everything of wgcell's is below it by default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from wgcell.errors import HostError, InputError

__all__ = ["config_path", "expanded", "home"]


def home() -> Path:
    """This user's home folder. Raises HostError where there is none: no HOME, no account."""
    try:
        return Path.home()
    except RuntimeError:
        raise HostError(
            "this user has no home folder, and HOME is not set",
            hint="set HOME; or name folders of your own with WGCELL_STATE_DIR, WGCELL_CACHE_DIR "
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
            f"{path}: there is no such user, or no home folder", hint="write the path out"
        ) from None


def config_path(environment: Mapping[str, str] | None = None) -> Path:
    """The path of the provider's configuration, whether or not it exists."""
    variables = os.environ if environment is None else environment
    base = variables.get("XDG_CONFIG_HOME", "")
    root = Path(base) if base.startswith("/") else home() / ".config"
    return root / "wgcell" / "config.toml"
