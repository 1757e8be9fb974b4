"""How the values of settings are written and read: sizes, durations, choices, lists.

A `Kind` knows a value in three forms: written (in a file, or typed), meant (a field of `Job`), and
recorded (in ``job.json``). `wgcell.cell.settings` says which setting is of which kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from wgcell.cell.units import (
    duration_text,
    parse_duration,
    parse_rate,
    parse_size,
    rate_text,
    size_text,
)
from wgcell.display import one_line

__all__ = [
    "COUNT",
    "DURATION",
    "DURATION_OR_ZERO",
    "PAIRS",
    "PATH",
    "RATE",
    "SIZE",
    "TEXT",
    "TEXTS",
    "Kind",
    "choice",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How the values of some settings are written and read."""

    written: object
    """The type of a value in a file, as `wgcell.cell.schema` takes it."""
    typed: object
    """The type of an option's word, as typer takes it."""
    read: Callable[[object], T]
    """The value that a text means. Raises ValueError with the text and the allowed values."""
    text: Callable[[T], str]
    """A value as a job file has it."""
    record: Callable[[T], object]
    """A value as ``job.json`` has it."""
    unit: str = ""
    """Of a value that was read; empty: it has none."""
    supply: Callable[[T], str] | None = None
    """In words, how much a machine has of it. None: the message says the whole range, as 1-4."""


def _refuse(value: object, allowed: str) -> NoReturn:
    raise ValueError(f"{one_line(repr(value), 60)}; allowed: {allowed}")


def _string(value: object) -> str:
    return value if isinstance(value, str) else _refuse(value, "a string")


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        _refuse(value, "a list of strings")
    return tuple(map(_string, value))


def _pairs(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        _refuse(value, "a table")
    return {_string(name): _string(one) for name, one in value.items()}


def _path(value: object) -> str:
    return os.fspath(value) if isinstance(value, Path) else _string(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(value, "a whole number")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _refuse(value, "seconds, or a duration such as 90s")
    return parse_duration(value)


def _seconds_or_zero(value: object) -> float:
    return 0.0 if value in (0, "0", "0s") else _seconds(value)


def _itself(value: T) -> object:
    return value


TEXT = Kind(str, str, _string, str, _itself)
TEXTS = Kind(list[str], list[str], _strings, ", ".join, list)
PAIRS = Kind(dict[str, str], list[str], _pairs, str, dict)
"""Typed, ``NAME=VALUE``; the code that takes the option splits it."""
PATH = Kind(str, Path, _path, str, _itself)
COUNT = Kind(int, int, _whole, str, _itself)
SIZE = Kind(
    *(str, str, lambda value: parse_size(_string(value)), size_text, _itself),
    *("bytes", lambda size: f"{size // 2**20}MiB"),
)
RATE = Kind(
    *(str, str, lambda value: parse_rate(_string(value)), rate_text, _itself, "bytes a second")
)
DURATION = Kind(str | int | float, str, _seconds, duration_text, _itself, "seconds")
DURATION_OR_ZERO = Kind(str | int | float, str, _seconds_or_zero, duration_text, _itself, "seconds")


def choice(words: Mapping[str, T], record: Callable[[T], object] | None = None) -> Kind[T]:
    """One of ``words``, each with its meaning."""

    def read(value: object) -> T:
        word = _string(value)
        if word not in words:
            raise ValueError(f"{word[:60]!r}; allowed: {', '.join(words)}")
        return words[word]

    def text(value: T) -> str:
        return next((word for word, meant in words.items() if meant == value), str(value))

    return Kind(str, str, read, text, record or text)
