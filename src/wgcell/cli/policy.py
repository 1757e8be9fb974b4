"""``wgcell allow``, ``deny``, ``policy`` and ``port``: a running cell's own gateway."""

from __future__ import annotations

import pwd
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from wgcell.cell.control import words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.folder import Folder
from wgcell.cell.units import parse_duration
from wgcell.cli.cells import IN_WORDS, Name, StateDir, named
from wgcell.cli.terminal import as_json, out, warn
from wgcell.display import one_line
from wgcell.errors import InputError, StateError
from wgcell.gateway.model import remarks
from wgcell.gateway.model.rules import Action, Rule, parse_rule
from wgcell.net.addresses import written

__all__ = ["allow", "deny", "policy", "port"]

PATIENCE = 30.0
"""Seconds that a cell's gateway has to change its rules."""

Rules = Annotated[
    list[str], typer.Argument(metavar="HOST:PORT…", help="As --allow of wgcell run takes it.")
]


def allow(
    name: Name,
    rules: Rules,
    seconds: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long, as 10m. [default: to the end]"),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Let a running cell reach more, by its own gateway; at once.

    wgcell allow agent files.example.com:443 --for 10m

    The rule stands before all others, until its time is over: then open flows that it alone has
    allowed are cut.
    """
    lasts = None if seconds is None else _seconds(seconds)
    cell = named(name, state_dir)
    for text, rule in _parsed(rules, Action.ALLOW):
        for remark in remarks.of_rules((rule,)):
            warn(remark)
        _change(cell, words.Allow(text, True, lasts))


def deny(name: Name, rules: Rules, state_dir: StateDir = None) -> None:
    """Let a running cell reach less; at once. Open flows that are denied are cut.

    The rule stands before all others. wgcell allow of the same takes its place.
    """
    cell = named(name, state_dir)
    for text, _ in _parsed(rules, Action.REFUSE):
        _change(cell, words.Deny(text))


def policy(
    name: Name,
    as_json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    state_dir: StateDir = None,
) -> None:
    """List what a running cell may reach, in the order in which its gateway reads it."""
    cell = named(name, state_dir)
    rules = [rule for rule in _asked(cell, words.Policy()) if isinstance(rule, words.Rule)]
    if as_json_:
        for rule in rules:
            fields = {"origin": rule.origin, "by": rule.by, "until": rule.until}
            out(as_json({"rule": rule.rule, **fields}))
    else:
        _table(rules)


def port(
    name: Name,
    inside: Annotated[
        int | None, typer.Argument(metavar="[PORT]", help="A port of the cell's.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """List a running cell's published ports: the cell's, and where it is on this machine."""
    cell = named(name, state_dir)
    if not cell.alive:
        raise StateError(_unreachable(cell, ""))
    places = list(_published(cell))
    if inside is None:
        for number, place in places:
            out(f"{number} -> {place}")
        return
    found = [place for number, place in places if number == inside]
    if not found:
        raise StateError(f"{cell.id}: port {inside} is not published")
    for place in found:
        out(place)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InputError(f"command line: --for: found {error}") from None


def _parsed(texts: Sequence[str], action: Action) -> Iterator[tuple[str, Rule]]:
    """Each rule as it was typed, and what it means. Raises PolicyError before the first change."""
    yield from [(text.strip(), parse_rule(text, action)) for text in texts]


def _change(cell: Folder, question: words.Allow | words.Deny) -> None:
    for word in _asked(cell, question):
        if isinstance(word, words.PolicyChanged):
            until = "" if word.until is None else f" until {_clock(word.until)}"
            cut = f"; {word.cut} open flows cut" if word.cut else ""
            out(one_line(f"{cell.id}: {word.rule}{until}{cut}", 1500))


def _asked(cell: Folder, question: words.Question) -> Iterator[words.Answer]:
    try:
        yield from ask(cell, question, patience=PATIENCE)
    except Unreachable as error:
        raise StateError(_unreachable(cell, str(error))) from None


def _unreachable(cell: Folder, why: str) -> str:
    if cell.alive:
        return f"{cell.id}: it can't be reached: {why}"
    status = cell.status()
    return f"{cell.id} is not running: {IN_WORDS.get(status, status)}"


def _published(cell: Folder) -> Iterator[tuple[int, str]]:
    """The cell's ports, and where they are published. The record may be somebody else's."""
    for entry in cell.recorded("published"):
        inside, number, address = (entry.get(key) for key in ("inside", "port", "address"))
        if isinstance(inside, int) and isinstance(number, int) and isinstance(address, str):
            yield inside, written(one_line(address, 60), number)


_ORIGINS = {"order": "order", "start": "start", "service": "service", "published": "publish"}


def _table(rules: Sequence[words.Rule]) -> None:
    heads = ("RULE", "FROM", "BY", "UNTIL")
    lines = [
        (
            one_line(rule.rule, 200),
            _ORIGINS[rule.origin],
            "" if rule.by is None else _user(rule.by),
            "" if rule.until is None else _clock(rule.until),
        )
        for rule in rules
    ]
    wide = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, *lines):
        cells = (text.ljust(width) for text, width in zip(line, wide, strict=True))
        out("  ".join(cells).rstrip())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _clock(seconds: float) -> str:
    """A time of day; with the date if it is not today's."""
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", then)
