"""An oracle for what is shown on a terminal, written apart from `wgcell.display`."""

from __future__ import annotations

import io
import sys
import unicodedata
from typing import Any

from wgcell.cli.progress import EventPrinter, Verbosity

_REORDERS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_text(shown: str, but: str = "") -> bool:
    """Whether no character of ``shown``, except those of ``but``, controls a terminal."""
    return all(
        character in but
        or (
            unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
            and unicodedata.bidirectional(character) not in _REORDERS
        )
        for character in shown
    )


def assert_clean(said: str, *begins: str) -> None:
    for line in said.split("\n")[:-1]:
        assert is_text(line), repr(line)
        assert line.startswith(begins), repr(line)


def told(events: list[dict[str, Any]], words: Verbosity = Verbosity.VERBOSE) -> str:
    said = io.StringIO()
    before, sys.stderr = sys.stderr, said
    try:
        printer = EventPrinter(words)
        for event in events:
            printer(event)
    finally:
        sys.stderr = before
    return said.getvalue()
