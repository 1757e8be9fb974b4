"""The five scenarios, each in a real VM, each with its verdict. Run by ``make demo``.

Exits 0 only if every verdict is the expected one.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE / "rogue.pcapng"
"""The last demo's rogue frame, which outlives its cell's folder."""
WGCELL = Path(sys.executable).with_name("wgcell")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """The scenarios have lines of their own."""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    folder: Path
    result: dict[str, Any]
    stdout: str
    events: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    name: str
    job: str
    checks: tuple[tuple[str, Callable[[Ran], bool]], ...]
    typed: tuple[str, ...] = ()
    """What no job file may say by itself."""


def refused(ran: Ran) -> list[str]:
    flows = [event for event in ran.events if event["event"] == "flow"]
    return [str(f.get("name") or f["address"]) for f in flows if f["verdict"] == "refuse"]


def nothing_rogue(ran: Ran) -> bool:
    return not ran.result["relay"].get("refused")


SERVICE = ("--service", "10.99.0.5:80=127.0.0.1:PORT")

SCENARIOS = (
    Scenario(
        "1. The workload fetches data through the tunnel; its result comes home",
        "fetch",
        """
command = ["python3", "fetch.py"]
inputs = ["fetch.py"]
outputs = ["results/"]
""",
        (
            ("outcome completed, exit code 0", lambda ran: ran.code == 0),
            (
                "outputs/results/total.txt is home and right",
                lambda ran: (ran.folder / "outputs/results/total.txt").read_text() == "60\n",
            ),
            ("the relay refused no frame", nothing_rogue),
        ),
        SERVICE,
    ),
    Scenario(
        "2. The workload tries places that the gateway does not allow",
        "stray",
        """
command = ["python3", "stray.py"]
inputs = ["stray.py"]
""",
        (
            ("the cell went on to its end, exit code 0", lambda ran: ran.code == 0),
            ("attacker.example was refused and logged", lambda r: "attacker.example" in refused(r)),
            ("203.0.113.7 was refused and logged", lambda ran: "203.0.113.7" in refused(ran)),
        ),
        SERVICE,
    ),
    Scenario(
        "3. The workload is root and hostile; the guest is whole",
        "hostile",
        """
command = ["python3", "hostile.py"]
inputs = ["hostile.py"]
""",
        (
            ("every try failed inside, exit code 0", lambda ran: ran.code == 0),
            ("the relay refused no frame: none came", nothing_rogue),
        ),
    ),
    Scenario(
        "4. The guest itself is compromised: all its walls off, every capability",
        "compromised",
        """
command = ["python3", "compromised.py"]
inputs = ["compromised.py"]
""",
        (
            ("outcome rogue, exit code 120", lambda ran: ran.code == 120),
            ("the VM is dead: it never spoke again", lambda ran: "STILL ALIVE" not in ran.stdout),
            (
                "rogue.pcapng holds the frame",
                lambda r: b"\xc0\xa8\x01\x01" in (r.folder / "rogue.pcapng").read_bytes(),
            ),
        ),
        ("--guest-walls", "off"),
    ),
)


def play(scenario: Scenario, port: int, state: Path) -> Ran:
    job = HERE / f".{scenario.name}.toml"
    job.write_text(f'name = "{scenario.name}"\n{scenario.job}')
    typed = [word.replace("PORT", str(port)) for word in scenario.typed]
    try:
        done = subprocess.run(
            [WGCELL, "run", "--state-dir", state, *typed, job],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        job.unlink()
    sys.stdout.write("".join(f"    | {line}\n" for line in done.stdout.splitlines()))
    folder = max(state.glob(f"{scenario.name}-*"), key=lambda path: path.stat().st_mtime)
    lines = (folder / "events.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    return Ran(done.returncode, folder, result, done.stdout, [json.loads(x) for x in lines])


def use_from_a_program(port: int, state: Path) -> int:
    """The fifth scenario; how many of its verdicts are wrong."""
    print(
        "\n5. A program starts a cell, writes a file, runs it, and has a place allowed for a while"
    )
    done = subprocess.run(
        [sys.executable, HERE / "program.py", str(port)],
        env={**os.environ, "WGCELL_STATE_DIR": str(state)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    sys.stdout.write("".join(f"    | {line}\n" for line in done.stdout.splitlines()))
    good = done.returncode == 0
    print(f"    {'ok  ' if good else 'FAIL'} refused, allowed, and refused again", flush=True)
    return 0 if good else 1


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory(prefix="wgcell-demo-") as temporary:
        data = Path(temporary) / "data"
        data.mkdir()
        (data / "data.csv").write_text("name,value\na,10\nb,20\nc,30\n")
        serve = functools.partial(Quiet, directory=str(data))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for scenario in SCENARIOS:
            print(f"\n{scenario.title}", flush=True)
            ran = play(scenario, server.server_port, Path(temporary) / "cells")
            for claim, holds in scenario.checks:
                good = holds(ran)
                failed += not good
                print(f"    {'ok  ' if good else 'FAIL'} {claim}", flush=True)
            if (ran.folder / "rogue.pcapng").exists():
                shutil.copy(ran.folder / "rogue.pcapng", KEPT)
                print(f"    the frame is kept: wireshark {KEPT}", flush=True)
        failed += use_from_a_program(server.server_port, Path(temporary) / "cells")
        server.shutdown()
    print(f"\n{'every verdict as expected' if not failed else f'{failed} verdicts are wrong'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
