"""A terminal session at a real pseudo-terminal: raw while it runs, and as it was before whatever
ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.hubs import Running, argv, running
from tests.support.ptys import Pty, at_a_terminal
from tests.support.waiting import alive, until

from wgcell.cli import raw
from wgcell.guest.frames import Signal, Size, Terminal


@contextmanager
def session(
    cells: Path, *command: str, verb: str = "exec", options: tuple[str, ...] = (), rows: int = 24
) -> Iterator[tuple[Running, Pty]]:
    """A cell, and a person in a terminal session of it."""
    with running(cells, terminal=True) as one:
        words = argv(one, verb, *options, command=command)
        with at_a_terminal(*words, rows=rows) as person:
            until(lambda: person.is_raw)
            yield one, person


def guards(person: Pty) -> list[int]:
    """The guards that watch over a program's terminal."""
    pid = person.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(one) for one in children if b"\0guard\0" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]


def test_keys_go_as_they_are_and_the_terminal_is_as_before(tmp_path: Path) -> None:
    with session(tmp_path, "cat", options=("-it",)) as (one, person):
        until(lambda: guards(person))
        (guard,) = guards(person)
        person.type(b"a\x03\x1a\x1c\x04\r")
        assert person.look(b"\r").endswith(b"a\x03\x1a\x1c\x04\r")
        assert one.cell.guest.opened[0].subject.terminal == Terminal(24, 80)  # type: ignore[union-attr]
        one.call(lambda: one.cell.guest.programs[1].input.put_nowait(b""))
        assert person.ended() == 0
        assert person.modes() == person.before
        until(lambda: not alive(guard))


ENDS = {
    "the window closes": signal.SIGHUP,
    "SIGTERM, twice": signal.SIGTERM,
    "SIGQUIT": signal.SIGQUIT,
    "SIGKILL": signal.SIGKILL,
    "a fault": signal.SIGSEGV,
}


@pytest.mark.parametrize("number", ENDS.values(), ids=ENDS)
def test_whatever_ends_it_the_terminal_is_restored(tmp_path: Path, number: signal.Signals) -> None:
    with session(tmp_path, "sleep", options=("-it",)) as (one, person):
        until(lambda: guards(person))
        (guard,) = guards(person)
        person.send(number)
        if number == signal.SIGTERM:
            until(lambda: Signal(1, number) in one.cell.guest.programs[1].heard)
            assert person.is_raw
            person.send(number)
        person.ended()
        until(lambda: person.modes() == person.before)
        until(lambda: not alive(guard))
        until(lambda: len(one.cell.guest.programs) == 1)


def test_the_supervisors_death_restores_the_terminal(tmp_path: Path) -> None:
    with session(tmp_path, "sleep", options=("-it",)) as (one, person):
        one.end()
        assert person.ended() == 125
        assert person.modes() == person.before
        assert b"connection to the cell is gone" in person.shown


def test_a_window_that_is_gone_ends_it(tmp_path: Path) -> None:
    with session(tmp_path, "sleep", options=("-it",)) as (one, person):
        person.close_window()
        person.process.wait(60)
        until(lambda: len(one.cell.guest.programs) == 1)


def test_the_guard_leaves_alone_what_somebody_else_has_set(tmp_path: Path) -> None:
    with session(tmp_path, "sleep", options=("-it",)) as (_, person):
        until(lambda: guards(person))
        (guard,) = guards(person)
        modes = person.modes()
        modes[3] |= termios.ECHO
        termios.tcsetattr(person._terminal, termios.TCSANOW, modes)
        person.send(signal.SIGKILL)
        person.process.wait(60)
        until(lambda: not alive(guard))
        assert person.modes() == modes


def test_stopped_and_continued(tmp_path: Path) -> None:
    with session(tmp_path, "cat", options=("-it",)) as (_, person):
        person.send(signal.SIGTSTP)
        until(lambda: person.modes() == person.before)
        stat = Path(f"/proc/{person.process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        person.resize(30, 90)
        person.send(signal.SIGCONT)
        until(lambda: person.is_raw)
        person.type(b"on")
        person.look(b"on")


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (50, 10_000), (65535, 65535), (1, 1)])
def test_sizes_of_all_kinds(tmp_path: Path, rows: int, columns: int) -> None:
    with session(tmp_path, "cat", options=("-it",)) as (one, person):
        program = one.cell.guest.programs[1]
        person.resize(rows, columns)
        until(lambda: Size(1, Terminal(rows, columns)) in program.heard)
        person.type(b"x")
        person.look(b"x")


def test_the_detach_keys_of_attach(tmp_path: Path) -> None:
    with session(tmp_path, verb="attach") as (one, person):
        person.type(b"\x10x\x10")
        until(lambda: not one.cell.guest.workload.input.empty())
        person.type(b"\x11")
        assert person.ended() == 0
        assert person.modes() == person.before
        typed = b"".join(list(one.cell.guest.workload.input._queue))  # type: ignore[attr-defined]
        assert typed == b"\x10x"
        until(lambda: not one.cell.sessions._hub.watchers)
        assert not one.cell.guest.workload.hung_up.is_set()


def test_attach_asks_the_program_to_draw_itself_anew(tmp_path: Path) -> None:
    with session(tmp_path, verb="attach") as (one, person):
        until(lambda: Size(0, Terminal(24, 80)) in one.cell.guest.workload.heard)
        assert one.cell.guest.workload.heard[0] == Size(0, Terminal(25, 80))
        one.cell.taps["stdout"].write(b"\x1b[2J\x1b]0;title\x07raw")
        assert person.look(b"raw").endswith(b"\x1b[2J\x1b]0;title\x07raw")


def test_without_t_what_comes_is_filtered(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        words = argv(one, "exec", command=("echo", "a\x1b]0;title\x07b"))
        with at_a_terminal(*words) as person:
            assert person.ended() == 0
            assert person.shown == b"ab"
            assert person.modes() == person.before


def test_modes_are_written_as_stty_reads_them() -> None:
    person = Pty(("true",), 24, 80)
    try:
        modes = termios.tcgetattr(person._terminal)
        shown = subprocess.run(["stty", "-g"], stdin=person._terminal, capture_output=True)
        assert shown.stdout.decode().strip() == raw._as_stty(modes)
    finally:
        person.close()


def test_a_terminal_that_is_none() -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="ioctl"):
        raw.RawTerminal(reading)
    assert raw.size(reading, writing) == Terminal(0, 0)
    os.close(reading)
    os.close(writing)
