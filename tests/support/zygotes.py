"""Command lines run by `zygote.py`: a start costs 20 ms of processor time, not 250."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import GENEROUS

ZYGOTE = str(Path(__file__).with_name("zygote.py"))


class Forks:
    """The process that forks, and one question of it after the other."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", ZYGOTE, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, asked: object) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _answer(self, asked: object) -> int:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the zygote died of {asked}"
        return int(line)

    def close(self) -> None:
        self._process.communicate(timeout=GENEROUS)


@dataclass(frozen=True)
class Typed:
    """What a command line has left: named as subprocess names it."""

    returncode: int
    stdout: str
    stderr: str


class Typist(Forks):
    """`wgcell` as a user types it, with the programs that this machine has."""

    def __init__(self, place: Path) -> None:
        super().__init__("--installed")
        self._place = place

    def __call__(self, folder: Path, *words: str, **environment: str) -> Typed:
        """``wgcell WORDS`` in ``folder``, with ``environment`` besides this process's."""
        streams = {name: self._place / name for name in ("stdout", "stderr")}
        for stream in streams.values():
            stream.write_bytes(b"")
        asked = {"argv": words, "cwd": str(folder), "env": {**os.environ, **environment}}
        self._ask({**asked, **{name: str(stream) for name, stream in streams.items()}})
        code = self._answer(words)
        return Typed(code, *(stream.read_text() for stream in streams.values()))


class Zygote(Forks):
    """Runs command lines, and holds each to what holds for all."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def run(self, argv: tuple[str, ...], condition: Mapping[str, Any] | None = None) -> int:
        """The exit code. Each call has fresh files; `said` and `printed` are what it left."""
        asked = dict(condition or {})
        environment = {
            "PATH": "/nonexistent",  # nothing is started
            "HOME": str(self.place),
            "WGCELL_STATE_DIR": str(self.place / "cells"),
            "WGCELL_CACHE_DIR": str(self.place / "cache"),
            **{k: v.format(place=self.place) for k, v in asked.get("env", {}).items()},
        }
        if asked.get("homeless"):
            del environment["HOME"]
        for name in asked.get("without", ()):
            del environment[name]
        asked |= {"argv": argv, "cwd": str(self.place), "env": environment}
        for stream in ("stdout", "stderr"):
            asked[stream] = str(self.place / stream)
            Path(asked[stream]).unlink(missing_ok=True)
        self._ask(asked)
        code = self._answer(argv)
        assert code in (0, 1, 125, 130), (argv, code, self.said)
        assert "Traceback" not in self.said, (argv, self.said)
        assert "fault of wgcell's own" not in self.said, (argv, self.said)
        for line in self.said.splitlines():
            assert line.isprintable(), (argv, line)
            assert not line.startswith("wgcell: all is well"), (argv, line)
        return code

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One process for all command lines within: 2 ms each, not 20."""
        assert self._process.stdout
        self._ask("batch")
        assert self._process.stdout.readline() == "begun\n"
        try:
            yield
        finally:
            self._ask("end")
            assert self._answer("the batch's end") == 0

    @property
    def said(self) -> str:
        file = self.place / "stderr"
        return file.read_text() if file.exists() else ""
