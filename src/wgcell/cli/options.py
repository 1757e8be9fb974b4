"""Options made of the table of settings, so that a new setting has its option by itself.

A command's function has parameters of its own, and one called ``typed``, which takes the words of
all the table's options at once. `with_settings` makes of it a function with one parameter for each
option: typer reads a command's options off a signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, cast

import typer

from wgcell.cell.rows import Row, Written
from wgcell.cell.settings import TABLE
from wgcell.cli import completion

__all__ = ["After", "with_settings"]

_COMPLETED: Mapping[str, Callable[[str], list[str]]] = MappingProxyType(
    {"image": completion.images}
)
"""By a setting's key, what a shell offers as its value."""


@dataclass(frozen=True, slots=True)
class After:
    """Beside a parameter's type: the help has its option behind that setting's.

    The options of parameters without one come last.
    """

    key: str


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with an option for each row of the table that has one, and without ``typed``."""
    rows = {row.key.replace(".", "_"): row for row in TABLE if row.option is not None}

    def run(**words: object) -> None:
        typed = Written({row.key: words.pop(name) for name, row in rows.items()})
        command(**words, typed=typed)

    parameters = _in_order(rows, inspect.signature(command, eval_str=True).parameters)
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    return run


def _in_order(
    rows: Mapping[str, Row[object]], own: Mapping[str, inspect.Parameter]
) -> list[inspect.Parameter]:
    """A command's own parameters with those of the rows among them, as the help shows them."""
    names = [name for name in own if name != "typed"]
    before = list(own)[: list(own).index("typed")]
    behind: dict[str, list[str]] = {}
    for name in names:
        behind.setdefault(_behind(own[name]), []).append(name)
    found = [own[name] for name in before]
    for name, row in rows.items():
        found.append(_parameter(name, row))
        found += [own[name] for name in behind.get(row.key, ())]
    found += [own[name] for name in behind.get("", ()) if name not in before]
    return [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in found]


def _behind(parameter: inspect.Parameter) -> str:
    """The key of the setting that a command's own option stands behind; empty: of none."""
    notes = getattr(parameter.annotation, "__metadata__", ())
    return next((note.key for note in notes if isinstance(note, After)), "")


def _parameter(name: str, row: Row[object]) -> inspect.Parameter:
    """The option of a row."""
    option = typer.Option(
        *row.flags,
        help=row.help,
        metavar=row.option.metavar if row.option else None,
        autocompletion=_COMPLETED.get(row.key),
    )
    written = cast(type, row.kind.typed) | None
    return inspect.Parameter(
        *(name, inspect.Parameter.KEYWORD_ONLY),
        default=None,
        annotation=Annotated[written, option],
    )
