"""`wgcell.Cell` and real machines: what a program does with one, from its beginning to its end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import wgcell
from wgcell.cell.folder import Folder

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]
REACHES = "import socket; socket.create_connection(('files.example.com', 443), timeout=20)"
ROGUE = """
import socket
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
while True:
    raw.send(bytes.fromhex("ffffffffffff0277670000020806") + bytes(46))
"""


async def in_one(state: Path) -> None:
    async with wgcell.Cell(state_dir=state, env={"GREETING": "hello"}, memory="256MiB") as cell:
        await cell.files.write(
            "a.py", b"import sys; print(6 * 7); print(sys.argv[1], file=sys.stderr)"
        )
        done = await cell.exec("python3", "a.py", "x", timeout=60, check=True)
        assert (done.stdout, done.stderr, done.exit_code) == (b"42\n", b"x\n", 0)
        assert await cell.files.read("a.py") == (await cell.exec("cat", "/work/a.py")).stdout
        assert [entry.name for entry in await cell.files.list("/work")] == ["a.py"]
        speaks = "echo $GREETING $NAME; pwd; id -u; exit 3"
        done = await cell.exec(
            "sh", "-c", speaks, env={"NAME": "you"}, workdir="/tmp", user="65534"
        )
        assert (done.text, done.exit_code) == ("hello you\n/tmp\n65534\n", 3)
        whole = os.urandom(2_000_000)
        assert (await cell.exec("cat", input=whole)).stdout == whole
        with pytest.raises(wgcell.TimedOut):
            await cell.exec("sleep", "600", timeout=1)
        with pytest.raises(wgcell.StateError):
            await cell.files.read("none")
        await with_a_terminal(cell)
        await what_it_may_reach(cell)
        await cell.pause()
        with pytest.raises(wgcell.StateError, match="paused"):
            await cell.exec("true")
        await cell.unpause()
        every = await asyncio.gather(*(cell.exec("echo", str(n)) for n in range(8)))
        assert [int(done.stdout) for done in every] == list(range(8))
    events = [event.name async for event in cell.events()]
    assert events[-1] == "ended" and events.count("session_opened") > 10
    with pytest.raises(wgcell.Ended):
        await cell.wait()


async def with_a_terminal(cell: wgcell.Cell) -> None:
    async with cell.spawn("sh", tty=(40, 120)) as shell:
        await shell.stdin.write(b"stty size; exit 5\n")
        assert b"40 120" in await shell.stdout.read_all()
        assert await shell.wait() == 5


async def what_it_may_reach(cell: wgcell.Cell) -> None:
    with pytest.raises(wgcell.Refused) as caught:
        await cell.exec("python3", "-c", REACHES, check=True)
    assert caught.value.rule == "files.example.com:443" and caught.value.cell == cell.id
    change = await cell.allow(caught.value.rule, seconds=60)
    assert change.until is not None
    assert any("files.example.com:443" in rule.rule for rule in await cell.policy())
    await cell.deny("files.example.com:443")
    with pytest.raises(wgcell.StateError):
        await cell.allow("no rule at all")


def test_what_a_program_does_with_a_cell(tmp_path: Path) -> None:
    asyncio.run(in_one(tmp_path))


def test_a_rogue_frame_is_an_error_of_its_own(tmp_path: Path) -> None:
    with wgcell.sync.Cell(state_dir=tmp_path, guest_walls="off") as cell:
        assert cell.exec("echo", "x").stdout == b"x\n"
        with pytest.raises(wgcell.Rogue) as caught:
            cell.exec("python3", "-c", ROGUE)
        assert caught.value.outcome == "rogue" and caught.value.exit_code == 120
        assert (Path(caught.value.folder) / "rogue.pcapng").exists()
    assert Folder(cell.folder).status() == "rogue"


def test_run_in_a_machine(tmp_path: Path) -> None:
    done = wgcell.run(
        "sh", "-c", "cat; echo no >&2; exit 4", input=b"yes", state_dir=tmp_path, remove=True
    )
    assert (done.exit_code, done.stdout, done.stderr) == (4, b"yes", b"no\n")
    assert done.usage.seconds > 0 and (done.usage.sent or 0) > 0
    assert not Path(done.folder).exists()
