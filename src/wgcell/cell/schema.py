"""A TOML table held to a frozen dataclass: no unknown key, no value of another type.

pydantic does it, and is loaded only when there is a file to read: a cell that is started by its
command line alone starts a fifteenth of a second sooner. What it says of an error is never shown:
`EXPECTED` says in wgcell's words what each kind of error asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from wgcell.toml import CALLED, unknown_key

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

__all__ = ["EXPECTED", "Invalid", "keys", "validated"]

_T = TypeVar("_T")

EXPECTED: Mapping[str, str] = MappingProxyType(
    {
        "string_type": CALLED[str],
        "string_unicode": CALLED[str],
        "int_type": CALLED[int],
        "float_type": CALLED[float],
        "bool_type": CALLED[bool],
        "list_type": CALLED[list],
        "dict_type": CALLED[dict],
        "model_type": CALLED[dict],
    }
)
"""Of each type of pydantic's errors about a value: what would be right in its place."""
_MISSING, _UNKNOWN = "missing", "extra_forbidden"
MOST_SAID = 20
"""Sentences about one table."""
_SHOWN = 80
"""Characters of a stranger's key or value in a message."""


class Invalid(ValueError):
    """A table that is not as it must be: a sentence for each thing that is wrong with it.

    After `MOST_SAID` of them, one says how many more there are.
    """

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def validated(kind: type[_T], raw: Mapping[str, object]) -> _T:
    """``raw`` with the fields of ``kind``, as an object that has them. Raises `Invalid`."""
    from pydantic import ValidationError

    try:
        return cast(_T, model(cast(type, kind)).model_validate(dict(raw)))
    except ValidationError as error:
        raise Invalid(_sentences(kind, error.errors(include_url=False))) from None


def keys(kind: type) -> tuple[str, ...]:
    """Every key that a table of ``kind`` may have, with its own table's name before it."""
    hints = get_type_hints(kind)
    found: list[str] = []
    for column in fields(kind):
        table = next(
            (cast(type, one) for one in _kinds(hints[column.name]) if is_dataclass(one)), None
        )
        found += [f"{column.name}.{key}" for key in keys(table)] if table else [column.name]
    return tuple(found)


def _sentences(kind: type, errors: list[ErrorDetails]) -> tuple[str, ...]:
    """One a key: of a value that may be of several types, pydantic names each one that it tried.

    A stranger's file can hold tens of thousands of errors, and a sentence takes milliseconds.
    """
    allowed: dict[str, dict[str, None]] = {}
    said: dict[str, str] = {}
    for number, error in enumerate(errors):
        if len(said) == MOST_SAID:
            said[""] = f"and {len(errors) - number} more like these"
            break
        place, table = _place(kind, error["loc"])
        key = ".".join(place)
        if error["type"] == _UNKNOWN:
            said[key] = unknown_key(key, (column.name for column in fields(table)), keys(kind))
        elif error["type"] == _MISSING:
            said[key] = f"{key[:_SHOWN]}: is missing; allowed: {_called(table, place[-1])}"
        else:
            allowed.setdefault(key, {})[EXPECTED[error["type"]]] = None
            found = repr(error["input"])[:_SHOWN]
            said[key] = f"{key[:_SHOWN]}: found {found}; allowed: {_either(allowed[key])}"
    return tuple(said.values())


def _either(kinds: Iterable[str]) -> str:
    every = list(kinds)
    # Each whole number is a number.
    return " or ".join(k for k in every if k != CALLED[int] or CALLED[float] not in every)


def _place(kind: type, location: tuple[int | str, ...]) -> tuple[list[str], type]:
    """The keys that lead to an error, and the innermost table's dataclass.

    A last part that no value has is the branch of a union that pydantic tried: left out.
    """
    place: list[str] = []
    table: type = kind
    hint: object = kind
    for part in location:
        kinds = _kinds(hint)
        inner = next((cast(type, one) for one in kinds if is_dataclass(one)), None)
        if inner is not None:
            table, hint = inner, get_type_hints(inner).get(str(part))
        elif (whole := next((one for one in kinds if get_origin(one)), None)) is not None:
            hint = get_args(whole)[-1]  # a list's, or a table's values
        else:
            break
        place.append(str(part))
    return place, table


def _kinds(hint: object) -> tuple[object, ...]:
    """The types that a value may have: those of a union, or the one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _called(table: type, name: str) -> str:
    """The words for a value of that field."""
    plain = (get_origin(one) or one for one in _kinds(get_type_hints(table)[name]))
    return _either(CALLED[one] for one in plain if isinstance(one, type) and one in CALLED)


@cache  # 10 ms to build
def model(kind: type) -> type[BaseModel]:
    """pydantic's model of a dataclass."""
    from pydantic import ConfigDict, Field, create_model

    hints = get_type_hints(kind)
    columns: dict[str, Any] = {}
    for column in fields(kind):
        if column.default_factory is not MISSING:
            default = Field(default_factory=column.default_factory)
        else:
            default = Field() if column.default is MISSING else Field(default=column.default)
        columns[column.name] = (_type(hints[column.name]), default)
    strict = ConfigDict(extra="forbid", strict=True, frozen=True)
    made: type[BaseModel] = create_model(kind.__name__, __config__=strict, **columns)
    return made


def _type(hint: object) -> object:
    """``hint`` with each dataclass in it as the model of it."""
    if is_dataclass(hint):
        return model(cast(type, hint))
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_type, get_args(hint)))]  # noqa: UP007  # of a computed tuple
    return hint
