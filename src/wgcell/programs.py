"""Where this machine's programs are: the one place that looks for them. Standard library only.

The folders of PATH come first, then the system's own: an ordinary user's PATH has no ``/usr/sbin``
on Debian, where ``nft`` and ``mke2fs`` are, and a service may have no PATH at all. A folder where
any user may put a program is passed over, and so is one that depends on the working directory.

No program inherits this process's environment, which may hold anything: what a user's shell keeps
in variables (tokens, keys) is no business of a relay, a gateway, or a QEMU that a guest may have
taken over. Each is given `environment`, and in it by name what it can't do without.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["PYTHON", "environment", "find", "folders", "path_of"]

SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""The folders in which Debian's packages, and a machine's administrator, put programs."""

PYTHON = (
    *("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONNOUSERSITE"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
)
"""Variables by which wgcell's Python finds itself, its modules and their compiled form."""

_LOCALE = (
    *("LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_NUMERIC"),
    "LC_TIME",
)


def folders() -> Iterator[str]:
    """The folders that are searched, in their order; each once."""
    named = [folder for folder in os.environ.get("PATH", "").split(":") if _trusted(folder)]
    yield from dict.fromkeys((*named, *SYSTEM))


def _trusted(folder: str) -> bool:
    try:
        return folder.startswith("/") and not Path(folder).stat().st_mode & stat.S_IWOTH
    except (OSError, ValueError):
        return False


def find(name: str) -> str | None:
    """The path of the program ``name``, which has no slash; None if there is none."""
    for folder in folders():
        path = Path(folder, name)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None


def path_of(name: str) -> str:
    """The same, or the last place that was looked at: to execute that fails, and names it."""
    return find(name) or f"{[*folders()][-1]}/{name}"


def environment(*kept: str, **more: str) -> Mapping[str, str]:
    """A program's environment, made anew: a PATH by which it finds others as `find` does, the
    locale, those of this process's variables that are ``kept`` and set, and ``more``."""
    own = {name: os.environ[name] for name in (*_LOCALE, *kept) if name in os.environ}
    return {**own, "PATH": ":".join(folders()), **more}
