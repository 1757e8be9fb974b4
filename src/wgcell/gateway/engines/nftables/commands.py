"""Runs ip, nft and wg, and sets sysctls: in the network namespace of the calling thread."""

from __future__ import annotations

import subprocess
from pathlib import Path

from wgcell import programs
from wgcell.errors import HostError

__all__ = ["run_tool", "sysctl", "try_tool"]

_TIMEOUT = 10.0
"""Seconds for a tool to end."""


def run_tool(*argv: str, text: str = "") -> str:
    """Run a tool with ``text`` on its standard input. Returns its output.

    Raises HostError with the tool's first line of errors, also after 10 s.
    """
    found = [programs.path_of(argv[0]), *argv[1:]]
    try:
        done = subprocess.run(
            found,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            env=programs.environment(),
        )
    except OSError as error:
        raise HostError(f"{argv[0]} can't be started: {error}") from error
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(argv[:4])}: no end within {_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise HostError(f"{' '.join(argv[:4])}: {said[0] if said else 'failed'}")
    return done.stdout


def try_tool(*argv: str) -> None:
    """Run a tool and ignore its failure."""
    found = [programs.path_of(argv[0]), *argv[1:]]
    subprocess.run(found, capture_output=True, check=False, env=programs.environment())


def sysctl(name: str, value: str = "") -> str:
    """The value of the kernel setting /proc/sys/``name``, which then becomes ``value`` if given.

    Raises HostError.
    """
    path = Path("/proc/sys") / name
    try:
        before = path.read_text().strip()
        if value and before != value:
            path.write_text(value)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    return before
