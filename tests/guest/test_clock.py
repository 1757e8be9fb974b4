"""The script that keeps the guest's clock, with stand-ins for what sets one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wgcell.guest import protocol, scripts


@pytest.mark.parametrize(
    ("ahead", "done"),
    [
        (3600.0, "set"),
        (0.9, "set"),
        (0.2, ""),
        (0.0, ""),
        (-0.2, ""),
        (-0.9, "slower"),
        (-1.5, "slower"),
        (-3600.0, "slower"),
    ],
)
def test_it_is_set_forward_and_only_slowed_down_backward(
    tmp_path: Path, ahead: float, done: str
) -> None:
    """``ahead``: the host's clock before the guest's, in seconds."""
    for name, said in (("date", "set"), ("adjtimex", "slower")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {said} "$@" >>{tmp_path}/done\n')
        (tmp_path / name).chmod(0o755)
    script = scripts()["bin/clock"].decode()
    for name in ("date", "adjtimex"):
        script = script.replace(f"/bin/{name} ", f"{tmp_path}/{name} ")
    # `date -s` tells the time that it has set.
    script = script.replace(" >/dev/null", "")
    now = 1_700_000_000.25
    word, value = protocol.clock(now + ahead).decode().split()
    assert word == "time"
    # Only some shells have this variable.
    script = script.replace("$EPOCHREALTIME", f"{now:.6f}")
    subprocess.run(["sh", "-c", script, "clock", value], check=True)
    log = tmp_path / "done"
    words = log.read_text().split() if log.exists() else [""]
    assert words[0] == done
    if done == "set":
        assert words[1:] == ["-s", f"@{now + ahead:.6f}"]
    if done == "slower":
        assert words[1:] == ["-q", "-o", str(round(ahead * 1e6))]


def test_the_tables_leave_no_folder_in_memory_that_a_workload_fills_as_a_matter_of_course() -> None:
    table = [line.split() for line in scripts()["etc/mounts.root"].decode().splitlines()]
    in_memory = {place for _, place, kind, *_ in table if kind == "tmpfs"}
    assert in_memory == {"/newroot/dev/shm", "/newroot/run"}
    assert ["/upper/tmp", "/newroot/tmp", "none", "bind"] in table
