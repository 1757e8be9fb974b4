"""What our own processes say to each other: words, as JSON objects, one a line.

A word is a frozen dataclass. What each of its fields may hold stands in its annotation
(``Annotated[str, Text(64)]``), and a `Vocabulary` names the words that one end may say. Both ends
use the same: one encoder, one decoder.

The process that speaks may have been taken over by the guest whose bytes it handles. So the decoder
takes nothing that the encoder would not have made: no unknown word, no field too many or too few,
no other type, no number out of range, no time that is infinite or below 0, no text that is too
long. It raises `LineError`, and whoever listens ends the cell.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar, get_type_hints

__all__ = [
    "Counts",
    "Data",
    "Flag",
    "LineError",
    "Number",
    "OneOf",
    "Seconds",
    "Text",
    "Texts",
    "Vocabulary",
]

MOST = 2**63 - 1
LATEST = 1e12
"""Seconds: the year 33,658."""


class LineError(ValueError):
    """A line that is no word of its vocabulary, or a word that can't be said in it."""


class Kind(Protocol):
    """What a field may hold."""

    def said(self, value: Any) -> Any:
        """``value`` as JSON has it; texts that are too long are cut. Raises LineError."""

    def heard(self, found: Any) -> Any:
        """The value that JSON's ``found`` stands for. Raises LineError."""


@dataclass(frozen=True, slots=True)
class Text:
    """Up to ``most`` characters."""

    most: int

    def said(self, value: Any) -> Any:
        return self.heard(str(value).encode("utf-8", "backslashreplace").decode()[: self.most])

    def heard(self, found: Any) -> Any:
        if not isinstance(found, str) or len(found) > self.most or not _whole(found):
            raise LineError(f"no text of up to {self.most} characters")
        return found


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few texts."""

    texts: tuple[str, ...]

    def said(self, value: Any) -> Any:
        return self.heard(value)

    def heard(self, found: Any) -> Any:
        if not isinstance(found, str) or found not in self.texts:
            raise LineError(f"none of {', '.join(self.texts)}")
        return found


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number from 0 to ``most``."""

    most: int = MOST

    def said(self, value: Any) -> Any:
        return self.heard(value)

    def heard(self, found: Any) -> Any:
        if type(found) is not int or not 0 <= found <= self.most:
            raise LineError(f"no number from 0 to {self.most}")
        return found


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds from 0 to `LATEST`: a duration, or a time of some clock."""

    def said(self, value: Any) -> Any:
        return self.heard(value)

    def heard(self, found: Any) -> Any:
        if type(found) not in (int, float) or not 0 <= found <= LATEST:  # not a number: not <=
            raise LineError("no seconds")
        return float(found)


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def said(self, value: Any) -> Any:
        return self.heard(value)

    def heard(self, found: Any) -> Any:
        if type(found) is not bool:
            raise LineError("neither true nor false")
        return found


@dataclass(frozen=True, slots=True)
class Data:
    """Up to ``most`` bytes, as base64; at least ``least``."""

    most: int
    least: int = 0

    def said(self, value: Any) -> Any:
        return base64.b64encode(value[: self.most]).decode("ascii")

    def heard(self, found: Any) -> Any:
        try:
            data = base64.b64decode(found, validate=True) if isinstance(found, str) else None
        except (binascii.Error, ValueError):
            data = None
        if data is None or not self.least <= len(data) <= self.most:
            raise LineError(f"no base64 of {self.least} to {self.most} bytes")
        return data


@dataclass(frozen=True, slots=True)
class Counts:
    """Up to ``most`` numbers, each with a name of up to 64 characters."""

    most: int

    def said(self, value: Any) -> Any:
        return self.heard(dict(value))

    def heard(self, found: Any) -> Any:
        return _table(found, self.most, Number())


@dataclass(frozen=True, slots=True)
class Texts:
    """Up to ``most`` texts of up to ``longest`` characters, each with a name of up to 64."""

    most: int
    longest: int

    def said(self, value: Any) -> Any:
        text = Text(self.longest)
        return _table({name: text.said(one) for name, one in value.items()}, self.most, text)

    def heard(self, found: Any) -> Any:
        return _table(found, self.most, Text(self.longest))


def _table(found: Any, most: int, kind: Kind) -> dict[str, Any]:
    if not isinstance(found, dict) or len(found) > most:
        raise LineError(f"no table of up to {most}")
    name = Text(64)
    return {name.heard(key): kind.heard(value) for key, value in found.items()}


def _whole(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON's escapes can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Word = TypeVar("Word")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: Kind
    optional: bool
    default: Any


def _fields(word: type) -> tuple[_Field, ...]:
    hints = get_type_hints(word, include_extras=True)
    found = []
    for one in dataclasses.fields(word):
        (kind,) = hints[one.name].__metadata__
        optional = one.default is not dataclasses.MISSING
        found.append(_Field(one.name, kind, optional, one.default if optional else None))
    return tuple(found)


class Vocabulary(Generic[Word]):
    """The words of one end. ``key`` is the name of the field that says which word a line is."""

    def __init__(self, key: str, longest: int, words: Mapping[str, type[Word]]) -> None:
        """``longest``: bytes of a line, with its newline."""
        self.key = key
        self.longest = longest
        self.words = dict(words)
        self._names = {word: name for name, word in words.items()}
        self._fields = {name: _fields(word) for name, word in words.items()}

    def entry(self, word: Word) -> dict[str, Any]:
        """``word`` as the JSON object that it is said as. Raises LineError.

        A field that has a default and holds it is left out.
        """
        name = self._names[type(word)]
        made: dict[str, Any] = {self.key: name}
        for field in self._fields[name]:
            value = getattr(word, field.name)
            if not (field.optional and value == field.default):
                made[field.name] = _named(name, field, field.kind.said, value)
        return made

    def line(self, word: Word) -> bytes:
        """``word`` as a line. Raises LineError if it can't be said."""
        line = json.dumps(self.entry(word), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > self.longest:
            raise LineError(f"{self._names[type(word)]}: a line of {len(line)} bytes")
        return line

    def line_of(self, entry: Mapping[str, Any]) -> bytes:
        """The line of a word whose fields are values still, not JSON's. Raises LineError."""
        values = {name: value for name, value in entry.items() if name != self.key}
        try:
            return self.line(self.words[entry[self.key]](**values))
        except (KeyError, TypeError) as error:
            raise LineError(f"no word that is known: {error}") from None

    def word(self, line: bytes) -> Word:
        """The word that ``line`` is. Raises LineError."""
        if len(line) > self.longest:
            raise LineError(f"a line of more than {self.longest} bytes")
        try:
            found = json.loads(line, object_pairs_hook=_object, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise LineError(f"no JSON: {error}"[:200]) from None
        return self.made(found)

    def made(self, found: Any) -> Word:
        """The word that a JSON object stands for. Raises LineError."""
        name = found.get(self.key) if isinstance(found, dict) else None
        if not isinstance(name, str) or name not in self.words:
            raise LineError(f"no word that is known: {str(name)[:40]!r}")
        values = {}
        for field in self._fields[name]:
            if field.name in found:
                values[field.name] = _named(name, field, field.kind.heard, found[field.name])
            elif not field.optional:
                raise LineError(f"{name}: {field.name} is missing")
        if extra := set(found) - set(values) - {self.key}:
            raise LineError(f"{name}: a field too many: {min(extra)[:40]!r}")
        return self.words[name](**values)


def _named(name: str, field: _Field, way: Any, value: Any) -> Any:
    try:
        return way(value)
    except LineError as error:
        raise LineError(f"{name}: {field.name}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise LineError("a field twice")
    return found


def _no_number(constant: str) -> NoReturn:
    raise LineError(f"{constant} is no number")
