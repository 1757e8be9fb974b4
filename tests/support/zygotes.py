"""Command lines run by `zygote.py`, each held to what holds for all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import GENEROUS

ZYGOTE = str(Path(__file__).parents[1] / "support/zygote.py")


class Zygote:
    """Runs command lines, and holds each to what holds for all."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._process = subprocess.Popen(
            [sys.executable, "-P", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

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

    def _ask(self, asked: object) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _answer(self, asked: object) -> int:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the zygote died of {asked}"
        return int(line)

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

    def close(self) -> None:
        self._process.communicate(timeout=GENEROUS)
