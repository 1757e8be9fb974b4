r"""TOML from strangers: `tomllib`, within bounds.

`tomllib` takes time that grows with the square of a key's parts (``a.a.a.… = 1``: minutes for a
file of a megabyte), and raises ValueError of its own for an integer of 4,300 digits. So a key may
have `DEEPEST` parts, the file's size is its reader's to bound, and there is one exception.

A leaf: imports nothing of ours.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

__all__ = ["DEEPEST", "TomlError", "parse"]

DEEPEST = 8
"""Parts of one key; wgcell's own have at most four."""

# What is no key: strings, as TOML 1.0 has them, and comments. All quantifiers are possessive, so
# that each character is looked at once.
_NO_KEY = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5}+|\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5}+|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+(?:"|\n|\Z)'
    r"|'[^'\n]*+(?:'|\n|\Z)"
    r"|\#[^\n]*+",
    re.DOTALL,
)
_TOO_DEEP = re.compile(rf"(?<![A-Za-z0-9_-])(?:[A-Za-z0-9_-]++[ \t]*+\.[ \t]*+){{{DEEPEST}}}")


class TomlError(ValueError):
    """It is no TOML, or more than is read. Its words name the line."""


def parse(raw: bytes) -> dict[str, Any]:
    """The tables of a file's bytes, UTF-8 with or without a byte order mark. Raises `TomlError`."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TomlError(f"line {line}: not UTF-8 text") from None
    bare = _NO_KEY.sub(lambda found: "s" + "\n" * found[0].count("\n"), text)
    if deep := _TOO_DEEP.search(bare):
        line = bare[: deep.start()].count("\n") + 1
        raise TomlError(f"line {line}: a key of more than {DEEPEST} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TomlError("not TOML: nested too deeply") from None
    except ValueError as error:
        # tomllib's own words end in "(at line 3, column 7)", or in this where the file stops short.
        last = f"(at line {raw.count(bytes([10])) + 1}, the last)"
        words = str(error).replace("(at end of document)", last)
        raise TomlError(f"not TOML: {words}") from None
