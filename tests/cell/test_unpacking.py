"""The outputs' unpacking in its walls: what they hold, what bounds it, and what is believed of it.

What this can't show: an error of the kernel's own in a call that the walls allow.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.support.tars import (
    EXTENSIONS,
    HOSTILE,
    MIB,
    WHOLE,
    endless,
    member,
    tar_of,
    typed,
    unpack,
)
from tests.support.unpackings import ASKED, WITHIN, missing, stand_in, tree, unpacked

from wgcell.cell import archive, unpacking
from wgcell.cell.archive import Unpacked
from wgcell.cell.confinement import STAGES, Confined, Filters
from wgcell.cell.members import Reason
from wgcell.cell.streams import ArrivingOutputs
from wgcell.cell.unpacker import Task
from wgcell.cell.unpacking import Unpacking, judged
from wgcell.errors import GuestError, HostError, StateError

pytestmark = pytest.mark.process


def here(destination: Path, raw: bytes, **options: Any) -> Unpacked:
    """The same in this process, without a wall: the oracle."""
    members = unpacking.limit_of_members(1 << 30)
    stream = io.BytesIO(raw)
    return unpack(stream, destination, 1 << 30, members, ASKED, **options)


LINKS = tar_of(
    member("results/a", b"a"),
    member("results/out", change=typed(tarfile.SYMTYPE, "/etc")),
    member("results/known", change=typed(tarfile.SYMTYPE, "/usr/bin/x")),
    member("results/in", change=typed(tarfile.SYMTYPE, "a")),
    member("results/pipe", change=typed(tarfile.FIFOTYPE)),
)
TARS = {
    "whole": WHOLE,
    "empty": b"",
    "links": LINKS,
    "hostile": tar_of(*(one for one, _ in HOSTILE), member("results/after", b"x")),
    "odd names": tar_of(*(member(f"results/{chr(n)}\U0010ffff\n", b"") for n in range(256, 300))),
    "cut": WHOLE[:1700],
    "random": os.urandom(4096),
    "pax": tar_of(member("results/\u0101" * 60, b"x"), style=tarfile.PAX_FORMAT),
}


@pytest.mark.parametrize("name", TARS)
def test_behind_its_walls_the_same_comes_of_a_tar(tmp_path: Path, name: str) -> None:
    known = frozenset({("results/known", "/usr/bin/x")})
    raw = TARS[name]
    pieces = [raw[at : at + 1000] for at in range(0, len(raw), 1000)]
    came = unpacked(tmp_path / "behind", pieces, known=known)
    assert came == here(tmp_path / "here", raw, known_links=known)
    assert tree(tmp_path / "behind") == tree(tmp_path / "here")


def test_all_outputs_of_a_job_may_be_missing(tmp_path: Path) -> None:
    """1,024 of them with the longest names: that fits into the one line."""
    asked = ["/".join([f"{n:04}" + "\u00e9" * 120] * 16) for n in range(1024)]
    came = unpacked(tmp_path / "o", [bytes(1024)], asked)
    assert came.missing == tuple(asked) and came.complete


def test_the_longest_honest_word_fits() -> None:
    worst = [(reason.value, 10**6, ["\U0010ffff" * 400] * 3) for reason in Reason]
    counted = [dict(zip(("reason", "count", "examples"), one, strict=True)) for one in worst]
    word = {"refusals": counted, "left_out": counted, "missing": [*range(16_384)]}
    assert len(json.dumps(word)) < unpacking._LONGEST_LINE


# Bounds: of each extension of tar, with a MiB after a MiB of it.


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_extension_takes_the_hosts_processor(tmp_path: Path, extension: str) -> None:
    """At most 0.5 s for each MiB, ten times what they take; memory is bounded by the kernel."""
    start, block, words = EXTENSIONS[extension]
    given = 0

    def pieces() -> Iterator[bytes]:
        nonlocal given
        for piece in itertools.islice(endless(start, block), 25):
            given += len(piece)
            yield piece

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    came = unpacked(tmp_path / "o", pieces())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert words in came.stopped
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 10 + 0.5 * given / MIB


def test_its_processor_time_is_bounded_by_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "while True: pass")
    with pytest.raises(GuestError, match="more processor time"):
        unpacked(tmp_path / "o", [WHOLE], at_first=1)


def test_it_is_given_time_as_it_is_given_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control for the test above: the bound is one of the tar's size."""
    limits = []

    async def body() -> None:
        one = await Unpacking.start(tmp_path / "o", ["results", "*.x"], 1 << 30)

        def feed(take: Callable[[memoryview], None]) -> None:
            limits.append(resource.prlimit(one.pid, resource.RLIMIT_CPU)[0])
            take(memoryview(bytes(64 * MIB)))
            limits.append(resource.prlimit(one.pid, resource.RLIMIT_CPU)[0])

        await one.unpacked(feed, WITHIN)

    asyncio.run(body())
    assert limits == [20, 20 + 32]


def test_its_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "bytearray(80 << 20)")
    # Python 3.13 has no memory left for the error's own words.
    with pytest.raises(GuestError, match=r"MemoryError|lost sys\.stderr"):
        unpacked(tmp_path / "o", [WHOLE])


@pytest.mark.parametrize("body", ["while True: pass", "while os.read(0, 1 << 16) or True: pass"])
def test_one_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    stand_in(monkeypatch, body)
    with pytest.raises((StateError, GuestError)):
        unpacked(tmp_path / "o", [WHOLE, bytes(1024)], within=0.5)


def test_one_that_reads_nothing_holds_nobody_up_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "while True: os.sched_yield()")
    ended = threading.Event()

    async def body() -> None:
        one = await Unpacking.start(tmp_path / "o", ["results"], 1 << 30)

        def feed(take: Callable[[memoryview], None]) -> None:
            take(memoryview(bytes(64 * MIB)))  # more than the pipe holds
            ended.set()

        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await one.unpacked(feed, WITHIN)

    asyncio.run(body())
    assert ended.wait(60)


def test_it_ends_at_once_when_the_folder_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: nobody waits for the rest of the tar, which may never come."""
    stand_in(monkeypatch, "raise OSError(28, 'No space left on device')")
    more = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield WHOLE[:1024]
        more.wait(60)

    try:
        with pytest.raises(StateError, match="No space left"):
            unpacked(tmp_path / "o", pieces())
        assert not more.is_set()
    finally:
        more.set()


FULL = """
import asyncio, subprocess, sys
from pathlib import Path
from wgcell.cell.unpacking import Unpacking
from wgcell.errors import StateError
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
async def body():
    one = await Unpacking.start(place / "o", ["results"], 1 << 30)
    def feed(take):
        take(memoryview(sys.stdin.buffer.read()))
    try:
        await one.unpacked(feed, 60)
    except StateError as error:
        print(error.message)
asyncio.run(body())
"""


def test_a_disk_that_fills_up_meanwhile_is_said(tmp_path: Path) -> None:
    raw = tar_of(member("results/ok", b"ok"), member("results/large", os.urandom(4 * MIB)))
    argv = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-P", "-c", FULL]
    done = subprocess.run([*argv, str(tmp_path)], input=raw, capture_output=True, timeout=60)
    assert b"No space left on device" in done.stdout, done.stderr


def test_it_finds_this_code_where_we_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, and from a folder that is not the one it starts in."""
    source = Path(archive.__file__).parents[2]
    monkeypatch.chdir(source.parent)
    monkeypatch.setenv("PYTHONPATH", source.name)
    monkeypatch.setattr(unpacking, "_ARGV", (sys.executable, "-S", *unpacking._ARGV[1:]))
    assert unpacked(tmp_path / "o", [WHOLE]).complete


def test_it_is_told_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "tweet")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    seen = []

    async def body() -> None:
        one = await Unpacking.start(tmp_path / "o", ["results"], 1 << 30)
        seen.append(Path(f"/proc/{one.pid}/environ").read_bytes())
        await one.unpacked(lambda take: take(memoryview(WHOLE)), WITHIN)

    asyncio.run(body())
    assert b"LC_ALL=C.UTF-8\0" in seen[0]
    assert b"CANARY" not in seen[0]


# The walls: what a process that was taken over can do behind them, and without one of them.

CAN = {
    "reads": "os.open('/etc/passwd', os.O_RDONLY)",
    "reads by ..": "os.open('../../../../../../../../etc/passwd', os.O_RDONLY, dir_fd=root)",
    "reads by the old folder's ..": "os.open('../' * 9 + 'etc/passwd', 0, dir_fd=folder)",
    "writes": "os.open('{outside}', os.O_WRONLY)",
    "makes": "os.open('{outside}.new', os.O_WRONLY | os.O_CREAT)",
    "makes a folder": "os.mkdir('{outside}.folder')",
    "truncates": "os.truncate('{outside}', 0)",
    "truncates as it reads": "os.open('{outside}', os.O_RDONLY | os.O_TRUNC)",
    "changes modes": "os.chmod('{outside}', 0o777)",
    "changes times": "os.utime('{outside}', (1, 1))",
    "renames": "os.rename('{outside}', '{outside}.other')",
    "deletes": "os.unlink('{outside}')",
    "links": "os.symlink('x', '{outside}.link')",
    "speaks": "socket.socket()",
    "starts": "os.posix_spawn('/bin/true', ['true'], {{}})",
    "forks": "os._exit(0) if not os.fork() else None",
    "kills": "os.kill(os.getppid(), 0)",
}
NO_FILES = ("speaks", "starts", "forks", "kills")
INSIDE = {
    "makes": "os.close(os.open('made', os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=root))",
    "reads": "os.close(os.open('made', os.O_RDONLY, dir_fd=root))",
    "deletes": "os.unlink('made', dir_fd=root)",
    "makes folders": "os.mkdir('below', dir_fd=root)",
    "links": "os.symlink('x', 'link', dir_fd=root)",
    "sets modes": "os.fchmod(root, 0o755)",
    "sets times": "os.utime(root, (1, 1))",
}
GIVES_RIGHTS = {
    "a file's": "os.close(os.open('made', os.O_WRONLY | os.O_CREAT, 0o4755, dir_fd=root))",
    "a file's later": "os.fchmod(os.open('x', os.O_WRONLY | os.O_CREAT, dir_fd=root), 0o4755)",
    "a group's": "os.fchmod(os.open('x', os.O_WRONLY | os.O_CREAT, dir_fd=root), 0o2755)",
    "a folder's": "os.fchmod(root, 0o2755)",
}
"""What it makes is its user's, so a set-user-ID bit would be a right of the provider's."""
PROBE = """
import os, socket, sys
from wgcell.cell import confinement
folder = os.open(sys.argv[1], os.O_RDONLY)
def fails(*_):
    raise OSError(1, 'Operation not permitted')
for stage in sys.argv[2].split():
    setattr(confinement, dict(root='_enter', landlock='_landlock', seccomp='_filter')[stage], fails)
filters = confinement.Filters.compiled()
if sys.argv[3] == 'walls':
    confined = confinement.confine(folder, filters, 1 << 20)
    root, holds = confined.root, confined.holds
    assert set(confined.missing) == set(sys.argv[2].split()), confined.missing
else:
    root, holds = folder, False
for words in {attempts!r}:
    try:
        eval(words)
    except OSError as error:
        os.write(1, b'refused\\n')
    else:
        os.write(1, b'done\\n')
os.write(1, b'holds\\n' if holds else b'open\\n')
os._exit(0)
"""


def attempted(
    tmp_path: Path, attempts: Iterable[str], without: str = "", walls: str = "walls"
) -> list[str]:
    """What became of each attempt, and at last whether the walls are said to hold."""
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (tmp_path / "folder").mkdir(exist_ok=True)
    words = [one.format(outside=outside) for one in attempts]
    program = PROBE.replace("{attempts!r}", repr(words))
    argv = [sys.executable, "-P", "-c", program, str(tmp_path / "folder"), without, walls]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    said = done.stdout.split()
    assert done.returncode in (0, -31), done.stderr  # SIGSYS
    return said if done.returncode == 0 else [*said, "killed"]


SUFFICIENT = ["", "landlock", "seccomp", "root", "landlock seccomp"]


@pytest.mark.parametrize("without", SUFFICIENT)
@pytest.mark.parametrize(
    "what", [one for one in CAN if one not in ("speaks", "starts", "forks", "kills")]
)
def test_nothing_outside_the_folder_is_read_or_changed(
    tmp_path: Path, what: str, without: str
) -> None:
    said = attempted(tmp_path, [CAN[what]], without)
    assert said[0] in ("refused", "killed"), said
    assert (tmp_path / "outside").read_text() == "secret"
    assert sorted(os.listdir(tmp_path)) == ["folder", "outside"]


@pytest.mark.parametrize(
    "what", ["truncates", "truncates as it reads", "changes modes", "changes times", "renames"]
)
def test_what_an_older_landlock_does_not_know_the_filter_refuses(tmp_path: Path, what: str) -> None:
    """By itself: neither the root nor Landlock stands."""
    said = attempted(tmp_path, [CAN[what]], "root landlock")
    assert said[0] in ("refused", "killed"), said
    assert (tmp_path / "outside").read_text() == "secret"


@pytest.mark.parametrize("what", NO_FILES)
def test_no_socket_no_program_no_process(tmp_path: Path, what: str) -> None:
    assert attempted(tmp_path, [CAN[what]])[0] == "killed"


@pytest.mark.parametrize("without", ["", "landlock", "root"])
@pytest.mark.parametrize("what", GIVES_RIGHTS)
def test_nothing_it_makes_runs_with_our_rights(tmp_path: Path, what: str, without: str) -> None:
    assert attempted(tmp_path, [GIVES_RIGHTS[what]], without) == ["refused", "holds"]
    for one in (tmp_path / "folder", *(tmp_path / "folder").iterdir()):
        assert one.stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("what", GIVES_RIGHTS)
def test_without_walls_what_it_makes_can(tmp_path: Path, what: str) -> None:
    assert attempted(tmp_path, [GIVES_RIGHTS[what]], walls="none") == ["done", "open"]
    made = (tmp_path / "folder", *(tmp_path / "folder").iterdir())
    assert any(one.stat().st_mode & 0o6000 for one in made)


@pytest.mark.parametrize("what", CAN)
def test_without_walls_it_can(tmp_path: Path, what: str) -> None:
    """The control: each attempt is one that would succeed."""
    assert attempted(tmp_path, [CAN[what]], walls="none") == ["done", "open"]


@pytest.mark.parametrize("without", SUFFICIENT)
def test_within_the_folder_it_may(tmp_path: Path, without: str) -> None:
    assert attempted(tmp_path, INSIDE.values(), without) == ["done"] * len(INSIDE) + ["holds"]


@pytest.mark.parametrize("without", ["root landlock", "root seccomp", "root landlock seccomp"])
def test_what_is_not_confined_unpacks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    fails = [
        "def fails(*_):",
        "    raise OSError(1, 'Operation not permitted')",
        "names = dict(root='_enter', landlock='_landlock', seccomp='_filter')",
        f"for stage in {without.split()!r}: setattr(confinement, names[stage], fails)",
    ]
    stand_in(monkeypatch, "os.mkdir('unpacked')", "\n".join(fails))
    with pytest.raises(HostError, match="can't be confined on this machine: root: Operation"):
        unpacked(tmp_path / "o", [WHOLE])
    assert not os.listdir(tmp_path / "o")


def test_every_combination_of_walls_is_judged() -> None:
    for count in range(len(STAGES) + 1):
        for lost in itertools.combinations(STAGES, count):
            holds = "root" not in lost or not {"landlock", "seccomp"} & set(lost)
            assert Confined(0, dict.fromkeys(lost, "")).holds == holds


def test_this_machine_lacks_no_wall(tmp_path: Path) -> None:
    """Where the tests run, all of them are tested."""
    unpacked(tmp_path / "o", [WHOLE])
    assert set(missing) <= {"landlock"}


def test_one_that_was_taken_over_is_a_guests_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "socket.socket()")
    with pytest.raises(GuestError, match="what no unpacking does"):
        unpacked(tmp_path / "o", [WHOLE])


def test_libseccomp_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filters, "compiled", classmethod(lambda cls: cls()))
    assert unpacked(tmp_path / "o", [WHOLE]).complete
    assert "libseccomp" in missing["seccomp"]


# Its word: nothing is believed that could not be.

TASK = Task(ASKED, 1000, 100, frozenset(), Filters())
HONEST = asdict(Unpacked(3, 2, 1, 1000, (), (), (), "")) | {
    "refusals": [{"reason": "an absolute path", "count": 2, "examples": ["/x", "/y"]}],
    "left_out": [],
    "missing": [1],
}


def test_an_honest_word_is_taken() -> None:
    said = judged(json.loads(json.dumps(HONEST)), TASK)
    assert (said.files, said.missing, said.refused) == (3, ("a/b/c.txt",), 2)


REFUSAL = HONEST["refusals"][0]
LIES: list[dict[str, Any]] = [
    *(
        {name: value}
        for name in ("files", "folders", "links", "bytes")
        for value in (-1, 10**9, 1.5, True, "1", None)
    ),
    *({"missing": value} for value in ([2], [-1], [1, 0], [0, 0], "01", {"0": 1}, [True], 1)),
    *({"stopped": value} for value in (None, 1, "x\n", "x\x1b[2J", "x" * 301)),
    *({"refusals": value} for value in (1, {}, [1], [REFUSAL] * 17, [[]], [{}])),
    *(
        {"refusals": [REFUSAL | change]}
        for change in (
            {"reason": "all is well"},
            {"reason": None},
            {"reason": []},
            {"count": 101},
            {"count": -1},
            {"examples": ["a"] * 4},
            {"examples": ["a\n"]},
            {"examples": [1]},
            {"examples": "abc"},
            {"examples": ["a" * 4001]},
        )
    ),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: ascii(lie)[:60])
def test_a_word_that_can_not_be_is_refused(lie: dict[str, Any]) -> None:
    with pytest.raises(GuestError, match="can't be"):
        judged(HONEST | lie, TASK)


@pytest.mark.parametrize("name", HONEST)
def test_a_word_that_lacks_a_field_is_refused(name: str) -> None:
    with pytest.raises(GuestError):
        judged({key: value for key, value in HONEST.items() if key != name}, TASK)


@pytest.mark.parametrize(
    "said",
    [
        "b''",
        "b'no json\\n'",
        "b'[]\\n'",
        "b'{}\\n'",
        "b'[' * 100000 + b'\\n'",
        "b'x' * (2 << 20)",
        "b'{\"files\": 1}\\n'",
    ],
)
def test_no_word_at_all_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    stand_in(monkeypatch, f"os.write(1, {said}); os._exit(0)")
    with pytest.raises(GuestError):
        unpacked(tmp_path / "o", [WHOLE])


def test_what_did_not_come_as_stated_is_an_error_whatever_it_unpacks_to(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    arriving = ArrivingOutputs(ours)
    arriving.state(len(WHOLE), hashlib.sha256(WHOLE + b"x").hexdigest())
    theirs.sendall(WHOLE)

    async def body() -> None:
        one = await Unpacking.start(tmp_path / "o", ASKED, 1 << 30)
        with pytest.raises(GuestError, match="another SHA-256"):
            await one.unpacked(arriving.carry, WITHIN)

    asyncio.run(body())
    theirs.close()


def test_each_reason_has_words_of_its_own() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason.__members__)
