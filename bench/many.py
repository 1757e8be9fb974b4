"""Many relays at once: what each costs while nothing happens, and the busy one beside the others.

For 1, 10 and 50 sealed relays, each with a session: memory (of one relay's two processes, and of
all together, shared pages counted once: Pss), processor time while idle, and the throughput of one
under load with the rest idle. Memory of a sealed relay can be read by root alone: it is not
dumpable. Run by ``make bench``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from relay import (
    CASES,
    RELAY_CORE,
    Setup,
    build,
    family,
    mean_size,
    measure,
    processor_seconds,
    wgcell,
)

COUNTS = (1, 10, 50)
IDLE = 5.0
"""Seconds."""
ROUNDS = 3
CASE = next(case for case in CASES if case.way == "out" and case.burst > 1)


def memory(pid: int) -> dict[str, int]:
    """Kilobytes by name, of one process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def one(count: int) -> dict[str, float]:
    setups = [Setup(RELAY_CORE) for _ in range(count)]
    try:
        for setup in setups:
            wgcell(setup)
        time.sleep(1)
        pids = [list(family(setup.process.pid)) for setup in setups]
        row: dict[str, float] = {"relays": count}
        try:
            kept = [[memory(pid) for pid in own] for own in pids]
        except PermissionError:
            print("missing: memory: a sealed relay is not dumpable; only root can read it")
        else:
            # Its two processes share what the one was before it became two: counted once, by Pss,
            # which with shared libraries mapped by others too is nearly its own.
            row["own_mb"] = statistics.median(sum(m["Pss"] for m in each) for each in kept) / 1024
            row["all_mb"] = sum(m["Pss"] for each in kept for m in each) / 1024
        first = [setup.process.pid for setup in setups]
        before = sum(map(processor_seconds, first))
        time.sleep(IDLE)
        row["idle_percent"] = 100 * (sum(map(processor_seconds, first)) - before) / IDLE
        # The busy one takes the place of the last.
        setups.pop().close()
        rounds = [measure(wgcell, CASE) for _ in range(ROUNDS)]
        row["gbit"] = statistics.median(r["rate"] for r in rounds) * mean_size(CASE) * 8 / 1e9
        row["us_a_frame"] = statistics.median(r["us"] for r in rounds)
    finally:
        for setup in setups:
            setup.close()
    return row


def main() -> int:
    if not build("drive"):
        raise SystemExit("cc can't build bench/drive.c: apt-get install gcc libc6-dev")
    rows = [one(count) for count in COUNTS]
    print(f"{'relays':>6} {'own MB':>8} {'all MB':>8} {'idle %':>7} {'busy Gbit/s':>12} {'us':>6}")
    for row in rows:
        print(
            f"{row['relays']:>6.0f} {row.get('own_mb', 0):>8.1f} {row.get('all_mb', 0):>8.1f}"
            f" {row['idle_percent']:>7.2f} {row['gbit']:>12.2f} {row['us_a_frame']:>6.2f}"
        )
    print("goals: own at most 12 MB, 50 together under 600 MB, idle 0 %")
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
