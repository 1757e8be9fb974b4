"""A job's source, a file or a command line: its values are checked, its errors name the place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NoReturn

from wgcell.cell.environment import VARIABLE
from wgcell.cell.globs import Pattern
from wgcell.cell.inputs import Input
from wgcell.cell.job import HostLimits, JobOptions, Landing
from wgcell.cell.rows import Row, Unfit, Written
from wgcell.cell.settings import HOSTS, INPUTS, NAME, OUTPUTS, SETTINGS, TABLE, VPN
from wgcell.errors import JobError
from wgcell.gateway.model.rules import is_name
from wgcell.net import addresses

__all__ = ["COMMAND_LINE", "MOST_HOSTS", "JobSource"]

MOST_HOSTS = 256
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
COMMAND_LINE = "command line"
_OPTIONS = {row.key: row.flags[-1] for row in TABLE if row.flags}
"""Of a job file's key: the option that says the same."""
_KEYWORDS = {VPN.key: "vpn", "--input": "inputs"}
"""Of a key, or an option: a program's keyword, where it is not called as they are."""


class JobSource:
    """A job's source, and one way to complain about it."""

    def __init__(self, source: str, chosen: JobOptions) -> None:
        self.source = source
        # What may be said more than once is both the file's and the command line's.
        typed = {row.key for row in SETTINGS if chosen.settings.get(row.name) is not None}
        typed |= {NAME.key} if chosen.name is not None else set()
        self._typed = _OPTIONS.keys() if source == COMMAND_LINE else typed
        self._keywords = chosen.keywords

    def fail(self, key: str, found: str, hint: str = "", *, typed: bool | None = None) -> NoReturn:
        """``typed``: whether an option said it; None if there is but one that can have said it."""
        where = f"{self.source}: {key}"
        if key in _OPTIONS and (key in self._typed if typed is None else typed):
            where = f"{COMMAND_LINE}: {_OPTIONS[key]}"
        if self._keywords and where.startswith(COMMAND_LINE):
            where = _KEYWORDS.get(key) or key.lstrip("-").rpartition(".")[2].replace("-", "_")
        # The key may be a stranger's, and "found" quotes one.
        raise JobError(f"{where}: {found}", hint=hint)

    def setting(self, row: Row[object], written: object, host: HostLimits) -> object:
        """A value within its bounds; None if nobody wrote one and there is no default."""
        if written is None:
            return row.default
        try:
            return row.read(written, getattr(host, row.name) if row.of_host else None)
        except Unfit as unfit:
            self.fail(row.key, f"found {unfit}", unfit.hint)

    def name(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            self.fail("name", f"found {text[:60]!r}; allowed: 1-32 of a-z, 0-9 and -, not - first")
        return text

    def command(self, words: tuple[str, ...], *, idle: bool) -> tuple[str, ...]:
        if not idle and not words:
            self.fail(
                "command",
                "is empty",
                'give one: command = ["python3", "train.py"], or after -- on the command line; or '
                "--detach a cell that has none",
            )
        if words and not words[0]:
            self.fail("command", "begins with an empty word")
        if any("\0" in word for word in words):
            self.fail("command", "holds a NUL character")
        return words

    def outputs(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for text in texts:
            try:
                found[str(Pattern.parse(text))] = None
            except ValueError as error:
                self.fail("outputs", f"found {text[:80]!r}: {error}")
        return tuple(found)

    def env(self, pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        for name, value in pairs.items():
            if not VARIABLE.fullmatch(name):
                self.fail("env", f"found the name {name[:60]!r}; allowed: letters, digits and _")
            if "\0" in value:
                self.fail(f"env.{name}", "holds a NUL character")
        return tuple(pairs.items())

    def hosts(
        self, written: Mapping[str, str], typed: Mapping[str, str]
    ) -> tuple[tuple[str, str], ...]:
        found = {**written, **typed}
        if len(found) > MOST_HOSTS:
            self.fail(HOSTS.key, f"{len(found)} of them; allowed: at most {MOST_HOSTS}")
        for name, address in found.items():
            if not is_name(name.lower()):
                words = f"found the name {name[:60]!r}; allowed: letters, digits, - and ."
                self.fail(HOSTS.key, words, typed=name in typed)
            if not addresses.is_address(address):
                words = f"found {address[:60]!r} for {name}; allowed: an IP address"
                self.fail(HOSTS.key, words, typed=name in typed)
        return tuple(found.items())

    def beside(self, key: str, text: str, folder: Path) -> Path:
        """A path of a job file: below the file's folder, whatever links are in it.

        Code that opens the path later must check again: the file's author may change the folder
        meanwhile.
        """
        path = PurePosixPath(text)
        hint = "name a file elsewhere on the command line, with --input or --vpn"
        outside = path.is_absolute() or ".." in path.parts or text.startswith("~")
        if not text or outside or "\0" in text:
            self.fail(
                key, f"found {text[:120]!r}; allowed: a path below the job file's own folder", hint
            )
        found = folder.joinpath(*path.parts)
        # Not Path.resolve, which raises for a circle of links before Python 3.13.
        if not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(folder)):
            self.fail(key, f"found {text[:120]!r}, a link out of the job file's own folder", hint)
        return found

    def inputs(self, file: Written, folder: Path, chosen: JobOptions) -> tuple[Input, ...]:
        anchor = Path.cwd()
        found = []
        for text in file.get(INPUTS) or ():
            self.beside("inputs", text, folder)
            found.append(Input.of(text, folder, folder))
        for given in chosen.inputs:
            if not os.fspath(given):
                self.fail("--input", "is empty; the current folder is .")
            found.append(Input.of(given, anchor))
        if chosen.sync is not None:
            found.append(Input(anchor / chosen.sync, contents=True))
        _one_name_each(self, found)
        return tuple(found)

    def landing(self, file: Written, chosen: JobOptions) -> Landing | None:
        anchor = Path.cwd()
        if chosen.sync is not None:
            if chosen.outputs or chosen.output_dir is not None:
                self.fail(
                    "--sync",
                    "can't be combined with --output or --output-dir",
                    "leave them out: --sync brings back everything that has changed",
                )
            return Landing(anchor / chosen.sync, (".",), synced=True)
        if chosen.output_dir is not None:
            every = self.outputs((*(file.get(OUTPUTS) or ()), *chosen.outputs))
            if not every:
                self.fail("--output-dir", "is given, and no output is named", "add --output NAME")
            return Landing(anchor / chosen.output_dir, every)
        return Landing(anchor, self.outputs(chosen.outputs)) if chosen.outputs else None


def _one_name_each(source: JobSource, inputs: list[Input]) -> None:
    """Refuse two inputs of one name. The contents of a folder are compared later."""
    seen: dict[str, Input] = {}
    for one in inputs:
        name = one.path.name
        if one.contents:
            continue
        if not name:
            source.fail("inputs", f"found {str(one)!r}, which has no name of its own")
        if name in seen:
            source.fail("inputs", f"{one} and {seen[name]} would both be /work/{name}")
        seen[name] = one
