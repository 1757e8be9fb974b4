"""`wgcell exec` and `wgcell attach`: the programs themselves, with a fake guest behind the hub."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cells import WGCELL
from tests.support.hubs import Running, argv, running
from tests.support.waiting import GENEROUS, until

from wgcell.cell.control import listener
from wgcell.cell.core import events as seen
from wgcell.guest.channel import WINDOW
from wgcell.guest.frames import Signal, Terminal


def ran(one: Running, *options: str, command: tuple[str, ...], **how: Any) -> Any:
    how = {"input": b"", "timeout": GENEROUS, "capture_output": True, **how}
    return subprocess.run(argv(one, "exec", *options, command=command), **how)


STARTED: list[Any] = []


def started(one: Running, verb: str, *options: str, command: tuple[str, ...] = ()) -> Any:
    pipe = subprocess.PIPE
    words = argv(one, verb, *options, command=command)

    def arm() -> None:
        # A test that is started in the background may have it ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    STARTED.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=arm))
    return STARTED[-1]


def hears(process: Any) -> bool:
    """Whether it has handlers for signals by now (proc_pid_status(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Nothing that was started stays."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def test_input_output_and_exit_code(tmp_path: Path) -> None:
    whole = os.urandom(2 * WINDOW + 1)
    with running(tmp_path) as one:
        done = ran(one, "-i", command=("cat",), input=whole)
        assert (done.stdout, done.stderr, done.returncode) == (whole, b"", 0)
        done = ran(one, command=("count", "100000", "70000"))
        assert (len(done.stdout), len(done.stderr)) == (100_000, 70_000)
        for code in (0, 3, 126, 127, 255):
            assert ran(one, command=("exit", str(code))).returncode == code


def test_without_i_nothing_is_read(tmp_path: Path) -> None:
    """As in a shell's loop over lines."""
    with running(tmp_path) as one:
        loop = f"while read -r x; do echo $x; {' '.join(argv(one, 'exec', command=('exit', '0')))}"
        done = subprocess.run(
            ["sh", "-c", f"{loop}; done"], input=b"1\n2\n3\n", capture_output=True, timeout=GENEROUS
        )
        assert done.stdout == b"1\n2\n3\n"


def test_what_is_asked_reaches_the_guest(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        options = ("-e", "A=1", "--env", "HERE", "-w", "sub", "-u", "nobody:users", "-t")
        done = ran(one, *options, command=("env",), env={**os.environ, "HERE": "x"})
        wanted = ({"A": "1", "HERE": "x"}, "sub", "nobody:users", Terminal(0, 0), False)
        assert done.stdout == repr(wanted).encode()


@pytest.mark.parametrize(
    ("state", "command", "said"),
    [
        ("running", ("nothing",), "nothing: not found"),
        ("booting", ("cat",), "not running yet"),
        ("terminating", ("cat",), "is ending"),
        ("paused", ("cat",), "wgcell unpause"),
    ],
)
def test_what_can_not_be_is_125_and_says_why(
    tmp_path: Path, state: str, command: tuple[str, ...], said: str
) -> None:
    with running(tmp_path) as one:
        one.cell.state = state
        done = ran(one, command=command)
        assert done.returncode == 125 and said in done.stderr.decode()
        assert one.cell.folder.id in done.stderr.decode()


BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "no command": ((), (), "two dashes"),
    "a terminal that is none": (("-it",), ("cat",), "no terminal"),
    "nobody there to type": (("-d", "-i"), ("cat",), "nobody is there"),
    "keys that are none": (("--detach-keys", "ctrl-1"), ("cat",), "ctrl-"),
    "a variable that is none": (("-e", "=x"), ("cat",), "NAME=VALUE"),
    "a NUL": (("-w", "a"), ("a" * 140_000,), "no session can be begun"),
}


@pytest.mark.parametrize(("options", "command", "said"), BAD.values(), ids=BAD)
def test_bad_input(
    tmp_path: Path, options: tuple[str, ...], command: tuple[str, ...], said: str
) -> None:
    if command and len(command[0]) > 131_000:
        command = ("a" * 70_000, "b" * 70_000)
    with running(tmp_path) as one:
        done = ran(one, *options, command=command)
        assert done.returncode == 125 and said in done.stderr.decode(), done.stderr
        assert not one.cell.guest.opened


def test_no_such_cell_and_one_that_has_ended(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        words = argv(one, "exec", command=("cat",))
        one.end()
        done = subprocess.run(words, capture_output=True, timeout=GENEROUS)
        assert done.returncode == 125 and b"can't be reached" in done.stderr
    words[words.index(one.cell.folder.id)] = "nothing"
    done = subprocess.run(words, capture_output=True, timeout=GENEROUS)
    assert done.returncode == 125 and b"there is no cell 'nothing'" in done.stderr


def test_a_detached_command_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        assert ran(one, "-d", command=("count", str(3 * WINDOW), "0")).returncode == 0
        until(lambda: seen.SessionExited(1, 0, "") in one.cell.seen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_goes_to_the_command_and_the_second_leaves(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path) as one:
        process = started(one, "exec", command=("sleep",))
        until(lambda: len(one.cell.guest.programs) == 2)
        program = one.cell.guest.programs[1]
        until(lambda: hears(process))
        process.send_signal(number)
        until(lambda: Signal(1, number) in program.heard)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(GENEROUS) == 128 + number
        until(program.hung_up.is_set)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL, signal.SIGQUIT])
def test_whatever_ends_it_hangs_up(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as one:
        process = started(one, "exec", command=("sleep",))
        until(lambda: len(one.cell.guest.programs) == 2)
        process.send_signal(number)
        process.wait(GENEROUS)
        until(lambda: len(one.cell.guest.programs) == 1)
        assert not one.cell.causes


def test_a_reader_that_has_gone_ends_it(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        process = started(one, "exec", command=("yes",))
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(GENEROUS) == 128 + signal.SIGPIPE
        until(lambda: len(one.cell.guest.programs) == 1)


def test_a_slow_reader_gets_all_and_slows_its_own_session_alone(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        process = started(one, "exec", command=("count", str(4 * WINDOW), "10"))
        until(lambda: len(one.cell.guest.programs) == 2)
        assert ran(one, "-i", command=("cat",), input=b"quick").stdout == b"quick"
        assert len(process.stdout.read()) == 4 * WINDOW
        assert len(process.stderr.read()) == 10
        assert process.wait(GENEROUS) == 0


def test_a_cell_that_dies_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        process = started(one, "exec", command=("sleep",))
        until(lambda: len(one.cell.guest.programs) == 2)
        one.cell.folder.write("result.json", {"outcome": "rogue", "reason": "a frame"})
        one.end()
        _, said = process.communicate(timeout=GENEROUS)
        assert process.returncode == 125
        assert b"the connection to the cell is gone" in said and b"outcome is rogue" in said


# Attach.


def test_attach_looks_on_and_ends_with_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LAST_WORDS", GENEROUS)  # the client may be slow here
    with running(tmp_path, code=7) as one:
        process = started(one, "attach", "--no-stdin")
        until(lambda: one.cell.sessions._hub.watchers)
        one.cell.taps["stdout"].write(b"out")
        one.cell.taps["stderr"].write(b"err")
        assert process.stdout.read(3) == b"out"
        one.cell.taps["stdout"].write(b" more")
        one.end()
        out, err = process.communicate(timeout=GENEROUS)
        assert (out, err, process.returncode) == (b" more", b"err", 7)


def test_attach_to_a_cell_that_does_not_wait_for_it_has_its_exit_code(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        process = started(one, "attach", "--no-stdin")
        until(lambda: one.cell.sessions._hub.watchers)
        one.cell.folder.write("result.json", {"outcome": "completed", "exit_code": 9})
        one.call(one.cell.sessions.close)
        one.end()
        _, said = process.communicate(timeout=GENEROUS)
        assert process.returncode == 9 and b"wgcell logs" in said


def test_attach_passes_input_on_to_its_end(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        process = started(one, "attach")
        process.stdin.write(b"typed")
        process.stdin.close()
        whole = read_all(one)
        assert whole == b"typed"
        second = started(one, "attach")
        _, said = second.communicate(timeout=GENEROUS)
        assert second.returncode == 125 and b"standard input has ended" in said


def read_all(one: Running) -> bytes:
    """The workload's standard input."""
    whole, ended = bytearray(), []

    def look() -> bool:
        queue = one.cell.guest.workload.input
        while not queue.empty():
            if data := queue.get_nowait():
                whole.extend(data)
            else:
                ended.append(1)
        return bool(ended)

    until(lambda: one.call(look))
    return bytes(whole)


def test_two_clients_at_one_input(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        first = started(one, "attach")
        until(lambda: one.cell.sessions._hub.watchers)
        second = started(one, "attach")
        _, said = second.communicate(timeout=GENEROUS)
        assert second.returncode == 125 and b"somebody else holds" in said
        looking = started(one, "attach", "--no-stdin")
        until(lambda: one.cell.sessions._hub.watchers == 2)
        one.cell.taps["stdout"].write(b"both")
        assert first.stdout.read(4) == looking.stdout.read(4) == b"both"
        for process in (first, looking):
            process.kill()
            process.communicate(timeout=GENEROUS)
        until(lambda: not one.cell.sessions._hub.watchers)


def test_a_signal_at_attach_goes_to_the_workload(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        process = started(one, "attach", "--no-stdin")
        until(lambda: hears(process))
        process.send_signal(signal.SIGINT)
        until(lambda: Signal(0, 2) in one.cell.guest.workload.heard)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=GENEROUS)
        assert process.returncode == 130


@pytest.mark.parametrize("verb", ["exec", "attach", "cp"])
def test_help(verb: str) -> None:
    done = subprocess.run([WGCELL, verb, "--help"], capture_output=True, timeout=GENEROUS)
    assert done.returncode == 0 and b"CELL" in done.stdout
