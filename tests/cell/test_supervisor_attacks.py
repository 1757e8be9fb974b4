"""A hostile guest, a full disk and a failing reader against the supervisor, without a machine."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.support.guests import BARE
from tests.support.supervisors import closed, supervisor, with_streams

from wgcell.cell.core import events as seen
from wgcell.cell.states import Outcome, State
from wgcell.cell.supervisor import Supervisor
from wgcell.errors import StateError
from wgcell.guest import protocol
from wgcell.guest.walls import Wall
from wgcell.relay import control as relay

pytestmark = pytest.mark.usefixtures(closed.__name__)


def test_ready_again_and_again_writes_no_report_each_time(tmp_path: Path) -> None:
    async def body() -> None:
        one = with_streams(supervisor(tmp_path))
        one.core.state = State.VERIFYING
        one.feed(seen.Booting(BARE, 1))
        one.feed(seen.FromRelay(relay.Verified()))
        one.feed(seen.FromGuest(protocol.Report(dict.fromkeys(protocol.REPORTS, "x" * 24000))))
        for _ in range(100):
            one.feed(seen.FromGuest(protocol.parse(b"ready\n")))
        size = (one.host.folder.path / "events.jsonl").stat().st_size
        assert size < 200_000, f"600 bytes of the guest's made {size} in the log"

    asyncio.run(body())


def test_a_failed_write_is_never_home_before_it_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        one = with_streams(supervisor(tmp_path))
        one.core.state = State.RUNNING
        out = one.outlets.streams["stdout"]
        append = one.log.append

        def slow(event: str, **fields: Any) -> None:
            append(event, **fields)
            if fields.get("state") == "stopping":  # the thread, while the loop is in fdatasync
                out.failure = OSError(28, "No space left on device")
                out.delivered = 10

        one.log.append = slow  # type: ignore[method-assign]
        one.feed(seen.FromGuest(protocol.Exited(0, 10, 0)))
        one.feed(one.outlets.look())
        assert one.core.outcome is Outcome.ERROR

    asyncio.run(body())


class Exits(Supervisor):
    """A cell whose workload exits as soon as it runs, and owes ten bytes."""

    async def live(self) -> None:
        with_streams(self)
        self.ports = [socket.socketpair() for _ in self.outlets.streams]
        for stream, (ours, _) in zip(self.outlets.streams.values(), self.ports, strict=True):
            stream.carry(ours)
        self.core.state = State.RUNNING
        self.feed(seen.FromGuest(protocol.Exited(0, 10, 0)))


def test_a_log_that_fails_as_the_workload_exits_is_not_completed(tmp_path: Path) -> None:
    async def body() -> None:
        one = supervisor(tmp_path, kind=Exits)
        assert isinstance(one, Exits)
        append = one.log.append

        def full(event: str, **fields: Any) -> None:
            if fields.get("state") == "stopping":
                for _, theirs in one.ports:
                    theirs.close()  # and the ten bytes never come
                raise StateError("events.jsonl: No space left on device")
            append(event, **fields)

        one.log.append = full  # type: ignore[method-assign]
        with pytest.raises(StateError):
            await one.run()
        written = one.host.folder.read("result.json")
        assert written is not None and written["outcome"] == "error"

    asyncio.run(body())


def test_an_action_that_fails_keeps_none_of_the_others_from_being_done(tmp_path: Path) -> None:
    """The event before a machine's end can't be written: the machine is ended all the same."""
    killed: list[bool] = []

    class Machine:
        def kill(self) -> None:
            killed.append(True)

    async def body() -> None:
        one = with_streams(supervisor(tmp_path, guest_walls=frozenset(Wall)))
        one.core.state = State.RUNNING
        one.launch.machine = Machine()  # type: ignore[assignment]

        def full(event: str, **fields: Any) -> None:
            raise StateError("events.jsonl: No space left on device")

        one.log.append = full  # type: ignore[method-assign]
        with pytest.raises(StateError):
            one.feed(seen.FromGuest(protocol.Changed("network", "a route")))
        assert killed == [True]

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
