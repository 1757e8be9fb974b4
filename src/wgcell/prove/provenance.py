"""Where and with what a run was made: the facts by which a reader can repeat it."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import wgcell
from wgcell import programs
from wgcell.cell.vouched import file_digest
from wgcell.prove.runners.boots import Machines

__all__ = ["commit", "facts"]


def facts(
    mode: str, started: datetime, oracle: str, machines: Machines | None
) -> list[tuple[str, str]]:
    """Names and values for the report, in their order."""
    return [
        ("wgcell", wgcell.__version__),
        ("commit", commit()),
        ("when", started.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("host", f"{platform.node()}, Linux {platform.release()}, {platform.machine()}"),
        ("Python", platform.python_version()),
        ("mode", mode),
        ("oracle", oracle),
        *(_machines(machines) if machines else [("machines", "none were booted")]),
    ]


def _machines(machines: Machines) -> list[tuple[str, str]]:
    named = dict(machines.facts())
    manifest = file_digest(machines.platform.image.folder / "manifest.json")["sha256"]
    image = f"{named['image']}, manifest's SHA-256 {manifest}"
    return list({**named, "image": image}.items())


def commit() -> str:
    """The commit of this wgcell, by the package's installer or by git."""
    with contextlib.suppress(PackageNotFoundError, ValueError, KeyError, TypeError):
        direct = json.loads(distribution("wgcell").read_text("direct_url.json") or "{}")
        return str(direct["vcs_info"]["commit_id"])
    package = Path(wgcell.__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # Only if git tracks it: a virtual environment may lie in another repository.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        dirty = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(package, "rev-parse", "HEAD") + (", with changes" if dirty else "")
    return "not known: not a checkout"


def _git(folder: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
        env=programs.environment("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"),
    )
    return done.stdout.strip()
