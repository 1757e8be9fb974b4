r"""TOML from strangers: `tomllib`, within bounds; and the words for a wrong key or type.

`tomllib` takes time that grows with the square of a key's parts (``a.a.a.… = 1``: minutes for a
file of a megabyte), and raises ValueError of its own for an integer of 4,300 digits. So a key may
have `DEEPEST` parts, the file's size is its reader's to bound, and there is one exception.

A leaf: imports nothing of ours.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["CALLED", "DEEPEST", "TomlError", "parse", "unknown_key"]

DEEPEST = 8
"""Parts of one key; wgcell's own have at most four."""

CALLED: Mapping[type, str] = MappingProxyType(
    {
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list: "a list of strings",
        dict: "a table",
    }
)
"""What a value of each type is called in a message; wgcell's lists hold strings only."""

_SHOWN = 80
"""Characters of a stranger's key that are compared and shown."""

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


def unknown_key(key: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """The sentence for ``key``, whose last part is none of ``known``: what was meant, and what is
    allowed. ``elsewhere`` are whole keys, as ``resources.memory``, that may stand in the file.
    """
    import difflib  # only now: a right file needs none of it

    shown, names = key[:_SHOWN], sorted(known)
    last = shown.rpartition(".")[2].lower()
    near = [whole for whole in elsewhere if whole.rpartition(".")[2] == last]
    near += difflib.get_close_matches(last, names, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown key {shown!r}{meant}; allowed here: {', '.join(names)}"
