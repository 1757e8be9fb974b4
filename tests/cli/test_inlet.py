"""Standard input for a workload: no more than it has room for, and a terminal restored."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import tempfile
import termios
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.support.waiting import GENEROUS, lulled, soon

from wgcell.cli.inlet import Inlet, passes_stdin
from wgcell.cli.raw import RawTerminal
from wgcell.guest.channel import WINDOW
from wgcell.guest.frames import Terminal


class Cell:
    """What an inlet asks of a running cell."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.came: list[bytes] = []
        self.sizes: list[Terminal] = []
        self.credited: Callable[[int], None] = lambda amount: None

    def hold_stdin(self, credited: Callable[[int], None]) -> str:
        self.credited = credited
        return self.refuses

    def write_stdin(self, credited: Callable[[int], None], data: bytes) -> None:
        assert credited == self.credited
        self.came.append(data)

    def resize(self, terminal: Terminal) -> None:
        self.sizes.append(terminal)

    @property
    def whole(self) -> bytes:
        return b"".join(self.came)


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, GENEROUS))


def inlet(cell: Cell, fd: int, terminal: RawTerminal | None = None) -> Inlet:
    return Inlet(cell, terminal, fd)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_all_of_it_goes_in_and_then_its_end(kind: str) -> None:
    whole = os.urandom(3 * WINDOW + 5)

    async def body() -> None:
        cell, closing = Cell(), []
        if kind == "file":
            with tempfile.TemporaryFile() as file:
                file.write(whole)
                reading = os.dup(file.fileno())
            os.lseek(reading, 0, os.SEEK_SET)
        else:
            pair = [one.detach() for one in socket.socketpair()] if kind == "socket" else os.pipe()
            reading, writing = pair
            closing.append(asyncio.to_thread(pour, writing, whole))
        pouring = [asyncio.ensure_future(one) for one in closing]
        one = inlet(cell, reading)
        one.start()
        await soon(lambda: len(cell.whole) == WINDOW)
        await lulled(0.05)
        assert len(cell.whole) == WINDOW  # and no more, for there is no room
        while not cell.came or cell.came[-1]:
            before = len(cell.came)
            cell.credited(WINDOW - 1)
            await soon(lambda before=before: len(cell.came) > before)
        assert cell.whole == whole
        one.stop()
        one.stop()
        await asyncio.gather(*pouring)
        os.close(reading)

    run(body())


def pour(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)


def test_nothing_is_read_that_somebody_else_is_to_have() -> None:
    async def body() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"x")
        one = inlet(Cell("somebody else holds it"), reading)
        one.start()
        await lulled(0.05)
        one.stop()
        assert os.read(reading, 10) == b"x"
        os.close(reading)
        os.close(writing)

    run(body())


def test_when_it_is_stopped_the_rest_is_for_a_question() -> None:
    async def body() -> None:
        reading, writing = os.pipe()
        cell = Cell()
        one = inlet(cell, reading)
        one.start()
        os.write(writing, b"typed")
        await soon(lambda: cell.whole == b"typed")
        one.stop()
        os.write(writing, b"yes")
        await lulled(0.05)
        assert os.read(reading, 10) == b"yes"
        assert cell.whole == b"typed"
        os.close(reading)
        os.close(writing)

    run(body())


def test_a_terminal_is_raw_until_it_is_stopped() -> None:
    async def body() -> None:
        master, terminal = pty.openpty()
        before = termios.tcgetattr(terminal)
        cell = Cell()
        one = inlet(cell, terminal, RawTerminal(terminal))
        one.start()
        assert not termios.tcgetattr(terminal)[3] & termios.ISIG
        os.write(master, b"\x03")
        await soon(lambda: cell.whole == b"\x03")
        sizes = len(cell.sizes)
        os.kill(os.getpid(), signal.SIGWINCH)
        await soon(lambda: len(cell.sizes) > sizes)
        one.stop()
        assert termios.tcgetattr(terminal) == before
        assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL
        os.close(master)
        os.close(terminal)

    run(body())


def test_what_passes_by_itself(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("x")
    master, terminal = pty.openpty()
    reading, writing = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    zero = os.open("/dev/zero", os.O_RDONLY)
    for fd, passes in (
        (reading, True),
        (file, True),
        (zero, True),
        (null, False),
        (terminal, False),
    ):
        assert passes_stdin(None, tty=False, detach=False, fd=fd) is passes
        assert not passes_stdin(None, tty=True, detach=False, fd=fd)
        assert not passes_stdin(None, tty=False, detach=True, fd=fd)
        for asked in (True, False):
            assert passes_stdin(asked, tty=True, detach=True, fd=fd) is asked
    for fd in (master, terminal, reading, writing, null, file, zero):
        os.close(fd)
