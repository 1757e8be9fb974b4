"""How much of the source the type checker can't see: ``Any`` turns its checks off."""

from __future__ import annotations

import tokenize
from pathlib import Path

import wgcell

SOURCE = Path(wgcell.__file__).parent
MOST = 1.0
"""Occurrences per thousand lines."""


def occurrences(file: Path) -> int:
    with tokenize.open(file) as opened:
        tokens = tokenize.generate_tokens(opened.readline)
        return sum(token.type == tokenize.NAME and token.string == "Any" for token in tokens)


def test_any_is_rare() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    lines = sum(len(file.read_text().splitlines()) for file in files)
    found = {str(file.relative_to(SOURCE)): occurrences(file) for file in files}
    assert lines > 10_000
    assert sum(found.values()) * 1000 < MOST * lines, {k: v for k, v in found.items() if v}
