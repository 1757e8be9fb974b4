"""A row of the table of settings; the table itself is `wgcell.cell.settings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_origin, overload

from wgcell.cell.kinds import Kind
from wgcell.display import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "By",
    "Column",
    "Option",
    "Row",
    "Unfit",
    "Written",
    "column",
    "less",
    "rows_of",
    "setting",
    "with_values",
]

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")


class By(Enum):
    """The bound on a key of a job file."""

    CEILING = "ceiling"
    """The key of the provider's ``[ceilings]`` that ``why`` names."""
    PERMISSION = "permission"
    """The key of the provider's configuration that ``why`` names."""
    HARMLESS = "harmless"
    """``why`` says it in a sentence."""


class Unfit(ValueError):
    """A value that a setting can't have, with the allowed values and the remedy."""

    def __init__(self, words: str, hint: str = "") -> None:
        super().__init__(words)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Option:
    """A setting's option on the command line."""

    help: str
    names: tuple[str, ...] = ()
    """As ``-e`` and ``--env``; none: one is made of the key's last part."""
    metavar: str | None = None
    without: str = ""
    """The help's words for a default that is None."""


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """One key of a job file. ``default``, ``low`` and ``high`` are values that were read."""

    key: str
    """With its table's name: ``resources.memory``."""
    kind: Kind[T]
    by: By
    why: str
    option: Option | None = None
    default: T | None = None
    low: T | None = None
    high: T | None = None
    of_host: bool = False
    """There can't be more than this machine has: the field of that name of `HostLimits`."""
    own: bool = False
    """None stands for a value of wgcell's own, which no ceiling replaces."""
    required: bool = False
    """Its table is nothing without it."""

    @property
    def table(self) -> str:
        """The job file's table that the key stands in; empty: none."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The key within its table. Of a setting, also the field of `Settings`."""
        return self.key.rpartition(".")[2]

    @property
    def flags(self) -> tuple[str, ...]:
        """The option, as typed; empty where there is none."""
        if self.option is None:
            return ()
        return self.option.names or (f"--{self.name.replace('_', '-')}",)

    @property
    def help(self) -> str:
        """The option's help, with the default."""
        if self.option is None:
            return ""
        default = self.option.without if self.default is None else self.kind.text(self.default)
        return f"{self.option.help} [default: {default}]" if default else self.option.help

    def read(self, written: object, host: T | None = None) -> T:
        """The value of ``written``, within the bounds; ``host`` is this machine's supply of it.

        Raises `Unfit`, whose words begin with the value.
        """
        try:
            value = self.kind.read(written)
        except ValueError as error:
            raise Unfit(str(error)) from None
        allowed, hint = self._bound(value, host)
        if allowed:
            raise Unfit(f"{one_line(repr(written), 60)}; {allowed}", hint)
        return value

    def _bound(self, value: T, host: T | None) -> tuple[str, str]:
        """The bound that ``value`` is beyond, in words, with the remedy; empty if none."""
        low, high, text, supply = self.low, self.high, self.kind.text, self.kind.supply
        too_few = low is not None and less(value, low)
        too_many = host is not None and less(host, value)
        if low is not None and host is not None and supply is None and (too_few or too_many):
            return f"allowed: {text(low)}-{text(host)}, this machine's", ""
        if low is not None and too_few:
            return f"allowed: at least {text(low)}", ""
        if high is not None and less(high, value):
            return f"allowed: at most {text(high)}", ""
        if host is not None and supply is not None and too_many:
            return f"this machine has {supply(host)}", "ask for less"
        return "", ""


def less(one: object, other: object) -> bool:
    """Whether ``one`` is below ``other``; only numbers have bounds."""
    return isinstance(one, int | float) and isinstance(other, int | float) and one < other


@dataclass(frozen=True, slots=True)
class Written:
    """Values as they were written, by key: a job file's, or a command line's."""

    values: Mapping[str, object] = field(default_factory=dict)

    def get(self, row: Row[T]) -> T | None:
        """The value of a row, read by its kind. Raises ValueError."""
        value = self.values.get(row.key)
        return None if value is None else row.kind.read(value)

    def words(self, row: Row[T]) -> tuple[str, ...]:
        """The words of an option that may be repeated."""
        value = self.values.get(row.key)
        return tuple(map(str, value)) if isinstance(value, list) else ()

    def has(self, table: str) -> bool:
        """Whether the file has that table, be it empty."""
        return table in self.values


Column = tuple[str, object, object]
"""As `dataclasses.make_dataclass` takes a field: its name, type and default."""


def column(row: Row[object]) -> Column:
    """The field that a row is in the dataclass of a file, as it is written there."""
    written = cast(type, row.kind.written)
    if row.required:
        return row.name, written, field()
    if (made := get_origin(written)) in (list, dict):
        return row.name, written, field(default_factory=made)
    return row.name, written | None, None


@overload
def setting(
    key: str,
    kind: Kind[T],
    *,
    default: T,
    by: By,
    why: str = "",
    option: Option | None = None,
    low: T | None = None,
    high: T | None = None,
    of_host: bool = False,
) -> T: ...
@overload
def setting(
    key: str,
    kind: Kind[T],
    *,
    default: None,
    by: By,
    why: str = "",
    option: Option | None = None,
    low: T | None = None,
    high: T | None = None,
    own: bool = False,
) -> T | None: ...
def setting(
    key: str,
    kind: Kind[T],
    *,
    default: T | None,
    by: By,
    why: str = "",
    option: Option | None = None,
    low: T | None = None,
    high: T | None = None,
    of_host: bool = False,
    own: bool = False,
) -> T | None:
    """A row that is a field of `Shape` or `Settings`. A ceiling is called as the field."""
    row = Row(
        *(key, kind, by, why or key.rpartition(".")[2]),
        option=option,
        default=default,
        low=low,
        high=high,
        of_host=of_host,
        own=own,
    )
    return field(default=default, metadata={"row": row})


def rows_of(table: type) -> tuple[Row[object], ...]:
    return tuple(column.metadata["row"] for column in fields(table))


def with_values(holder: D, values: Mapping[Row[object], object]) -> D:
    """A copy of a dataclass that has the rows as fields, with other values of them."""
    # Each value was read by its row's kind, whose type is the field's.
    named: dict[str, Any] = {row.name: value for row, value in values.items()}
    return replace(holder, **named)
