r"""What a workload writes, on its way to a terminal: what may pass, byte by byte.

A terminal obeys its output: it sets its title and the clipboard, answers
questions into the user's next command line, changes its character set, is resized or reset. So the
output passes a filter with an allow-list:

- text in UTF-8, tab, newline, carriage return, backspace: a progress bar moves as it should;
- SGR (``ESC [ … m``): colours, bold, underline;
- within the line: cursor right, left, to a column (``C D G``), erase (``K``).

Nothing else passes. Movement between lines does not: it could write over wgcell's own words. Other
escape sequences are removed; single control characters, and bytes that are no UTF-8, are spelled
out (``\x07``).

The parser follows ECMA-48, section 5.4, with states named as in Paul Williams' diagram of the
VT500's. It takes any bytes in chunks of any size, and keeps at most `_LONGEST` characters.
"""

from __future__ import annotations

import codecs
import re
from enum import Enum, auto

from wgcell.display import UNSAFE, spelled

__all__ = ["RESET", "TerminalFilter"]

RESET = "\x1b[0m"
_LONGEST = 64
"""Characters between ``ESC [`` and the final one; a longer sequence is removed."""

_PLAIN = re.compile(f"[^{UNSAFE}]+|[\b\r]+")
_ALLOWED = re.compile(r"(?:[0-9]{0,4}[;:])*[0-9]{0,4}m|[0-9]{0,4}[CDGK]", re.ASCII)
_STRING_ENDS = re.compile("[\x07\x18\x1a\x1b\x9c\n]")
"""BEL, CAN, SUB, ESC (of ``ESC \\``), ST. Also a newline, which no title or clipboard holds: a
stray introducer costs the rest of its line, not of the output."""


class _State(Enum):
    GROUND = auto()
    ESCAPE = auto()
    INTERMEDIATE = auto()
    CSI = auto()
    STRING = auto()
    """OSC, DCS, SOS, PM or APC: removed up to their end."""


class TerminalFilter:
    """One stream's filter. `feed` the bytes as they come; `close` at the end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._state = _State.GROUND
        self._held = ""
        self.line_open = False
        """The last character shown was no newline."""
        self.coloured = False
        """An SGR passed since the last `mark_reset`: later text may look different."""

    def feed(self, data: bytes) -> bytes:
        """The part of ``data``, and of the characters held back before, that may be shown now."""
        return self._pass(self._decoder.decode(data))

    def close(self) -> bytes:
        """The rest of a character that was cut off, and a reset if colours were set."""
        rest = self._pass(self._decoder.decode(b"", final=True))
        self._state = _State.GROUND
        if self.coloured:
            rest += RESET.encode()
            self.coloured = False
        return rest

    def mark_reset(self) -> None:
        """Somebody else has reset the colours and begun a new line."""
        self.line_open = self.coloured = False

    def _pass(self, text: str) -> bytes:
        shown: list[str] = []
        at = 0
        while at < len(text):
            if self._state is _State.GROUND and (run := _PLAIN.match(text, at)):
                shown.append(run[0])
                at = run.end()
            elif self._state is _State.STRING:
                end = _STRING_ENDS.search(text, at)
                at = end.start() if end else len(text)
                if end:
                    self._end_of_string(text[at], shown)
                    at += 1
            elif self._step(text[at], shown):
                at += 1
        whole = "".join(shown)
        if whole:
            self.line_open = not whole.endswith("\n")
        return whole.encode()

    def _end_of_string(self, character: str, shown: list[str]) -> None:
        self._state = _State.ESCAPE if character == "\x1b" else _State.GROUND
        if character == "\n":
            shown.append(character)

    def _step(self, character: str, shown: list[str]) -> bool:
        """Take one character in; False if it aborted a sequence and is still to be read."""
        if character == "\x1b":
            self._state, self._held = _State.ESCAPE, ""
            return True
        match self._state:
            case _State.GROUND:
                shown.append(spelled(character))
            case _State.ESCAPE if character == "[":
                self._state = _State.CSI
            case _State.ESCAPE if character in "]PX^_":
                self._state = _State.STRING
            case _State.ESCAPE | _State.INTERMEDIATE if " " <= character <= "/":
                self._state = _State.INTERMEDIATE
            case _State.ESCAPE | _State.INTERMEDIATE if "0" <= character <= "~":
                self._state = _State.GROUND
            case _State.CSI if " " <= character <= "?":
                if len(self._held) <= _LONGEST:
                    self._held += character
            case _State.CSI if "@" <= character <= "~":
                self._state = _State.GROUND
                sequence = self._held + character
                if len(self._held) <= _LONGEST and _ALLOWED.fullmatch(sequence):
                    shown.append(f"\x1b[{sequence}")
                    self.coloured |= character == "m"
            case _:
                self._state = _State.GROUND
                return False
        return True
