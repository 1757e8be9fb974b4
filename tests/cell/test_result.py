"""How a cell ended, byte for byte as ``result.json`` has it, and the exit code that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgcell.cell.folder import create
from wgcell.cell.result import FILE, CellResult, HostWalls, exit_code
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.guest.walls import Wall
from wgcell.relay.control import Stats
from wgcell.vm.spec import Accelerator

RESULT = CellResult(
    cell="cell-123456",
    outcome=Outcome.ROGUE,
    reason="mac1: a frame",
    failures=("the logs: full",),
    workload_exit_code=0,
    accelerator=Accelerator.TCG,
    phases={"preparing": 0.002, "running": 3.058},
    relay=Stats(3, 2, 308, 220, 1, {"mac1": 1}, {}, 0, 0),
    killed_after=0.25,
    guest_drops=4,
    flows={"allow": 1, "refuse": 0},
    image="debian",
    limits="resource limits",
    host_walls=HostWalls(True, False, {"jail": "no bubblewrap"}),
    guest_walls=frozenset({Wall.FIREWALL}),
    gateway=True,
)
WRITTEN = b"""{
  "cell": "cell-123456",
  "outcome": "rogue",
  "exit_code": 120,
  "reason": "mac1: a frame",
  "failures": [
    "the logs: full"
  ],
  "workload_exit_code": 0,
  "accelerator": "tcg",
  "assurance": "emulated",
  "phases": {
    "preparing": 0.002,
    "running": 3.058
  },
  "relay": {
    "messages_out": 3,
    "messages_in": 2,
    "bytes_out": 308,
    "bytes_in": 220,
    "handshakes": 1,
    "refused": {
      "mac1": 1
    },
    "dropped_in": {},
    "lost": 0,
    "unanswered": 0
  },
  "killed_after": 0.25,
  "guest_drops": 4,
  "flows": {
    "allow": 1,
    "refuse": 0
  },
  "image": "debian",
  "limits": "resource limits",
  "walls": {
    "relay": true,
    "seal": true,
    "jail": false,
    "missing": {
      "jail": "no bubblewrap"
    },
    "guest_firewall": true,
    "guest_namespace": false,
    "guest_privileges": false,
    "gateway": true
  }
}
"""


def test_what_is_written_is_what_it_always_was(tmp_path: Path) -> None:
    folder = create(tmp_path, "cell")
    RESULT.write(folder)
    assert (folder.path / FILE).read_bytes() == WRITTEN


def test_one_place_writes_it() -> None:
    """`Folder.write` is called for it here, and by nobody else."""
    source = Path(__file__).parents[2] / "src/wgcell"
    named = [path for path in source.rglob("*.py") if 'write("result.json"' in path.read_text()]
    assert named == []
    writers = [path.name for path in source.rglob("*.py") if ".write(FILE," in path.read_text()]
    assert writers == ["result.py"]


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("workload", [None, 0, 3])
def test_the_exit_code(outcome: Outcome, workload: int | None) -> None:
    code = exit_code(outcome, workload)
    if outcome is Outcome.COMPLETED:
        assert code == (125 if workload is None else workload)
    elif outcome is Outcome.INCOMPLETE and workload:
        assert code == workload
    else:
        assert code == EXIT_CODES[outcome]
