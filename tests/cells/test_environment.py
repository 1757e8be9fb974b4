"""What the caller's shell keeps in its environment stays in the supervisor.

What this can't show: pages that a process has let go of, and what lies in the kernel.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cells import started
from tests.support.deaths import family, pick
from tests.support.waiting import until

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root reads a sealed process's memory"),
]

CHUNK = 1 << 20
AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r...) .*")


def areas(pid: int) -> Iterator[tuple[int, int]]:
    """Readable memory of a process that is there: first address, and behind the last."""
    here: tuple[int, int] | None = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := AREA.fullmatch(line):
            here = int(found[1], 16), int(found[2], 16)
        elif "-" in line.split()[0]:
            here = None
        elif line.startswith("Rss:") and here is not None and line.split()[1] != "0":
            yield here


def found_in(pid: int, word: bytes) -> list[str]:
    """Where ``word`` stands in a process's environment and memory."""
    places = ["environ"] if word in Path(f"/proc/{pid}/environ").read_bytes() else []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for first, end in areas(pid):
            kept = b""
            for at in range(first, end, CHUNK):
                try:
                    part = os.pread(memory.fileno(), min(CHUNK, end - at), at)
                except OSError:
                    part = b""  # a device's, or the kernel's own
                if word in kept + part:
                    places.append(f"{at:x}")
                kept = part[-len(word) :]
    return places


@pytest.mark.parametrize("jail", ["jailed", "without a jail"])
def test_no_child_holds_what_the_callers_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jail: str
) -> None:
    canary = secrets.token_hex(16)
    monkeypatch.setenv("WGCELL_TEST_TOKEN", canary)
    kinds = ["keeper", "relay", "qemu", "gateway"]
    if jail == "jailed":
        kinds += ["jail-keeper", "jail"]
    else:
        (tmp_path / "bin").mkdir()
        refusing = tmp_path / "bin/bwrap"
        refusing.write_text("#!/bin/sh\nexit 1\n")
        refusing.chmod(0o755)
        monkeypatch.setenv("PATH", f"{refusing.parent}:{os.environ['PATH']}")
    state, options = tmp_path / "cells", ("--memory", "256MiB")
    process = started(state, *options, command=["sh", "-c", "echo up; sleep 600"])
    try:
        members = family(process.pid)
        for kind in kinds:
            assert pick(kind, members, process.pid) != process.pid, (kind, members)
        word = canary.encode()
        # The control: there it is found.
        own = found_in(process.pid, word)
        assert "environ" in own and len(own) > 1, own
        found = {line: found_in(pid, word) for pid, line in members.items() if pid != process.pid}
        assert not [line for line, places in found.items() if places], found
        for pid, line in members.items():
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits), (line, limits)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_nor_does_the_unpacking_of_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives from the workload's end to the last output: stopped, it lives long enough."""
    canary = secrets.token_hex(16)
    monkeypatch.setenv("WGCELL_TEST_TOKEN", canary)
    state, here = tmp_path / "cells", tmp_path / "here"
    options = ("--memory", "256MiB", "--output", "out", "--output-dir", str(here))
    script = "dd if=/dev/zero of=out bs=1M count=64 2>/dev/null; echo up"
    process = started(state, *options, command=["sh", "-c", script])
    try:

        def unpacker() -> int:
            members = family(process.pid)
            return next((pid for pid, line in members.items() if "cell.unpacker" in line), 0)

        pid = until(unpacker, "no unpacking was seen", every=0.001)
        confined = Path(f"/proc/{pid}/status")
        # Its code is loaded and its walls are up: from then on it is the guest's to attack.
        until(lambda: "Seccomp:\t2" in confined.read_text(), "it has no filter", every=0.001)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "environ" in found_in(process.pid, canary.encode())
            assert found_in(pid, b"LC_ALL=C.UTF-8"), "the control: nothing was read"
            assert not found_in(pid, canary.encode())
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits), limits
        finally:
            os.kill(pid, signal.SIGCONT)
        process.communicate(timeout=120)
        assert process.returncode == 0
        assert (here / "out").stat().st_size == 64 << 20
    finally:
        process.terminate()
        process.communicate(timeout=60)
