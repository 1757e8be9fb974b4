"""The tables of a gateway's configuration: values by type, and errors that name the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

from wgcell import toml
from wgcell.errors import PolicyError

__all__ = ["Source", "Table", "short"]

_Default = TypeVar("_Default")
_Value = TypeVar("_Value")


def short(value: object) -> str:
    """``value`` as an error quotes it."""
    return repr(value)[:80]


class Source:
    """Raises every error about one configuration in one form. ``text`` is its file's."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._lines = text.splitlines()

    def fail(self, key: str, found: str, *, at: object = None, hint: str = "") -> NoReturn:
        """Raises `PolicyError` about ``key``; ``at`` is a value that its line holds."""
        raise PolicyError(f"{self._name}:{self._line(key, at)} {key}: {found}", hint=hint)

    def unknown(self, key: str, known: Iterable[str]) -> NoReturn:
        """Raises `PolicyError`: ``key`` is none of those that are ``known`` in its table."""
        sentence = toml.unknown_key(key, known)
        raise PolicyError(f"{self._name}:{self._line(key, None)} {sentence}")

    def _line(self, key: str, at: object) -> str:
        """The number, and a colon, of the line that holds ``at`` or else ``key``; best effort.

        tomllib keeps no positions. The search begins at the peer's own table, if it is about one.
        """
        begin = 0
        parts = key.split(".")
        if parts[0] == "peers" and len(parts) > 1:
            heads = [
                n for n, s in enumerate(self._lines) if s.strip().startswith(f"[peers.{parts[1]}")
            ]
            begin = heads[0] if heads else 0
        last = re.sub(r"\[.*", "", parts[-1])
        for wanted in ([f'"{at}"', f"'{at}'"] if isinstance(at, str) else []) + [last]:
            for number, line in enumerate(self._lines[begin:], start=begin + 1):
                if wanted in line.split(" #")[0]:
                    return f"{number}:"
        return ""


class Table:
    """One table of a source, whose keys are among ``known``. Its values are read by their type.

    Every method raises `PolicyError` for a value of another type.
    """

    def __init__(self, source: Source, key: str, raw: object, known: Iterable[str]) -> None:
        if not isinstance(raw, dict):
            source.fail(key or "gateway", f"found {short(raw)}; allowed: {toml.CALLED[dict]}")
        self._source = source
        self._key = key
        self._raw: dict[str, object] = raw
        names = tuple(known)
        for name in self._raw:
            if name not in names:
                source.unknown(self._whole(str(name)), names)

    def _whole(self, name: str) -> str:
        return f"{self._key}.{name}" if self._key else name

    def _value(self, name: str, kind: type[_Value], default: _Default) -> _Value | _Default:
        if name not in self._raw:
            return default
        value = self._raw[name]
        # bool is an int to Python, not to who writes a policy.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._source.fail(
                self._whole(name), f"found {short(value)}; allowed: {toml.CALLED[kind]}"
            )
        return value

    def required(self, name: str, why: str = "", hint: str = "") -> str:
        """A text that must be there; ``why`` says what it is."""
        if name not in self._raw:
            found = f"{name} is missing{why and f'; {why}'}"
            self._source.fail(self._key or name, found, hint=hint)
        return self._value(name, str, "")

    def text(self, name: str, default: _Default) -> str | _Default:
        """A text."""
        return self._value(name, str, default)

    def number(self, name: str) -> int | None:
        """A whole number."""
        return self._value(name, int, None)

    def flag(self, name: str) -> bool:
        """Whether it is there and true."""
        return self._value(name, bool, False)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        whole, found = self._whole(name), []
        listed: list[object] = self._value(name, list, [])
        for number, item in enumerate(listed):
            if not isinstance(item, str):
                where = f"{whole}[{number}]"
                self._source.fail(where, f"found {short(item)}; allowed: a string", at=item)
            found.append(item)
        return tuple(found)

    def items(self, name: str) -> Iterator[tuple[str, object]]:
        """The keys of a table within, and its values as they are."""
        within: dict[str, object] = self._value(name, dict, {})
        yield from within.items()

    def table(self, name: str, known: Iterable[str]) -> Table:
        """A table within; an empty one if there is none."""
        return Table(self._source, self._whole(name), self._raw.get(name, {}), known)
