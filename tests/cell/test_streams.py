"""Streams and outputs on their way out of a guest: nothing is home before all of it is."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.support import waiting
from tests.support.waiting import GENEROUS, soon

from wgcell.cell.core.results import Account
from wgcell.cell.folder import CappedLog
from wgcell.cell.streams import ArrivingOutputs, Stream
from wgcell.errors import GuestError, StateError


class Owed(Stream):
    """A stream, and what the core makes of it."""

    stated: int | None = None

    @property
    def arrived(self) -> bool:
        return Account(self.facts(), self.stated, self.given_up).arrived

    @property
    def owed(self) -> int:
        return Account(self.facts(), self.stated, self.given_up).owed


Body = Callable[[Owed, socket.socket], Awaitable[None]]


def carried(tmp_path: Path, sink: Callable[[bytes], None], body: Body) -> Owed:
    """A stream into ``sink`` while ``body`` plays the guest at the port's other end."""

    async def play() -> Owed:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        stream = Owed("stdout", sink, CappedLog(tmp_path / "log"), lambda: None)
        stream.carry(ours)
        try:
            await asyncio.wait_for(body(stream, theirs), 30)
        finally:
            theirs.close()
        return stream

    return asyncio.run(play())


async def send(port: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(port, data)


def test_a_stream_is_home_at_its_last_byte_and_not_before(tmp_path: Path) -> None:
    got = bytearray()
    data = bytes(range(256)) * 4096

    async def body(stream: Owed, port: socket.socket) -> None:
        stream.stated = len(data)
        await send(port, data[:-1])
        await soon(lambda: stream.delivered == len(data) - 1)
        assert not stream.arrived and stream.owed == 1
        await send(port, data[-1:])
        await soon(lambda: stream.arrived)

    stream = carried(tmp_path, got.extend, body)
    assert got == data == (tmp_path / "log").read_bytes()
    assert stream.owed == 0


def test_a_port_that_ends_early_leaves_the_stream_owing(tmp_path: Path) -> None:
    async def body(stream: Owed, port: socket.socket) -> None:
        stream.stated = 10
        await send(port, b"12345")
        port.close()
        assert await stream.over(20)

    stream = carried(tmp_path, lambda data: None, body)
    assert not stream.arrived and stream.owed == 5


def test_more_than_was_stated_is_owed_the_other_way(tmp_path: Path) -> None:
    async def body(stream: Owed, port: socket.socket) -> None:
        stream.stated = 2
        await send(port, b"12345")
        await soon(lambda: stream.delivered == 5)

    assert carried(tmp_path, lambda data: None, body).owed < 0


def test_a_reader_who_stops_holds_up_the_sender_and_nobody_else(tmp_path: Path) -> None:
    may_read = threading.Event()
    sent = 0

    def sink(data: bytes) -> None:
        may_read.wait(GENEROUS)

    async def body(stream: Owed, port: socket.socket) -> None:
        nonlocal sent
        await send(port, b"x")
        await soon(lambda: stream.waits_for_reader)
        try:
            while True:
                sent += port.send(bytes(65536))
        except BlockingIOError:
            pass
        # The loop lives, the bytes wait where they were sent, and none is lost.
        assert stream.delivered == 0
        may_read.set()
        await soon(lambda: stream.delivered == sent + 1)

    carried(tmp_path, sink, body)
    assert 0 < sent < 4 << 20


def test_a_reader_who_is_gone_is_told_and_the_log_goes_on(tmp_path: Path) -> None:
    def sink(data: bytes) -> None:
        raise BrokenPipeError

    async def body(stream: Owed, port: socket.socket) -> None:
        await send(port, b"one")
        await soon(lambda: stream.reader_gone)
        assert not stream.arrived
        await send(port, b"two")
        await soon(lambda: stream.delivered == 6)
        # Whatever the count is: the sender was ended on its way.
        stream.stated = 999
        assert stream.arrived and stream.owed == 0

    stream = carried(tmp_path, sink, body)
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    assert stream.failure is None


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("closed"), StateError("full")]
)
def test_a_write_that_fails_is_kept_as_a_failure(tmp_path: Path, error: Exception) -> None:
    def sink(data: bytes) -> None:
        raise error

    async def body(stream: Owed, port: socket.socket) -> None:
        await send(port, b"one")
        await soon(lambda: stream.failure is not None)

    stream = carried(tmp_path, sink, body)
    assert not stream.reader_gone


def test_a_stream_given_up_is_not_waited_for(tmp_path: Path) -> None:
    may_read = threading.Event()

    async def body(stream: Owed, port: socket.socket) -> None:
        await send(port, b"one")
        await soon(lambda: stream.waits_for_reader)
        assert not await stream.over(0.01)
        stream.give_up()
        assert stream.arrived
        may_read.set()

    carried(tmp_path, lambda data: (may_read.wait(GENEROUS), None)[1], body)


# The outputs.


def tar_of(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def arrived(sent: bytes, size: int, sha256: str, *, late: bool = False) -> bytes:
    """What is handed on of a port that carries ``sent`` and ends, with that word of the guest's."""
    ours, theirs = socket.socketpair()
    arriving = ArrivingOutputs(ours)

    def guest() -> None:
        if not late:
            arriving.state(size, sha256)
        theirs.sendall(sent)
        if late:
            waiting.until(lambda: arriving.received >= len(sent))
            arriving.state(size, sha256)
        else:
            theirs.close()

    came = bytearray()
    thread = threading.Thread(target=guest, daemon=True)
    thread.start()
    try:
        arriving.carry(came.extend)
    finally:
        thread.join()
        theirs.close()
    return bytes(came)


FILES = {"r/a": b"", "r/b": bytes(1 << 20), "r/c": b"x" * 1025}


@pytest.mark.parametrize("late", [False, True])
def test_outputs_that_are_what_was_stated_are_home(late: bool) -> None:
    # ``late``: the port stays open, as a machine's does, and the word comes after the last byte.
    tar = tar_of(FILES)
    assert arrived(tar, len(tar), hashlib.sha256(tar).hexdigest(), late=late) == tar


def test_what_is_not_what_was_stated_is_an_error() -> None:
    tar = tar_of(FILES)
    right = hashlib.sha256(tar).hexdigest()
    flipped = tar[:1536] + bytes([tar[1536] ^ 1]) + tar[1537:]
    for sent, size, sha256, said in (
        (tar, len(tar), "0" * 64, "another SHA-256"),
        (flipped, len(tar), right, "another SHA-256"),
        (tar, len(tar) + 1, right, "bytes came"),
        (tar + b"\0", len(tar), right, "bytes came"),
        (b"", len(tar), right, "bytes came"),
    ):
        with pytest.raises(GuestError, match=said):
            arrived(sent, size, sha256)


def test_a_stream_cut_at_any_block_is_never_home() -> None:
    tar = tar_of({"r/a": b"", "r/b": bytes(2000), "r/c": b"x" * 1025})
    for cut in range(0, len(tar), 512):
        with pytest.raises(GuestError):
            arrived(tar[:cut], len(tar), hashlib.sha256(tar).hexdigest())


def test_outputs_that_nobody_takes_are_read_to_their_end() -> None:
    """An unpacking that has ended must not leave the guest in its last write."""
    tar = tar_of(FILES)
    ours, theirs = socket.socketpair()
    arriving = ArrivingOutputs(ours)
    arriving.state(len(tar), hashlib.sha256(tar).hexdigest())
    thread = threading.Thread(target=lambda: theirs.sendall(tar), daemon=True)
    thread.start()
    arriving.carry(lambda piece: None)
    thread.join()
    theirs.close()
    assert arriving.received == len(tar)
