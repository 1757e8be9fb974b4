"""A TOML table held to a frozen dataclass: no unknown key, no value of another type.

pydantic does it, and is loaded only when there is a file to read: a cell that is started by its
command line alone starts a fifteenth of a second sooner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["Fault", "Invalid", "validated"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one value. ``place`` is its keys, from the outermost."""

    place: tuple[object, ...]
    found: str
    reason: str
    unknown: bool
    """The key itself is not known."""


class Invalid(ValueError):
    """A table that is not as it must be, with everything that is wrong with it."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(f"{fault.place}: {fault.reason}" for fault in faults))
        self.faults = faults


def validated(kind: type[_T], raw: Mapping[str, Any]) -> _T:
    """``raw`` with the fields of ``kind``, as an object that has them. Raises `Invalid`."""
    from pydantic import ValidationError

    try:
        return cast(_T, _model(cast(type, kind)).model_validate(dict(raw)))
    except ValidationError as error:
        raise Invalid(tuple(map(_fault, error.errors(include_url=False)))) from None


def _fault(item: Mapping[str, Any]) -> Fault:
    return Fault(
        # Of a union, pydantic names each branch that it tried.
        tuple(part for part in item["loc"] if part not in ("str", "int", "float")),
        repr(item.get("input")),
        str(item["msg"]).lower(),
        item["type"] == "extra_forbidden",
    )


@cache  # 10 ms to build
def _model(kind: type) -> Any:
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
    return create_model(kind.__name__, __config__=strict, **columns)


def _type(hint: Any) -> Any:
    """``hint`` with each dataclass in it as the model of it."""
    if is_dataclass(hint):
        return _model(cast(type, hint))
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_type, get_args(hint)))]  # noqa: UP007  # of a computed tuple
    return hint
