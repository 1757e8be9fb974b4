"""A cell that somebody uses from the terminal: exec, cp and attach, and a terminal of its own.

Few machines, for each does a lot. What happens at the edges of the protocol is shown without one:
`tests/cell/sessions`, `tests/cli/test_exec.py`, `tests/cli/test_cp.py`, `tests/cli/test_raw.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.cells import WGCELL
from tests.support.ptys import at_a_terminal
from tests.support.waiting import GENEROUS, until

from wgcell.cell.control.session_client import SessionClient
from wgcell.cell.folder import Folder
from wgcell.errors import StateError
from wgcell.guest.channel import MOST_SESSIONS
from wgcell.guest.frames import Command

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


class Used:
    """A cell that runs in the background, and wgcell as its user types it."""

    def __init__(self, cells: Path, identity: str) -> None:
        self.folder = Folder(cells / identity)
        self.place = ("--state-dir", str(cells))

    def argv(self, verb: str, *words: str, command: tuple[str, ...] = ()) -> list[str]:
        named = [word.replace("CELL", self.folder.id, 1) for word in words]
        return [WGCELL, verb, *self.place, *named, *(("--", *command) if command else ())]

    def run(self, verb: str, *words: str, command: tuple[str, ...] = (), **how: Any) -> Any:
        how = {"capture_output": True, "timeout": GENEROUS, "input": b"", **how}
        return subprocess.run(self.argv(verb, *words, command=command), **how)

    def sh(self, script: str, *options: str, **how: Any) -> Any:
        return self.run("exec", *options, "CELL", command=("sh", "-c", script), **how)


@contextmanager
def used(cells: Path, *options: str, command: tuple[str, ...]) -> Iterator[Used]:
    argv = [WGCELL, "run", "-q", "-d", "--state-dir", str(cells), *options, "--", *command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one = Used(cells, done.stdout.strip())
    try:
        yield one
    finally:
        one.run("stop", "--now", "CELL")


def test_a_cell_in_use(tmp_path: Path) -> None:
    """One boot: what each part does leaves the others as they are."""
    with used(tmp_path, "-i", command=("cat",)) as cell:
        commands(cell)
        a_terminal(cell)
        a_client_that_dies(cell)
        many_at_once(cell)
        a_flood_that_nobody_reads(cell)
        paused(cell)
        files(cell, tmp_path)
        hostile_files(cell, tmp_path)
        the_workload(cell)
        result = cell.folder.read("result.json")
        assert result is not None and (result["outcome"], result["exit_code"]) == ("completed", 0)


def commands(cell: Used) -> None:
    done = cell.sh("id -un; pwd; echo $A; echo err >&2; exit 7", "-e", "A=1", "-u", "nobody")
    assert (done.stdout, done.stderr, done.returncode) == (b"nobody\n/work\n1\n", b"err\n", 7)
    assert cell.sh("pwd", "-w", "/tmp").stdout == b"/tmp\n"
    whole = os.urandom(1 << 20)
    assert cell.run("exec", "-i", "CELL", command=("cat",), input=whole).stdout == whole
    for code, command in ((127, "nothing"), (126, "/etc/passwd")):
        done = cell.run("exec", "CELL", command=(command,))
        assert done.returncode == code and command in done.stderr.decode()
    assert cell.sh("sleep 1 && touch done", "-d").returncode == 0
    until(lambda: cell.sh("test -e done").returncode == 0)


def a_terminal(cell: Used) -> None:
    words = cell.argv("exec", "-it", "CELL", command=("bash", "--norc"))
    with at_a_terminal(*words, rows=24, columns=80) as person:
        person.look(b"# ")
        assert person.is_raw
        person.type(b"tty; stty size; echo $TERM\r")
        person.look(b"24 80\r\nxterm\r\n")
        person.resize(50, 10_000)
        person.type(b"sh -c 'sleep 0.3; stty size'\r")
        person.look(b"50 10000\r\n")
        person.type(b"sh -c 'echo be''gun; exec sleep 1000'\r")
        person.look(b"begun\r\n")
        person.type(b"\x03")
        person.type(b"echo $?; exit 9\r")
        person.look(b"130\r\n")
        assert person.ended() == 9
        assert person.modes() == person.before


def a_client_that_dies(cell: Used) -> None:
    script = "trap 'echo $? >hup; exit' HUP; echo on; while :; do sleep 0.1; done"
    words = cell.argv("exec", "CELL", command=("sh", "-c", script))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"on\n"
        process.kill()
    until(lambda: cell.sh("test -e hup").returncode == 0)


def many_at_once(cell: Used) -> None:
    many = 200

    async def one(clients: list[SessionClient]) -> object:
        try:
            clients.append(await SessionClient.connect(cell.folder))
            cat = Command(("cat",), (), "", "", None, stdin=True)
            return await clients[-1].open(cat)
        except StateError as error:
            return str(error)

    async def body() -> None:
        clients: list[SessionClient] = []
        found = await asyncio.gather(*(one(clients) for _ in range(many)))
        refused = [one for one in found if isinstance(one, str)]
        assert len(refused) == many - MOST_SESSIONS
        assert all("64 sessions" in one or "others have sessions" in one for one in refused)
        assert cell.run("ps").returncode == 0
        sessions: list[Any] = [one for one in found if not isinstance(one, str)]
        for session in sessions:
            await session.stdin.write(b"%d" % id(session))
            await session.stdin.end()
        for session in sessions:
            assert await session.stdout.read_all() == b"%d" % id(session)
        for client in clients:
            await client.close()

    asyncio.run(asyncio.wait_for(body(), 3 * GENEROUS))


def a_flood_that_nobody_reads(cell: Used) -> None:
    with subprocess.Popen(
        cell.argv("exec", "CELL", command=("yes",)), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.read(2) == b"y\n"
        assert cell.sh("echo quick").stdout == b"quick\n"
        process.terminate()
        assert b"y" in process.stdout.read()
        assert process.wait(GENEROUS) == 128 + signal.SIGTERM


def paused(cell: Used) -> None:
    assert cell.run("pause", "CELL").returncode == 0
    done = cell.sh("true")
    assert done.returncode == 125 and b"wgcell unpause" in done.stderr
    assert cell.run("unpause", "CELL").returncode == 0
    assert cell.sh("true").returncode == 0


def files(cell: Used, here: Path) -> None:
    tree = here / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "large").write_bytes(os.urandom(20 << 20))
    (tree / "below/run").write_text("#!/bin/sh\necho ran\n")
    (tree / "below/run").chmod(0o755)
    (tree / "link").symlink_to("below/run")
    digest = hashlib.sha256((tree / "large").read_bytes()).hexdigest()
    assert cell.run("cp", str(tree), "CELL:new").returncode == 0
    done = cell.sh("sha256sum new/large | cut -d' ' -f1; new/link; stat -c %u:%a new/below/run")
    assert done.stdout.decode().split() == [digest, "ran", "0:755"]
    done = cell.run("cp", "CELL:/work/new", str(here / "back"))
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((here / "back/large").read_bytes()).hexdigest() == digest
    assert (here / "back/link").readlink() == Path("below/run")
    tar = cell.run("cp", "CELL:new/below", "-").stdout
    assert cell.run("cp", "-", "CELL:/tmp", input=tar).returncode == 0
    assert cell.sh("/tmp/below/run").stdout == b"ran\n"
    done = cell.run("cp", str(tree), "CELL:/no/such/place")
    assert done.returncode == 125 and b"No such file" in done.stderr


def hostile_files(cell: Used, here: Path) -> None:
    script = (
        "mkdir evil; cd evil; echo good >good; ln -s /etc/passwd out; ln -s ../.. up; mkfifo pipe;"
        "cp good suid; chmod 4755 suid; echo x >$(printf 'a\\033[2Jb')"
    )
    assert cell.sh(script).returncode == 0
    done = cell.run("cp", "CELL:evil", str(here / "evil"))
    assert done.returncode == 125 and b"control characters" in done.stderr
    assert not (here / "evil").exists()
    assert cell.sh("rm evil/a*").returncode == 0
    done = cell.run("cp", "CELL:evil", str(here / "evil"))
    assert done.returncode == 0 and b"left out" in done.stderr, done.stderr
    assert sorted(os.listdir(here / "evil")) == ["good", "suid"]
    assert (here / "evil/suid").stat().st_mode & 0o7777 == 0o755


def the_workload(cell: Used) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(cell.argv("attach", "CELL"), **pipes) as first,  # type: ignore[call-overload]
        subprocess.Popen(cell.argv("attach", "--no-stdin", "CELL"), **pipes) as looking,  # type: ignore[call-overload]
    ):
        until(lambda: b'"attach"' in (cell.folder.path / "events.jsonl").read_bytes())
        attaches = b'"kind":"attach"'
        until(lambda: (cell.folder.path / "events.jsonl").read_bytes().count(attaches) == 2)
        second = cell.run("attach", "CELL")
        assert second.returncode == 125 and b"somebody else holds" in second.stderr
        first.stdin.write(b"typed\n")
        first.stdin.flush()
        assert first.stdout.readline() == looking.stdout.readline() == b"typed\n"
        first.stdin.close()
        assert first.wait(GENEROUS) == looking.wait(GENEROUS) == 0
    until(lambda: not cell.folder.alive)


def test_a_terminal_of_the_cells_own_and_a_death(tmp_path: Path) -> None:
    """Typed as one types it; and then the supervisor is killed."""
    words = [WGCELL, "run", "-q", "-it", "--state-dir", str(tmp_path), "--", "bash", "--norc"]
    with at_a_terminal(*words, rows=24, columns=80) as person:
        person.look(b"# ", within=300)
        assert person.is_raw
        person.type(b"tty; stty size\r")
        person.look(b"/dev/pts/0\r\n24 80\r\n")
        person.type(b"sh -c 'echo be''gun; exec sleep 1000'\r")
        person.look(b"begun\r\n")
        person.type(b"\x03")
        person.type(b"echo $?\r")
        person.look(b"130\r\n")
        person.resize(30, 100)
        person.type(b"sh -c 'sleep 0.3; stty size'\r")
        person.look(b"30 100\r\n")
        person.send(signal.SIGKILL)
        person.process.wait(GENEROUS)
        until(lambda: person.modes() == person.before)
