"""Messages between wgcell's own processes: words, as JSON objects, one a line.

A word is a frozen dataclass. The annotation of each field (``Annotated[str, Text(64)]``) says which
values it may hold, and a `Vocabulary` names the words that one end may send. Both ends use the
same: one encoder, one decoder.

A guest may have taken over the process that handles its bytes. So the decoder accepts nothing that
the encoder would not have made: no unknown word, no field too many or too few, no other type, no
number out of range, no time that is infinite or below 0, no text that is too long. It raises
`LineError`, and the process that reads ends the cell.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar, get_type_hints

__all__ = [
    "Data",
    "Exact",
    "Flag",
    "LineError",
    "Native",
    "Number",
    "OneOf",
    "Record",
    "Seconds",
    "Several",
    "Table",
    "Text",
    "Vocabulary",
]

MOST = 2**63 - 1
LATEST = 1e12
"""Seconds: the year 33,658."""


class LineError(ValueError):
    """A line that is no word of its vocabulary, or a word that can't be encoded in it."""


class FieldType(Protocol):
    """The values that a field may hold."""

    def encoded(self, value: object) -> object:
        """``value`` for JSON. Raises LineError for a value that the field may not hold."""

    def decoded(self, found: object) -> object:
        """The value of JSON's ``found``. Raises LineError for one that the field may not hold."""


@dataclass(frozen=True, slots=True)
class Text:
    """Up to ``most`` characters, for people: a longer text is cut."""

    most: int

    def encoded(self, value: object) -> object:
        return self.decoded(str(value).encode("utf-8", "backslashreplace").decode()[: self.most])

    def decoded(self, found: object) -> object:
        if not isinstance(found, str) or len(found) > self.most or not _whole(found):
            raise LineError(f"no text of up to {self.most} characters")
        return found


@dataclass(frozen=True, slots=True)
class Exact:
    """Up to ``most`` characters, for a program: never cut, since a part has another meaning."""

    most: int

    def encoded(self, value: object) -> object:
        return Text(self.most).decoded(value)

    def decoded(self, found: object) -> object:
        return Text(self.most).decoded(found)


@dataclass(frozen=True, slots=True)
class Native:
    """A text as the system has it: of a path, an argument, a variable. Bytes that are no UTF-8 are
    in it as Python has them (`os.fsdecode`). Never cut."""

    most: int = 128 << 10
    """Characters: Linux's bound for one argument (execve(2), MAX_ARG_STRLEN)."""

    def encoded(self, value: object) -> object:
        return self.decoded(os.fspath(value) if isinstance(value, os.PathLike) else value)

    def decoded(self, found: object) -> object:
        if not isinstance(found, str) or len(found) > self.most:
            raise LineError(f"no text of up to {self.most} characters")
        try:
            os.fsencode(found)
        except UnicodeEncodeError:
            raise LineError("a text that no system has") from None
        return found


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few texts."""

    texts: tuple[str, ...]

    def encoded(self, value: object) -> object:
        return self.decoded(value)

    def decoded(self, found: object) -> object:
        if not isinstance(found, str) or found not in self.texts:
            raise LineError(f"none of {', '.join(self.texts)}")
        return found


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number from 0 to ``most``."""

    most: int = MOST

    def encoded(self, value: object) -> object:
        return self.decoded(value)

    def decoded(self, found: object) -> object:
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= self.most:
            raise LineError(f"no number from 0 to {self.most}")
        return found


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds from 0 to `LATEST`: a duration, or a time of some clock."""

    def encoded(self, value: object) -> object:
        return self.decoded(value)

    def decoded(self, found: object) -> object:
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise LineError("no seconds")
        if not 0 <= found <= LATEST:  # not a number: not <=
            raise LineError("no seconds")
        return float(found)


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def encoded(self, value: object) -> object:
        return self.decoded(value)

    def decoded(self, found: object) -> object:
        if not isinstance(found, bool):
            raise LineError("neither true nor false")
        return found


@dataclass(frozen=True, slots=True)
class Data:
    """``least`` to ``most`` bytes, as base64. More bytes are cut."""

    most: int
    least: int = 0

    def encoded(self, value: object) -> object:
        if not isinstance(value, bytes):
            raise LineError("no bytes")
        return base64.b64encode(value[: self.most]).decode("ascii")

    def decoded(self, found: object) -> object:
        try:
            data = base64.b64decode(found, validate=True) if isinstance(found, str) else None
        except (binascii.Error, ValueError):
            data = None
        if data is None or not self.least <= len(data) <= self.most:
            raise LineError(f"no base64 of {self.least} to {self.most} bytes")
        return data


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple of up to ``most`` values of one ``kind``."""

    most: int
    kind: FieldType

    def encoded(self, value: object) -> object:
        if not isinstance(value, tuple) or len(value) > self.most:
            raise LineError(f"no list of up to {self.most}")
        return [self.kind.encoded(one) for one in value]

    def decoded(self, found: object) -> object:
        if not isinstance(found, list) or len(found) > self.most:
            raise LineError(f"no list of up to {self.most}")
        return tuple(self.kind.decoded(one) for one in found)


_NAME = Text(64)


@dataclass(frozen=True, slots=True)
class Table:
    """Up to ``most`` values of one ``kind``, each with a name of up to 64 characters."""

    most: int
    kind: FieldType

    def encoded(self, value: object) -> object:
        return self._each(value, self.kind.encoded)

    def decoded(self, found: object) -> object:
        return self._each(found, self.kind.decoded)

    def _each(self, table: object, way: Callable[[object], object]) -> dict[object, object]:
        if not isinstance(table, Mapping) or len(table) > self.most:
            raise LineError(f"no table of up to {self.most}")
        return {_NAME.decoded(name): way(one) for name, one in table.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """A frozen dataclass within a word, its fields annotated as a word's are."""

    word: type

    def encoded(self, value: object) -> object:
        if type(value) is not self.word:
            raise LineError(f"no {self.word.__name__}")
        return _said(value)

    def decoded(self, found: object) -> object:
        return self.word(**_heard(self.word, found))


def _whole(text: str) -> bool:
    """Whether UTF-8 can encode it: JSON's escapes can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: FieldType
    optional: bool
    default: object


_FIELDS: dict[type, tuple[_Field, ...]] = {}
"""By word or record, once it was used."""


def _fields(word: type) -> tuple[_Field, ...]:
    if word not in _FIELDS:
        _FIELDS[word] = tuple(_declared(word))
    return _FIELDS[word]


def _declared(word: type) -> Iterator[_Field]:
    hints = get_type_hints(word, include_extras=True)
    for one in dataclasses.fields(word):
        (kind,) = hints[one.name].__metadata__
        default: object = one.default
        if one.default_factory is not dataclasses.MISSING:
            default = one.default_factory()
        yield _Field(one.name, kind, default is not dataclasses.MISSING, default)


def _said(word: object) -> dict[str, object]:
    """The fields of ``word`` for JSON, without those that hold their default."""
    made = {}
    for field in _fields(type(word)):
        value: object = getattr(word, field.name)
        if not (field.optional and value == field.default):
            made[field.name] = _named(field, field.kind.encoded, value)
    return made


def _heard(word: type, found: object, key: str = "") -> dict[str, object]:
    """The fields of a ``word`` from JSON; the field ``key`` is no part of it."""
    if not isinstance(found, dict):
        raise LineError("no table")
    values = {}
    for field in _fields(word):
        if field.name in found:
            values[field.name] = _named(field, field.kind.decoded, found[field.name])
        elif not field.optional:
            raise LineError(f"{field.name} is missing")
    if extra := set(found) - set(values) - {key}:
        raise LineError(f"a field too many: {min(extra)[:40]!r}")
    return values


def _named(field: _Field, way: Callable[[object], object], value: object) -> object:
    try:
        return way(value)
    except LineError as error:
        raise LineError(f"{field.name}: {error}") from None


Word = TypeVar("Word")


class Vocabulary(Generic[Word]):
    """The words that one end may send. ``key`` is the name of the field that has a word's name."""

    def __init__(self, key: str, longest: int, words: Mapping[str, type[Word]]) -> None:
        """``longest``: bytes of a line, with its newline."""
        self.key = key
        self.longest = longest
        self.words = dict(words)
        self._names = {word: name for name, word in words.items()}
        self._make: dict[str, Callable[..., Word]] = dict(words)
        for word in words.values():
            _fields(word)  # now, so that no line waits for it

    def entry(self, word: Word) -> dict[str, object]:
        """The JSON object of ``word``. Raises LineError.

        A field that has a default and holds it is left out.
        """
        name = self._names[type(word)]
        try:
            return {self.key: name, **_said(word)}
        except LineError as error:
            raise LineError(f"{name}: {error}") from None

    def line(self, word: Word) -> bytes:
        """``word`` as a line. Raises LineError if it can't be encoded."""
        line = json.dumps(self.entry(word), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > self.longest:
            raise LineError(f"{self._names[type(word)]}: a line of {len(line)} bytes")
        return line

    def word(self, line: bytes) -> Word:
        """The word in ``line``. Raises LineError."""
        if len(line) > self.longest:
            raise LineError(f"a line of more than {self.longest} bytes")
        try:
            found = json.loads(line, object_pairs_hook=_object, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise LineError(f"no JSON: {error}"[:200]) from None
        return self.made(found)

    def made(self, found: object) -> Word:
        """The word of a JSON object. Raises LineError."""
        name = found.get(self.key) if isinstance(found, dict) else None
        if not isinstance(name, str) or name not in self.words:
            raise LineError(f"no word that is known: {str(name)[:40]!r}")
        try:
            return self._make[name](**_heard(self.words[name], found, self.key))
        except LineError as error:
            raise LineError(f"{name}: {error}") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise LineError("a field twice")
    return found


def _no_number(constant: str) -> NoReturn:
    raise LineError(f"{constant} is no number")
