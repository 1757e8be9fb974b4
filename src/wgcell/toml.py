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
"""The words for a value of each type in a message; wgcell's lists hold strings only."""

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


# tomllib's own words end in one of these.
_PLACE = re.compile(r"(.*) \(at line ([0-9]+), column ([0-9]+)\)", re.DOTALL)
_AT_END = " (at end of document)"


class TomlError(ValueError):
    """It is no TOML, or more than is read. ``line`` is 0 where none can be named."""

    def __init__(self, words: str, line: int = 0) -> None:
        super().__init__(words)
        self.line = line

    def at(self, path: object) -> str:
        """``path:line: words``, as every file's errors begin."""
        return f"{path}:{self.line}: {self}" if self.line else f"{path}: {self}"


def parse(raw: bytes) -> dict[str, object]:
    """The tables of a file's bytes, UTF-8 with or without a byte order mark. Raises `TomlError`."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TomlError("not UTF-8 text", line) from None
    bare = _NO_KEY.sub(lambda found: "s" + "\n" * found[0].count("\n"), text)
    if deep := _TOO_DEEP.search(bare):
        line = bare[: deep.start()].count("\n") + 1
        raise TomlError(f"a key of more than {DEEPEST} parts", line)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TomlError("not TOML: nested too deeply") from None
    except ValueError as error:
        words, line = str(error), 0
        if found := _PLACE.fullmatch(words):
            words, line = f"{found[1]} (column {found[3]})", int(found[2])
        elif words.endswith(_AT_END):
            words = f"{words.removesuffix(_AT_END)} (the file ends here)"
            line = raw.count(b"\n") + 1
        else:  # Python's own, of an integer that int() does not read
            words = "a number of too many digits"
        raise TomlError(f"not TOML: {words}", line) from None


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
