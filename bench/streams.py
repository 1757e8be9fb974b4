"""How fast a workload's work comes home: its standard output, one large output, many small ones.

Each is set beside the same bytes written inside the machine and left there, alternating in one run.
Every figure is a whole ``wgcell run``, so that of a cell that does nothing is taken off. Seconds
and MB a second, medians. Run by ``make bench``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = 1 << 30
"""Bytes."""
FILES = 10_000
ROUNDS = 3
ZEROS = f"head -c {SIZE} /dev/zero"
SMALL = (
    "import os\nos.mkdir('many')\n"
    f"for n in range({FILES}): open(f'many/{{n}}', 'w').write('x' * 4096)\n"
)
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing": ((), ("true",)),
    "written inside": ((), ("sh", "-c", f"{ZEROS} > large")),
    "standard output": ((), ("sh", "-c", ZEROS)),
    "one output": (("--output", "large"), ("sh", "-c", f"{ZEROS} > large")),
    "many written inside": ((), ("python3", "-c", SMALL)),
    "many outputs": (("--output", "many/"), ("python3", "-c", SMALL)),
}
"""Options, and the command."""
LARGE = ("written inside", "standard output", "one output")


def timed(options: tuple[str, ...], command: tuple[str, ...]) -> float:
    wgcell = str(Path(sys.executable).with_name("wgcell"))
    with tempfile.TemporaryDirectory() as place:
        argv = [wgcell, "run", "-q", "--disk", "3GiB", "--state-dir", f"{place}/cells"]
        argv += [*options, "--", *command]
        started = time.monotonic()
        subprocess.run(argv, cwd=place, stdout=subprocess.PIPE, check=True, timeout=1800)
        return time.monotonic() - started


def main() -> int:
    timed(*CASES["nothing"])
    rounds = [{name: timed(*case) for name, case in CASES.items()} for _ in range(ROUNDS)]
    taken = {name: statistics.median(one[name] for one in rounds) for name in CASES}
    for name, seconds in taken.items():
        own = seconds - taken["nothing"]
        rate = f"{SIZE / 1e6 / own:8.0f} MB/s" if name in LARGE else ""
        print(f"{name:<24} {seconds:7.2f} s {rate}")
    print(json.dumps(taken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
