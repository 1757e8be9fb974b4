"""Cells of real virtual machines, through the command line, as a user starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WGCELL = str(Path(sys.executable).with_name("wgcell"))


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def flows(self, verdict: str) -> list[str]:
        flows = [e for e in self.events if e["event"] == "flow" and e["verdict"] == verdict]
        return [f"{flow.get('name') or flow['address']}:{flow['port']}" for flow in flows]


Cell = Callable[..., Ended]


def started(state: Path, *options: str, command: list[str]) -> subprocess.Popen[str]:
    argv = [sys.executable, "-P", "-m", "wgcell", "run", "--name", "t", "--state-dir", str(state)]
    process = subprocess.Popen(
        [*argv, *options, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n", process.communicate()[1]
    return process
