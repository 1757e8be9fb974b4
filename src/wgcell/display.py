"""Text from strangers, made fit to be shown: a job file's keys, a guest's words, a file's name.

Control characters could rewrite the screen or make the terminal answer; a newline could forge a
line of wgcell's own; a bidirectional override shows words in another order than they have. Each is
spelled out (``\\x1b``), so that a reader sees that it was there.

A leaf: imports nothing of ours, and only `re`.
"""

from __future__ import annotations

import re

__all__ = ["INVISIBLE", "UNSAFE", "one_line", "paragraph", "spelled"]

UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Inside a regular expression's brackets: never shown. C0 but tab and newline, DEL, C1 (ECMA-48),
line separators, bidirectional overrides and isolates (UAX 9), surrogates (a name's odd bytes)."""

INVISIBLE = (
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Likewise, where the words are wgcell's own: characters that have no width or no ink, marks of
direction and tags (Unicode's Default_Ignorable_Code_Point). A workload's own text may need them."""

_UNSAFE = re.compile(f"[{UNSAFE}{INVISIBLE}]")
_BREAK = re.compile(r"[ \t]*\r?\n\s*")


def spelled(character: str) -> str:
    r"""One character as ``\x1b`` or ``\u202e``; a byte that was no UTF-8 as that byte."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's surrogates
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def paragraph(text: object) -> str:
    """``text`` with its newlines and tabs, and every other unsafe character spelled out."""
    return _UNSAFE.sub(lambda found: spelled(found[0]), str(text))


def one_line(text: object, most: int = 0) -> str:
    """``text`` on a single line: a line break becomes "; ", a tab a space.

    ``most`` characters are kept, if it is not 0; "…" stands for the rest.
    """
    line = paragraph(_BREAK.sub("; ", str(text).strip()).replace("\t", " "))
    return line if not most or len(line) <= most else line[: most - 1] + "…"
