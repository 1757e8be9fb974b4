"""A fault of wgcell's own, kept in a file that can be reported."""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import wgcell
from wgcell.cell.folder import state_folder
from wgcell.display import one_line, paragraph

__all__ = ["keep"]

_MOST_KEPT = 20


def keep(error: BaseException, words: Sequence[str]) -> Path:
    """Write the fault below the state folder, the newest few are kept. Raises OSError.

    Of the command line only the names of options: values may be secrets.
    """
    folder = state_folder() / "faults"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    asked = [word.partition("=")[0] if word.startswith("-") else "…" for word in words[1:]]
    lines = [
        f"wgcell {wgcell.__version__}, Python {platform.python_version()}, {platform.platform()}",
        one_line(" ".join(["wgcell", *words[:1], *asked]), 1000),
        *traceback.format_exception(error),
    ]
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"{now}-{os.getpid()}.txt"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
        file.write(paragraph("\n".join(lines)))
    for old in sorted(folder.glob("*.txt"))[:-_MOST_KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path
