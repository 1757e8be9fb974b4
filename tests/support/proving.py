"""`wgcell prove` as a user starts it, of this source or of a copy that is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import wgcell

SOURCE = Path(wgcell.__file__).parent


def prove(
    *options: str, source: Path = SOURCE.parent, timeout: float = 110
) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of the wgcell in ``source``."""
    done = subprocess.run(
        [sys.executable, "-m", "wgcell", "prove", *options, "--json"],
        env={**os.environ, "PYTHONPATH": str(source)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def cases(*names: str) -> list[str]:
    """The options that name them."""
    return [word for name in names for word in ("--case", name)]
