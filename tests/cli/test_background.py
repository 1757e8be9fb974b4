"""Our own words while a cell runs: whoever reads them, or stops to, holds up nobody."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest
from tests.support.waiting import GENEROUS, pace, until

from wgcell.cli.background import MOST_WAITING, BackgroundWriter

pytestmark = pytest.mark.process

# A run's words, as its loop says them, to a standard error that takes none.
SPEAKS = """
import os, sys
from wgcell.cli import progress, terminal
terminal.write_in_background()
printer = progress.EventPrinter(progress.Verbosity.VERBOSE)
printer({'event': 'state', 'state': 'preparing', 'folder': '/x'})
for number in range(1_000):
    printer({'event': 'changed', 'what': 'x' * 1500})
printer({'event': 'ended', 'outcome': 'error', 'exit_code': 125, 'reason': 'x'})
terminal.warn('the last word')
terminal.restore()
os.write(1, b'said')
terminal.finish_writing()
os._exit(0)
"""


def full_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    fill(write)
    return read, write


def full_socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    fill(theirs.fileno())
    return ours.detach(), theirs.detach()


def fill(fd: int) -> None:
    """As whoever else holds it would: it stays one that blocks."""
    os.set_blocking(fd, False)
    try:
        while os.write(fd, bytes(4096)):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(fd, True)


def stopped_terminal() -> tuple[int, int]:
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)  # Ctrl-S
    return ours, theirs


def unread_terminal() -> tuple[int, int]:
    return pty.openpty()


STOPPED = (full_pipe, full_socket, stopped_terminal, unread_terminal)
Made = Callable[[], tuple[int, int]]


@pytest.fixture(scope="module")
def speaking() -> Iterator[Mapping[Made, subprocess.Popen[bytes]]]:
    """One for each reader who stops, all at once: each has its patience, `PATIENCE`, with him."""
    with ExitStack() as stack:
        begun = {}
        for made in STOPPED:
            ours, theirs = made()
            stack.callback(os.close, ours)
            stack.callback(os.close, theirs)
            argv = [sys.executable, "-P", "-c", SPEAKS]
            speaks = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs)
            stack.enter_context(speaks)
            stack.callback(speaks.kill)
            begun[made] = speaks
        yield begun


@pytest.mark.parametrize("made", STOPPED)
def test_a_reader_who_stops_holds_up_no_loop(
    made: Made, speaking: Mapping[Made, subprocess.Popen[bytes]]
) -> None:
    speaks = speaking[made]
    assert speaks.stdout is not None
    assert speaks.wait(GENEROUS) == 0
    assert speaks.stdout.read() == b"said"


def test_a_slow_reader_hears_every_word_in_order() -> None:
    heard: list[str] = []

    def slow(text: str) -> None:
        pace(0.001)
        heard.append(text)

    writer = BackgroundWriter(slow)
    for number in range(500):
        writer.write(f"{number}")
    assert writer.finish()
    assert heard == [str(number) for number in range(500)]


def test_what_waits_is_bounded_and_nobody_is_waited_for_twice() -> None:
    held, begun = threading.Event(), threading.Event()

    def stuck(text: str) -> None:
        begun.set()
        held.wait(GENEROUS)

    writer = BackgroundWriter(stuck)
    for _ in range(100):
        writer.write("x" * (MOST_WAITING // 10))
    begun.wait(GENEROUS)
    assert writer._waiting <= MOST_WAITING
    assert not writer.finish(0.01)
    writer.write("lost")
    assert not writer.finish(1000)
    held.set()
    until(lambda: writer._waiting == 0)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("closed")])
def test_words_that_can_not_be_said_are_no_error(error: Exception) -> None:
    def fails(text: str) -> None:
        raise error

    writer = BackgroundWriter(fails)
    writer.write("x")
    writer.write("y")
    assert writer.finish()


def test_what_it_says_is_whole(tmp_path: os.PathLike[str]) -> None:
    """The control: to one who reads, all of it comes, with its last word."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    argv = [sys.executable, "-P", "-c", SPEAKS.replace("1_000", "200")]
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=write, timeout=GENEROUS)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        lines = said.read().splitlines()
    assert done.returncode == 0
    assert len(lines) == 203 and lines[-1] == b"wgcell: the last word"
