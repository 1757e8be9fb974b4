"""A hostile guest against the supervisor's own walk, without a machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wgcell.cell.folder import CappedLog
from wgcell.cell.job import OnRogue
from wgcell.cell.states import Outcome, State
from wgcell.cell.streams import Stream
from wgcell.cell.supervisor import Supervisor
from wgcell.errors import GuestError, StateError
from wgcell.guest import protocol
from wgcell.vm.qemu.argv import Accelerator


class FolderStub:
    def __init__(self, path: Path) -> None:
        self.path, self.id, self.written = path, "cell", {}

    def discard(self, *names: str) -> None: ...

    def write(self, name: str, content: Any) -> None:
        self.written[name] = content

    def write_bytes(self, name: str, content: Any) -> None: ...


MADE: list[Any] = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while MADE:
        one = MADE.pop()
        for stream in one._streams.values():
            stream._log.close()
        one._diagnostics.close()
        if one._kill_switch is not None:
            one._kill_switch.close()
        with contextlib.suppress(OSError):
            one._log.close()


def supervisor(tmp_path: Path, told: list) -> Supervisor:
    job = SimpleNamespace(
        on_rogue=OnRogue.TERMINATE,
        outputs=(),
        guest_walls=frozenset(),
        grace=1,
        timeout=None,
        landing=None,
        memory=1 << 28,
        disk=1 << 30,
        quota=0,
    )
    acc = Accelerator.KVM
    around = SimpleNamespace(
        folder=FolderStub(tmp_path),
        accelerator=acc,
        vpn=None,
        image=SimpleNamespace(name="i", folder=tmp_path),
    )
    one = Supervisor(job, around, tell=told.append, stdout=lambda d: None, stderr=lambda d: None)
    MADE.append(one)
    for name in protocol.STREAMS:
        one._streams[name] = Stream(
            name, lambda d: None, CappedLog(tmp_path / f"{name}.log"), lambda: None
        )
    return one


def test_ready_again_and_again_writes_no_report_each_time(tmp_path: Path) -> None:
    async def body() -> None:
        told: list = []
        one = supervisor(tmp_path, told)
        one._state = State.STOPPING
        one._config = protocol.GuestConfig(
            0, "h", frozenset(), b"", b"\1" * 32, None, (), (), 1420, 0, (), "", False, (), (), ()
        )
        one._seen.relay_verified = one._seen.guest_ready = True
        one._on_guest(protocol.Report(dict.fromkeys(protocol.REPORTS, "x" * 24000)))
        for _ in range(100):
            with contextlib.suppress(GuestError):
                one._on_guest(protocol.parse(b"ready\n"))
        size = (tmp_path / "events.jsonl").stat().st_size
        assert size < 200_000, f"600 bytes of the guest's made {size} in the log"

    asyncio.run(body())


def test_a_failed_write_is_never_home_before_it_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        one = supervisor(tmp_path, [])
        one._state, one._outcome = State.RUNNING, None
        out = one._streams["stdout"]
        append = one._log.append

        def slow(event: str, **fields: Any) -> None:
            append(event, **fields)
            if fields.get("state") == "stopping":  # the thread, while the loop is in fdatasync
                out.failure = OSError(28, "No space left on device")
                out.delivered = 10
                one._loop_told = asyncio.get_running_loop().call_soon(one._hear_stream, "stdout")

        one._log.append = slow
        one._on_guest(protocol.Exited(0, 10, 0))
        while not one._causes.empty():
            await one._act(*one._causes.take())
            if one._causes.empty():
                await asyncio.sleep(0)
        assert one._outcome is Outcome.ERROR, one._outcome

    asyncio.run(body())


def test_a_log_that_fails_as_the_workload_exits_is_not_completed(tmp_path: Path) -> None:
    async def body() -> None:
        one = supervisor(tmp_path, [])
        append = one._log.append

        def full(event: str, **fields: Any) -> None:
            if fields.get("state") == "stopping":
                raise StateError("events.jsonl: No space left on device")
            append(event, **fields)

        one._log.append = full

        async def live() -> None:
            for name in protocol.STREAMS:
                ours, theirs = socket.socketpair()
                one._streams[name].carry(ours)
                theirs.close()
            one._state = State.RUNNING
            one._on_guest(protocol.Exited(0, 10, 0))

        one._live = live
        with pytest.raises(StateError):
            await one.run()
        assert one._around.folder.written["result.json"]["outcome"] == "error"

    asyncio.run(body())


def test_a_guest_may_not_owe_more_than_a_port_holds(tmp_path: Path) -> None:
    async def body() -> None:
        one = supervisor(tmp_path, [])
        one._state = State.RUNNING
        with pytest.raises(GuestError):
            one._on_guest(protocol.Exited(0, 2**53, 0))

    asyncio.run(body())


def test_what_came_before_the_end_buys_no_time(tmp_path: Path) -> None:
    async def body() -> None:
        one = supervisor(tmp_path, [])
        one._state = State.RUNNING
        out = one._streams["stdout"]
        out.delivered = 10 << 30
        one._on_guest(protocol.Exited(0, out.delivered + 100_000, 0))
        await one._act(*one._causes.take())
        now = one._seen.stopping_since + 20_000
        out.moved = now - 1  # a byte every 59 seconds
        one._watch_results(now, 1)
        assert not one._causes.empty()

    asyncio.run(body())


def test_standing_still_ourselves_loses_no_results(tmp_path: Path) -> None:
    """Ctrl-Z for two minutes."""

    async def body() -> None:
        one = supervisor(tmp_path, [])
        one._state = State.RUNNING
        one._on_guest(protocol.Exited(0, 100, 0))
        await one._act(*one._causes.take())
        one._watch_results(one._seen.stopping_since + 120, 120)
        assert one._causes.empty()

    asyncio.run(body())


def test_hard_links_over_themselves_keep_no_descriptor(tmp_path: Path) -> None:
    import io
    import tarfile

    from wgcell.cell import archive

    def header(kind: bytes) -> bytes:
        one = tarfile.TarInfo("out/a")
        one.type, one.linkname = kind, "out/a" if kind == tarfile.LNKTYPE else ""
        return one.tobuf(tarfile.GNU_FORMAT)

    tar = header(tarfile.REGTYPE) + 50 * header(tarfile.LNKTYPE) + bytes(1024)
    root = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    archive.unpack(io.BytesIO(tar), root, 1 << 30, allowed=["out"])
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(root)


def test_half_a_line_does_not_break_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wgcell.cell.events import EventLog, first_bad

    path, write, left = tmp_path / "events.jsonl", os.write, [10]
    log = EventLog(path, lambda event: None)
    log.append("one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: left[0]]))
        with pytest.raises(StateError):
            log.append("two")
    log.append("three")  # the end of the cell has made room
    log.close()
    assert first_bad(path.read_bytes().splitlines()) is None
