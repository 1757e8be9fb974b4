"""An oracle for what is shown on a terminal, written apart from `wgcell.display`."""

from __future__ import annotations

import unicodedata

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
