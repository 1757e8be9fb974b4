"""A fault of wgcell's own: said to be one, and kept in a file that can be reported."""

from __future__ import annotations

from collections.abc import Sequence

from wgcell.cli.terminal import complain
from wgcell.display import one_line
from wgcell.errors import WgcellError
from wgcell.faults import keep

__all__ = ["report"]


def report(error: BaseException, words: Sequence[str]) -> None:
    """Say that ``error`` is wgcell's own fault, where it is kept, and what to report."""
    what = one_line(f"this is a fault of wgcell's own: {type(error).__name__}: {error}", 1000)
    try:
        place = keep(error, words)
    except (OSError, WgcellError) as why:
        name = why.message if isinstance(why, WgcellError) else f"{why.filename}: {why.strerror}"
        complain(
            what,
            f"it could not be kept in a file ({name}): set WGCELL_STATE_DIR to a folder of yours, "
            "run it again, and report the file",
        )
        return
    complain(
        what,
        f"kept in {place}",
        "please report it with that file; it holds the verb and its options' names, no values",
    )
