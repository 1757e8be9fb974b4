"""A cell for a program with an event loop. The cells have no machine; their programs are real."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import soon, until

import wgcell
from wgcell.cell.folder import Folder, all_cells
from wgcell.client import cell as cell_module
from wgcell.errors import (
    CommandFailed,
    Ended,
    HostError,
    JobError,
    NeverRan,
    OutcomeUnknown,
    Refused,
    StateError,
    TimedOut,
    Unverified,
)

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("machineless")]


def lived(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


def result_of(cell: wgcell.Cell) -> dict[str, Any]:
    return Folder(cell.folder).read("result.json") or {}


def test_a_cell_lives_as_long_as_its_context(machineless: Path) -> None:
    async def body() -> None:
        said: list[str] = []
        async with wgcell.Cell(name="one", allow=["a.example.com:443"], remark=said.append) as cell:
            assert cell.folder.parent == machineless and cell.id.startswith("one-")
            assert await cell.state() == "running"
            assert any("allow a.example.com:443" in sentence for sentence in said)
        assert await cell.state() == "cancelled"
        assert result_of(cell)["reason"].startswith("the program that has started the cell")
        with pytest.raises(StateError, match="started before"):
            await cell.start()

    lived(body)


def test_a_command_runs_to_its_end() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            done = await cell.exec(
                "sh", "-c", "cat; echo $A >&2; exit 3", input="in", env={"A": "b"}
            )
            assert (done.exit_code, done.stdout, done.stderr) == (3, b"in", b"b\n")
            assert (done.cell, done.command[0], done.truncated) == (cell.id, "sh", False)
            assert done.usage.seconds > 0 and done.text == "in"
            done = await cell.exec("head", "-c", "1000000", "/dev/zero", most=1000)
            assert (len(done.stdout), done.truncated, done.exit_code) == (1000, True, 0)
            assert (
                await cell.exec("sh", "-c", "exec <&-; sleep 0", input=b"x" * 10**6)
            ).exit_code == 0
            with pytest.raises(CommandFailed) as caught:
                await cell.exec("sh", "-c", "echo no; exit 9", check=True)
            assert (caught.value.exit_code, caught.value.stdout) == (9, b"no\n")
            assert caught.value.cell == cell.id and caught.value.folder == str(cell.folder)
            with pytest.raises(StateError, match="the guest can't start it"):
                await cell.exec("/nonexistent")
            for words in ((), ("",), ("a\0",)):
                with pytest.raises(JobError):
                    await cell.exec(*words)

    lived(body)


def test_many_commands_at_once() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            every = await asyncio.gather(*(cell.exec("echo", str(n)) for n in range(20)))
            assert [int(done.stdout) for done in every] == list(range(20))

    lived(body)


def test_a_command_whose_time_is_up_is_killed() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            with pytest.raises(TimedOut, match=r"ran longer than 0\.2 s") as caught:
                await cell.exec("sh", "-c", "echo $$ >pid; exec sleep 600", timeout=0.2)
            assert (caught.value.outcome, caught.value.exit_code) == ("timeout", 124)
            pid = int((cell.folder / "work/pid").read_text())
            await soon(lambda: not Path(f"/proc/{pid}").exists(), "the command's end")
            with pytest.raises(TimedOut):
                await cell.exec("sh", "-c", "exec sleep 600 >&- 2>&-", timeout=0.2)
            assert await cell.state() == "running"

    lived(body)


def test_a_command_to_speak_with() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            async with cell.spawn("cat") as process:
                await process.stdin.write(b"one")
                assert await process.stdout.read() == b"one"
                await process.stdin.end()
                assert await process.wait() == 0 and await process.stdout.read() == b""
            async with cell.spawn("sleep", "600") as process:
                await process.signal(signal.SIGTERM)
                assert await process.wait() == 128 + signal.SIGTERM
            async with cell.spawn("sh", "-c", "echo $$ >pid; exec sleep 600") as process:
                pid = await soon(lambda: read_pid(cell.folder / "work/pid"))
            await soon(lambda: not Path(f"/proc/{pid}").exists(), "what is left gets SIGHUP")
            process = cell.spawn("true")
            with pytest.raises(StateError, match="not started"):
                await process.wait()

    lived(body)


def read_pid(path: Path) -> int:
    try:
        return int(path.read_text() or "0")
    except OSError:
        return 0


def test_files_are_read_written_and_listed() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            files, work = cell.files, cell.folder / "work"
            await files.write("a.py", "print(1)\n")
            await files.write("a.py", b"print(2)\n", mode=0o700)
            assert (work / "a.py").read_text() == "print(2)\n"
            assert (work / "a.py").stat().st_mode & 0o777 == 0o700
            assert await files.read("a.py") == b"print(2)\n"
            (work / "sub").mkdir()
            await files.write("sub/b", b"x" * 1_000_000)
            assert await files.read("sub/b") == b"x" * 1_000_000
            (work / "link").symlink_to("a.py")
            entries = {entry.name: entry for entry in await files.list()}
            assert {name: entry.kind for name, entry in entries.items()} == {
                "a.py": "file",
                "sub": "folder",
                "link": "link",
            }
            assert (entries["a.py"].size, entries["a.py"].mode) == (9, 0o700)
            assert [entry.name for entry in await files.list("sub")] == ["b"]
            for path, says in (("none", "none"), ("sub", "no plain file"), ("link", "no plain")):
                with pytest.raises(StateError, match=says):
                    await files.read(path)
            with pytest.raises(StateError, match="sub/b: more than"):
                await files.read("sub/b", most=10)
            with pytest.raises(StateError, match="9 bytes, more than 5"):
                await files.read("a.py", most=5)
            with pytest.raises(TimedOut, match="sub/b ran longer"):
                await files.read("sub/b", timeout=0.0)
            with pytest.raises(StateError, match="none"):
                await files.write("none/c", b"")
            with pytest.raises(StateError, match="none"):
                await files.list("none")
            for path in ("", "a\0"):
                with pytest.raises(JobError):
                    await files.read(path)
            with pytest.raises(JobError):
                await files.write("..", b"")

    lived(body)


def test_events_as_they_come_and_from_the_record() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            first = [event async for event in cell.events(follow=False)]
            assert [event.seq for event in first] == list(range(len(first)))
            assert first[-1].name == "state" and first[-1].fields["state"] == "running"
            assert abs(first[-1].time - time.time()) < 60
            heard: list[wgcell.Event] = []

            async def follow() -> None:
                async for event in cell.events(len(first)):
                    heard.append(event)

            following = asyncio.create_task(follow())
            await cell.pause()
            await soon(lambda: heard)
            assert (heard[0].name, heard[0].seq) == ("paused", len(first))
            with pytest.raises(StateError, match="the cell is paused"):
                await cell.exec("true")
            await cell.unpause()
            await cell.stop()
            await following
        assert heard[-1].name == "ended"
        late = [event async for event in cell.events(len(first))]
        assert late == heard

    lived(body)


def test_what_was_refused_is_told_with_the_rule_that_would_allow_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = wgcell.Refusal("files.example.com:443", "files.example.com:443", "no rule", 0.0)

    async def refused(self: wgcell.Cell, since: float) -> tuple[wgcell.Refusal, ...]:
        assert abs(since - time.time()) < 60
        return (refusal,)

    monkeypatch.setattr(cell_module.Cell, "refusals", refused)

    async def body() -> None:
        async with wgcell.Cell() as cell:
            assert (await cell.exec("true", check=True)).exit_code == 0
            with pytest.raises(
                Refused, match=r"refused files\.example\.com:443: no rule"
            ) as caught:
                await cell.exec("false", check=True)
            assert caught.value.rule == "files.example.com:443"
            assert "to allow it: files.example.com:443" in str(caught.value)

    lived(body)


@pytest.mark.parametrize(
    ("command", "kind", "says"),
    [
        ("unverified", Unverified, "unverified: nobody answered"),
        ("die", NeverRan, "its supervisor died before the workload was released"),
        ("fault", HostError, "a fault of wgcell's own"),
    ],
)
def test_what_never_ran_is_safe_to_try_again(
    machineless: Path, command: str, kind: type[Exception], says: str
) -> None:
    async def body() -> None:
        with pytest.raises(kind, match=says) as caught:
            async with wgcell.Cell(command):
                raise AssertionError("it has started")
        if kind is not HostError:
            (folder,) = all_cells(machineless)
            assert isinstance(caught.value, NeverRan)
            assert (caught.value.cell, caught.value.folder) == (folder.id, str(folder.path))

    lived(body)


def test_an_error_of_the_job_is_raised_as_it_is() -> None:
    async def body() -> None:
        with pytest.raises(JobError, match=r"^memory: found 'much'"):
            await wgcell.Cell(memory="much").start()

    lived(body)


def test_a_supervisor_that_dies_leaves_the_outcome_unknown() -> None:
    async def body() -> None:
        async with wgcell.Cell("die-late") as cell:
            with pytest.raises(OutcomeUnknown) as caught:
                await cell.exec("sleep", "600")
            assert caught.value.cell == cell.id
            with pytest.raises(OutcomeUnknown):
                await cell.wait()
            with pytest.raises(StateError, match="can't be reached"):
                await cell.pause()

    lived(body)


def test_a_command_of_its_own_is_waited_for() -> None:
    async def body() -> None:
        async with wgcell.Cell("exit", "7") as cell:
            done = await cell.wait()
            assert (done.exit_code, done.command) == (7, ("exit", "7"))
        async with wgcell.Cell() as cell:
            await cell.stop()
            with pytest.raises(Ended) as caught:
                await cell.wait()
            assert (caught.value.outcome, caught.value.exit_code) == ("cancelled", 130)
            with pytest.raises(Ended):
                await cell.exec("true")

    lived(body)


def test_a_cell_that_ends_under_a_command_says_how() -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            running = asyncio.create_task(cell.exec("sh", "-c", "echo $$ >pid; exec sleep 600"))
            await soon(lambda: read_pid(cell.folder / "work/pid"))
            await cell.stop()
            with pytest.raises(Ended) as caught:
                await running
            assert caught.value.outcome == "cancelled"

    lived(body)


def test_whoever_is_cancelled_while_it_starts_leaves_no_cell(machineless: Path) -> None:
    async def body() -> None:
        cell = wgcell.Cell("slow")
        starting = asyncio.create_task(cell.start())
        (folder,) = await soon(lambda: all_cells(machineless))
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not folder.alive and result_of(cell)["outcome"] == "cancelled"

    lived(body)


def test_a_detached_cell_lives_on_and_is_found_again() -> None:
    async def first() -> str:
        async with wgcell.Cell(name="one", detach=True) as cell:
            return cell.id

    async def second(name: str) -> None:
        async with wgcell.connect("one") as cell:
            assert cell.id == name and (await cell.exec("echo", "x")).stdout == b"x\n"
        assert await cell.state() == "running", "whoever connects owns nothing"
        await wgcell.connect(name).stop()
        assert await cell.state() == "cancelled"
        with pytest.raises(StateError, match="no cell 'two'"):
            wgcell.connect("two")

    name = asyncio.run(first())
    asyncio.run(second(name))


def test_the_folder_goes_if_it_is_to(machineless: Path) -> None:
    async def body() -> None:
        async with wgcell.Cell(remove=True) as cell:
            assert cell.folder.exists()
        assert not cell.folder.exists()
        async with wgcell.Cell("exit", "0", remove=True, detach=True) as cell:
            pass
        until(lambda: not cell.folder.exists())

    lived(body)


def test_what_was_not_started_has_no_id() -> None:
    cell = wgcell.Cell()
    with pytest.raises(StateError, match="has not been started"):
        _ = cell.id


def test_nothing_is_left_open(machineless: Path) -> None:
    async def body() -> None:
        async with wgcell.Cell() as cell:
            await cell.exec("true")

    lived(body)
    before = sorted(os.listdir("/proc/self/fd"))
    lived(body)
    assert sorted(os.listdir("/proc/self/fd")) == before
