"""An oracle for what is shown on a terminal, written apart from `wgcell.display`."""

from __future__ import annotations

import io
import sys
import unicodedata
from typing import Any

from wgcell.cli.terminal import Narrator, Words

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


def told(events: list[dict[str, Any]], words: Words = Words.ALL) -> str:
    said = io.StringIO()
    before, sys.stderr = sys.stderr, said
    try:
        narrator = Narrator(words)
        for event in events:
            narrator(event)
    finally:
        sys.stderr = before
    return said.getvalue()
