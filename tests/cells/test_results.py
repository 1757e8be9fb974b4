"""The work comes home: every byte, in order, however slow its reader; and every ending in order.

The matrix is short in each run, and long with WGCELL_RESULTS=N: N times each cell of it, with the
sizes that take minutes under emulation.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from tests.support.waiting import pace, until

from wgcell.cell.core.results import LAST_BYTES

pytestmark = pytest.mark.vm

LONG = int(os.environ.get("WGCELL_RESULTS", "0"))
MIB = 1 << 20
GENEROUS = 900 if LONG else 120
"""Seconds; a machine that is busy with other work is slow, and that is no fault."""

pytestmark = [pytest.mark.vm, pytest.mark.timeout(GENEROUS + 60)]

Start = Callable[..., "Running"]

NOISE = "import hashlib,sys\nleft=int(sys.argv[1])\nseed=b'wgcell'\n" + (
    "while left > 0:\n"
    " seed=hashlib.sha512(seed).digest()\n"
    " block=(seed*1024)[:left]\n"
    " sys.stdout.buffer.write(block)\n"
    " left-=len(block)\n"
)
"""Python that writes so many bytes, the same each time and different all along."""


class Running:
    """A cell that runs: its standard output is ours to read."""

    def __init__(self, state: Path, options: tuple[str, ...], command: tuple[str, ...]) -> None:
        wgcell = str(Path(sys.executable).with_name("wgcell"))
        argv = [wgcell, "run", "--state-dir", str(state), *options, "--", *command]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.said = b""
        assert self.process.stdout is not None and self.process.stderr is not None
        self.out: IO[bytes] = self.process.stdout
        self._errors = threading.Thread(
            target=self._listen, args=(self.process.stderr,), daemon=True
        )
        self._errors.start()
        self.state = state

    def _listen(self, stderr: IO[bytes]) -> None:
        while line := stderr.readline():
            self.said += line

    def end(self) -> int:
        """Its exit code; all it said on standard error is in ``said``."""
        code = self.process.wait(GENEROUS)
        self._errors.join()
        return code

    @property
    def folder(self) -> Path:
        (folder,) = self.state.iterdir()
        return folder

    def clean(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._errors.join()
        self.out.close()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    cells: list[Running] = []

    def begin(*options: str, command: tuple[str, ...]) -> Running:
        cells.append(Running(tmp_path / f"state{len(cells)}", options, command))
        return cells[-1]

    yield begin
    for cell in cells:
        cell.clean()


def noise(size: int) -> str:
    """The SHA-256 of what NOISE writes."""
    seed, digest = b"wgcell", hashlib.sha256()
    while size > 0:
        seed = hashlib.sha512(seed).digest()
        block = (seed * 1024)[:size]
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def digest_of(stream: IO[bytes], pause: Callable[[int], None] = lambda count: None) -> str:
    digest = hashlib.sha256()
    while data := stream.read1(65536):  # type: ignore[attr-defined]
        digest.update(data)
        pause(len(data))
    return digest.hexdigest()


def outcome(cell: Running) -> str:
    import json

    return str(json.loads((cell.folder / "result.json").read_text())["outcome"])


SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 6 * MIB] + ([64 * MIB, 1229 * MIB] if LONG else [])


@pytest.mark.parametrize("turn", range(max(LONG, 1)))
def test_outputs_of_every_size_come_home_whole(start: Start, tmp_path: Path, turn: int) -> None:
    """All sizes in one cell, ten thousand small files, and a folder 60 deep."""
    script = tmp_path / "make.sh"
    deep = "/".join(f"d{n}" for n in range(60))
    small = 10_000 if LONG else 2_000
    script.write_text(
        f"set -e\nmkdir -p r/small r/{deep}\necho deep >r/{deep}/file\n"
        + "".join(f"python3 noise.py {size} >r/size-{size}\n" for size in SIZES)
        + f"cd r/small\nfor n in $(seq {small}); do echo $n >f$n; done\n"
    )
    (tmp_path / "noise.py").write_text(NOISE)
    options = ("--input", str(script), "--input", str(tmp_path / "noise.py"), "--output", "r")
    options += ("--disk", "4GiB", "--output-dir", str(tmp_path / "home"))
    cell = start(*options, command=("sh", "make.sh"))
    assert cell.out.read() == b""
    assert cell.end() == 0, cell.said.decode()
    assert outcome(cell) == "completed"
    home = tmp_path / "home" / "r"
    for size in SIZES:
        with (home / f"size-{size}").open("rb") as file:
            assert digest_of(file) == noise(size), size
    assert (home / deep / "file").read_text() == "deep\n"
    assert {path.name: path.read_text() for path in (home / "small").iterdir()} == {
        f"f{n}": f"{n}\n" for n in range(1, small + 1)
    }


def slow(rate: float) -> Callable[[int], None]:
    """A reader of so many bytes a second. It waits since that is what it is for."""
    return lambda count: pace(count / rate)


def stops_once(seconds: float) -> Callable[[int], None]:
    """A reader who stands still once, early."""
    left = [seconds]

    def pause(count: int) -> None:
        pace(left.pop() if left else 0)

    return pause


READERS: dict[str, tuple[int, Callable[[], Callable[[int], None]]]] = {
    "fast": (1024 * MIB if LONG else 24 * MIB, lambda: lambda count: None),
    "slow": (5 * MIB, lambda: slow(300e3 if LONG else 3e6)),
    "stopped": (16 * MIB, lambda: stops_once(10 if LONG else 6)),
}


@pytest.mark.parametrize("turn", range(max(LONG, 1)))
@pytest.mark.parametrize("stream", ["stdout", "stderr"] if LONG else ["stdout"])
@pytest.mark.parametrize("reader", READERS)
def test_every_byte_of_a_stream_reaches_its_reader(
    start: Start, tmp_path: Path, reader: str, stream: str, turn: int
) -> None:
    size, pace = READERS[reader]
    (tmp_path / "noise.py").write_text(NOISE)
    words = ("python3", "noise.py", str(size))
    if stream == "stderr":
        # -q: standard error is the workload's alone.
        cell = start(
            *("-q", "--input", str(tmp_path / "noise.py")),
            command=("sh", "-c", f"{' '.join(words)} >&2"),
        )
        assert cell.out.read() == b""
        assert cell.end() == 0
        assert hashlib.sha256(cell.said).hexdigest() == noise(size)
        return
    cell = start("--input", str(tmp_path / "noise.py"), command=words)
    assert digest_of(cell.out, pace()) == noise(size), cell.said.decode()
    assert cell.end() == 0, cell.said.decode()
    assert outcome(cell) == "completed"


def test_the_end_is_told_after_the_last_byte(start: Start) -> None:
    """Both go to one file, in the order in which they are written."""
    cell = start("-v", command=("sh", "-c", "seq 100000 >&2; echo last >&2"))
    assert cell.end() == 0
    assert cell.said.index(b"last\n") < cell.said.index(b"the workload has ended")


def test_a_reader_who_is_gone_ends_the_workload_as_a_pipe_would(start: Start) -> None:
    cell = start(command=("yes",))
    assert cell.out.readline() == b"y\n"
    cell.out.close()
    assert cell.end() == 128 + signal.SIGPIPE, cell.said.decode()


def test_a_full_disk_behind_standard_output_is_an_error_that_is_said(tmp_path: Path) -> None:
    wgcell = str(Path(sys.executable).with_name("wgcell"))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [wgcell, "run", "--state-dir", str(tmp_path), "--", "seq", "100000"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=GENEROUS,
            check=False,
        )
    assert done.returncode == 125
    assert b"stdout could not be written: No space left on device" in done.stderr


# Endings. Each cell leaves a checkpoint when it is asked to end.

PATIENT = "trap 'echo saved >kept; exit 3' TERM; echo up; while :; do sleep 0.1; done"
STUBBORN = "trap '' TERM; echo early >kept; echo up; while :; do sleep 0.1; done"
HOME = ("--output", "kept", "--output-dir")


def test_a_timeout_leaves_time_to_save_and_brings_it_home(start: Start, tmp_path: Path) -> None:
    cell = start("--timeout", "2s", *HOME, str(tmp_path / "h"), command=("sh", "-c", PATIENT))
    assert cell.end() == 124, cell.said.decode()
    assert outcome(cell) == "timeout"
    assert (tmp_path / "h/kept").read_text() == "saved\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_the_workloads_and_what_it_makes_of_it_counts(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    script = PATIENT.replace("TERM", number.name.removeprefix("SIG"))
    cell = start(*HOME, str(tmp_path / "h"), command=("sh", "-c", script))
    assert cell.out.readline() == b"up\n"
    cell.process.send_signal(number)
    assert cell.end() == 3, cell.said.decode()
    assert outcome(cell) == "completed"
    assert (tmp_path / "h/kept").read_text() == "saved\n"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((signal.SIGINT, signal.SIGINT), "interrupted (Ctrl-C)"),
        ((signal.SIGINT, signal.SIGTERM), "stopped"),
        ((signal.SIGHUP,), "the terminal closed"),
    ],
)
def test_a_signal_ends_the_workload_in_order_and_nothing_is_left(
    start: Start, tmp_path: Path, wgcell: str, numbers: tuple[signal.Signals, ...], words: str
) -> None:
    """The first SIGINT is the workload's, which prints that it has come, and goes on."""
    script = f"trap 'echo int' INT; {PATIENT}"
    cell = start(*HOME, str(tmp_path / "h"), command=("sh", "-c", script))
    assert cell.out.readline() == b"up\n"
    pid = cell.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 3  # gateway, relay, QEMU
    shown = subprocess.run(
        [wgcell, "ps", "--state-dir", str(cell.state)], capture_output=True, text=True, check=True
    )
    assert "running" in shown.stdout
    for number in numbers[:-1]:
        cell.process.send_signal(number)
        assert cell.out.readline() == b"int\n"
    cell.process.send_signal(numbers[-1])
    assert cell.end() == 130, cell.said.decode()
    assert f"cancelled: {words}" in cell.said.decode()
    assert (tmp_path / "h/kept").read_text() == "saved\n"
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_who_does_not_end_in_the_grace_period_is_killed_and_its_results_come_home(
    start: Start, tmp_path: Path
) -> None:
    options = ("--grace", "1s", *HOME, str(tmp_path / "h"))
    cell = start(*options, command=("sh", "-c", STUBBORN))
    assert cell.out.readline() == b"up\n"
    cell.process.send_signal(signal.SIGHUP)
    assert cell.end() == 130, cell.said.decode()
    assert (tmp_path / "h/kept").read_text() == "early\n"


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGQUIT])
def test_a_signal_in_the_grace_period_ends_it_at_once(start: Start, again: signal.Signals) -> None:
    cell = start("--grace", "10m", command=("sh", "-c", STUBBORN))
    assert cell.out.readline() == b"up\n"
    cell.process.send_signal(signal.SIGHUP)

    def terminating() -> bool:
        assert cell.process.poll() is None
        return b'"terminating"' in (cell.folder / "events.jsonl").read_bytes()

    until(terminating)
    cell.process.send_signal(again)
    assert cell.end() == 130


def test_ctrl_c_at_a_terminal(tmp_path: Path) -> None:
    """As one types it: a spinner stands, ^C comes through the terminal, which is left as it was."""
    wgcell = str(Path(sys.executable).with_name("wgcell"))
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    argv = [wgcell, "run", "--state-dir", str(tmp_path / "s"), *HOME, str(tmp_path / "h")]
    cell = subprocess.Popen(
        [*argv, "--", "sh", "-c", PATIENT.replace("TERM", "INT")],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
    )
    said = b""
    try:
        while b"up\r\n" not in said:
            said += os.read(ours, 65536)
        os.write(ours, b"\x03")
        while cell.poll() is None:
            if select.select([ours], [], [], 0.1)[0]:
                said += os.read(ours, 65536)
        while select.select([ours], [], [], 0)[0]:
            said += os.read(ours, 65536)
        assert termios.tcgetattr(theirs) == before
    finally:
        cell.kill()
        cell.wait()
        os.close(ours)
        os.close(theirs)
    assert cell.returncode == 3, said
    assert (tmp_path / "h/kept").read_text() == "saved\n"
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")


def test_nohup_is_respected(tmp_path: Path) -> None:
    wgcell = str(Path(sys.executable).with_name("wgcell"))
    cell = subprocess.Popen(
        [
            "nohup",
            wgcell,
            "run",
            "--state-dir",
            str(tmp_path),
            "--",
            "sh",
            "-c",
            "echo up; sleep 2",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with cell:
        assert cell.stdout is not None and cell.stdout.readline() == b"up\n"
        cell.send_signal(signal.SIGHUP)
        assert cell.wait(GENEROUS) == 0


def test_a_reader_who_stands_still_does_not_hold_up_an_end_for_good(start: Start) -> None:
    cell = start("--grace", "1s", command=("yes",))
    assert cell.out.readline() == b"y\n"
    cell.process.send_signal(signal.SIGHUP)
    begun = time.monotonic()
    assert cell.end() == 130
    assert time.monotonic() - begun < 4 * LAST_BYTES + 20
    assert b"cut off" in cell.said


def test_a_slow_reader_gets_all_that_was_written_before_an_end(start: Start) -> None:
    size = 1 << 20
    words = f"head -c {size} /dev/zero; echo up >&2; trap '' TERM; while :; do sleep 0.1; done"
    cell = start("--grace", "0", command=("sh", "-c", words))
    got = len(cell.out.read(65536))

    def up() -> bool:
        assert cell.process.poll() is None
        return b"up" in cell.said

    until(up)
    cell.process.send_signal(signal.SIGHUP)
    while data := cell.out.read1(65536):  # type: ignore[attr-defined]
        got += len(data)
        pace(len(data) / (size / (3 * LAST_BYTES)))
    assert (cell.end(), got) == (130, size)
    assert b"cut off" not in cell.said


def test_the_out_of_memory_killer_is_named(start: Start) -> None:
    greedy = "x = []\nwhile True: x.append(bytearray(10**7))"
    cell = start("--memory", "256MiB", command=("python3", "-c", greedy))
    assert cell.end() == 137
    assert b"killed python3" in cell.said and b"--memory" in cell.said


def test_a_spent_quota_ends_a_download_and_brings_the_results_home(
    start: Start, service: str, tmp_path: Path
) -> None:
    fetch = "print(len(u.urlopen('http://10.99.0.5/zeros/8000000', timeout=30).read()))"
    python = f'python3 -c "import urllib.request as u; {fetch}"'
    busy = f"trap 'echo saved >kept; exit' TERM; {python} & wait"
    options = ("--service", service, "--quota", "2MiB", *HOME, str(tmp_path / "h"))
    cell = start(*options, command=("sh", "-c", busy))
    assert cell.out.read() == b""
    assert cell.end() == 119, cell.said.decode()
    assert outcome(cell) == "quota" and b"has carried" in cell.said
    assert (tmp_path / "h/kept").read_text() == "saved\n"


def test_a_named_output_that_is_not_there_is_no_success(start: Start, tmp_path: Path) -> None:
    options = ("--output", "there", "--output", "gone/", "--output-dir", str(tmp_path / "h"))
    cell = start(*options, command=("sh", "-c", "echo 1 >there"))
    assert cell.end() == 118, cell.said.decode()
    assert outcome(cell) == "incomplete" and b"gone" in cell.said
    assert (tmp_path / "h/there").read_text() == "1\n"


def test_a_failed_workload_keeps_its_exit_code_though_an_output_is_missing(start: Start) -> None:
    cell = start("--output", "gone", command=("sh", "-c", "exit 7"))
    assert cell.end() == 7, cell.said.decode()
    assert outcome(cell) == "incomplete"


def test_a_forgotten_socket_is_no_lost_output_and_new_files_are_readable(
    start: Start, tmp_path: Path
) -> None:
    make = "import os, socket\nos.mkdir('r')\nopen('r/file', 'w').close()\n"
    make += "socket.socket(socket.AF_UNIX).bind('r/socket')\nprint('1', end='')"
    options = ("--output", "r", "--output-dir", str(tmp_path / "h"))
    cell = start(*options, command=("python3", "-c", make))
    assert cell.out.read() == b"1"
    assert cell.end() == 0, cell.said.decode()
    assert (tmp_path / "h/r/file").stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "h/r/socket").exists()


def test_nothing_that_the_workload_has_left_is_executed_to_bring_it_home(tmp_path: Path) -> None:
    """Programs of those names, in the working folder; see also tests/guest/test_collect.py."""
    names = ("base64", "busybox", "cat", "dd", "sh", "sort", "tar", "tr")
    leave = [f"printf '#!/bin/sh\\necho x > /work/ran\\n' > {n}; chmod +x {n}" for n in names]
    home = tmp_path / "home"
    wgcell = str(Path(sys.executable).with_name("wgcell"))
    argv = [wgcell, "run", "--state-dir", str(tmp_path / "cells"), "--output", "*"]
    argv += ["--output-dir", str(home), "--", "sh", "-c", "; ".join(leave)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(home)) == list(names)
