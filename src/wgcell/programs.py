"""Where this machine's programs are: the one place that looks for them. Standard library only.

The folders of PATH come first, then the system's own: an ordinary user's PATH has no ``/usr/sbin``
on Debian, where ``nft`` and ``mke2fs`` are, and a service may have no PATH at all. A folder where
any user may put a program is passed over, and so is one that depends on the working directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["environment", "find", "folders", "path_of"]

SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where Debian's packages, and a machine's own administrator, put programs."""


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


def environment() -> Mapping[str, str]:
    """This process's, with a PATH by which programs find others as `find` does."""
    return {**os.environ, "PATH": ":".join(folders())}
