"""The requester's command in its root and within its walls, on this kernel and without a machine.

A root of one static program: nothing else is there to be executed, so what set it up was our own.
Needs root, for namespaces and mounts; each test's are in a process of their own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.inner import CONFINED, OPEN, Inner, config, shell

from wgcell.guest import protocol
from wgcell.guest.channel import WINDOW
from wgcell.guest.frames import Hangup, Signal, Size, Terminal
from wgcell.guest.walls import Wall

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts in the first user namespace"),
]

BOTH = pytest.mark.parametrize("walls", [CONFINED, OPEN], ids=["confined", "open"])


def started(
    root: Path,
    *command: str,
    walls: frozenset[Wall] = CONFINED,
    then: Callable[[Inner], None] = lambda inner: None,
) -> tuple[str, str, int]:
    """What a command printed, what was said of it, and its exit code."""
    with Inner(root, config(*command, walls=walls)) as inner:
        then(inner)
        code = inner.ended().code
        return inner.printed["stdout"].decode(), inner.printed["stderr"].decode(), code


def test_an_image_with_one_static_program_runs_and_sees_its_walls(bare: Path) -> None:
    out, said, code = started(bare, "/see", "a b", "")
    assert (said, code) == ("", 7), out
    lines = out.splitlines()
    assert "cwd /work" in lines and "parent 0, group 1, session 1" in lines
    assert "arg a b" in lines and "arg " in lines and "env A=x y" in lines
    assert "env HOME=/root" in lines and sum(line.startswith("env ") for line in lines) == 4
    # docker's list without NET_RAW, MKNOD and AUDIT_WRITE, and nothing to inherit.
    kept = f"{0x800405FB:016x}"
    caps = dict(line.split(":\t") for line in lines if line.startswith("Cap"))
    assert caps == {"CapInh": "0" * 16, "CapPrm": kept, "CapEff": kept, "CapBnd": kept,
                    "CapAmb": "0" * 16}  # fmt: skip
    # glibc keeps 32 and 33 to itself: what this process inherited of them, nobody can change.
    (ignored,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    assert ignored & ~(0b11 << 31) == 0
    (blocked,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))
    assert blocked & ~(0b11 << 31) == 0
    assert "0" in lines  # oom_score_adj
    assert "initramfs 0" in lines and "core_pattern -1" in lines and "sysfs -1" in lines
    assert not [line for line in lines if line.startswith("open ")]
    # Its init was forked from the agent, and still holds what the agent knew.
    assert [line for line in lines if line.startswith("init ")] == ["init -1"] * 5


def test_no_signal_of_the_workloads_ends_its_init(bare: Path) -> None:
    out, said, code = started(bare, "/see", "end init")
    assert (said, code) == ("", 7), out


@BOTH
def test_a_shell_that_is_no_program_is_tried_once(bare: Path, walls: frozenset[Wall]) -> None:
    (bare / "bin").mkdir()
    for path in (bare / "bin/sh", bare / "script"):
        path.write_text("no program\n")
        path.chmod(0o755)
    out, said, code = started(bare, "/script", walls=walls)
    assert (out, code) == ("", 126)
    assert said == "wgcell: /script: Exec format error\n"


@BOTH
def test_an_order_to_end_reaches_the_process_group_and_the_commands_code_comes_back(
    bare: Path, walls: frozenset[Wall]
) -> None:
    def terminate(inner: Inner) -> None:
        inner.until_printed(b"arg family")
        inner.order(protocol.TERMINATE)

    # The parent waits for its child, which hears the signal by itself.
    out, _, code = started(bare, "/see", "family", walls=walls, then=terminate)
    assert out.count("term\n") == 2 and code == 9


@BOTH
def test_a_command_that_nobody_hears_ends_by_sigpipe(bare: Path, walls: frozenset[Wall]) -> None:
    """No process of ours keeps the other end of its streams."""
    _, _, code = started(
        bare, "/see", "talk", walls=walls, then=lambda inner: inner.order(protocol.closed("stdout"))
    )
    assert code == 128 + signal.SIGPIPE


@BOTH
def test_a_signal_that_comes_at_once_is_not_lost(bare: Path, walls: frozenset[Wall]) -> None:
    """Before the command is there, and before it leads a process group."""
    out, said, code = started(
        bare, "/see", "wait", walls=walls, then=lambda inner: inner.order(protocol.TERMINATE)
    )
    assert (said, code) in [("", 128 + signal.SIGTERM), ("", 9)], out


@BOTH
@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("see", 127),
        ("/none", 127),
        ("/text", 126),
        ("/work", 126),
        ("A=b", 127),
        ("--version", 127),
    ],
)
def test_a_command_that_can_not_be_started(
    bare: Path, walls: frozenset[Wall], word: str, code: int
) -> None:
    out, said, ended = started(bare, word, walls=walls)
    assert (out, ended) == ("", code)
    assert said.startswith(f"wgcell: {word}: ") and said.count("\n") == 1


@BOTH
@pytest.mark.parametrize(("order", "code"), [(protocol.TERMINATE, 0), (protocol.KILL, 137)])
def test_without_a_command_it_waits_for_an_order_to_end(
    bare: Path, walls: frozenset[Wall], order: bytes, code: int
) -> None:
    assert started(bare, walls=walls, then=lambda inner: inner.order(order)) == ("", "", code)


def test_namespaces_that_can_not_be_made_are_named(bare: Path) -> None:
    (bare / "sys").rmdir()
    with (
        pytest.raises(AssertionError, match=r"namespaces could not be made: .*mount: .*/mnt/sys"),
        Inner(bare, config("/see")) as inner,
    ):
        inner.process.wait()


# As session 0.


def test_the_workload_reads_what_session_0_brings(furnished: Path) -> None:
    with Inner(furnished, config("cat", stdin=True)) as inner:
        sent = os.urandom(2 * WINDOW + 5)
        inner.opener.write(0, sent)
        inner.opener.end(0)
        assert inner.ended() == protocol.Exited(0, len(sent), 0)
        assert inner.printed["stdout"] == sent


def test_without_it_the_workload_reads_nothing_and_no_credit_is_given(furnished: Path) -> None:
    with Inner(furnished, config("sh", "-c", "cat; echo over; sleep 1000")) as inner:
        inner.until_printed(b"over\n")
        inner.opener.write(0, bytes(WINDOW))
        assert inner.opener.run(shell("echo on")).stdout == b"on\n"
        assert inner.opener.heard[0].credit == 0


def test_signals_reach_the_workloads_process_group(furnished: Path) -> None:
    text = "trap 'echo parent; exit 5' INT; sh -c \"trap 'echo child' INT; echo on; read a\"; wait"
    with Inner(furnished, config("sh", "-c", text, stdin=True)) as inner:
        inner.until_printed(b"on\n")
        inner.opener.send(Signal(0, signal.SIGINT))
        inner.opener.end(0)
        assert inner.ended().code == 5
        assert b"child\n" in inner.printed["stdout"] and b"parent\n" in inner.printed["stdout"]


def test_the_workload_may_have_a_terminal(furnished: Path) -> None:
    text = "tty; stty size; echo err >&2; trap 'stty size; exit 3' WINCH; echo on; "
    text += "while :; do sleep 0.01; done"
    asked = config("sh", "-c", text, stdin=True, terminal=Terminal(24, 80))
    with Inner(furnished, asked) as inner:
        inner.until_printed(b"on\r\n")
        inner.opener.send(Size(0, Terminal(30, 100)))
        ended = inner.ended()
        said = b"/dev/pts/0\r\n24 80\r\nerr\r\non\r\n30 100\r\n"
        assert inner.printed["stdout"] == said
        assert ended == protocol.Exited(3, len(said), 0)


def test_a_terminal_that_nobody_reads_any_more_is_hung_up(furnished: Path) -> None:
    asked = config("sh", "-c", "echo on; cat", stdin=True, terminal=Terminal(24, 80))
    with Inner(furnished, asked) as inner:
        inner.until_printed(b"on\r\n")
        inner.order(protocol.closed("stdout"))
        assert inner.ended().code == 129


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_without_a_command_signals_end_it(furnished: Path, number: int) -> None:
    with Inner(furnished, config()) as inner:
        inner.opener.send(Signal(0, signal.SIGUSR1))
        inner.opener.send(Hangup(0))
        assert inner.opener.run(shell("echo on")).stdout == b"on\n"
    with Inner(furnished, config()) as inner:
        inner.opener.send(Signal(0, number))
        assert inner.ended().code == (137 if number == signal.SIGKILL else 0)


@pytest.mark.parametrize("walls", [CONFINED, OPEN], ids=["confined", "open"])
def test_sessions_end_with_the_workload_and_say_so_first(
    furnished: Path, walls: frozenset[Wall]
) -> None:
    with Inner(furnished, config("sh", "-c", "read a; exit 8", stdin=True, walls=walls)) as inner:
        opener = inner.opener
        reader = opener.open(shell("trap '' TERM HUP; echo on; sleep 1000"))
        flood = opener.open(shell("yes"), reads=False)
        gone = opener.open(shell("trap '' HUP; echo on; sleep 1000"))
        for session in (reader, gone):
            opener.until(lambda session=session: opener.heard[session].stdout)
        opener.send(Hangup(gone))
        opener.end(0)
        # Both say so before the workload's exit is reported, which waits in another port.
        assert inner.ended().code == 8
        opener.port.settimeout(0)
        opener.until(lambda: opener.heard[reader].over and opener.heard[flood].over, "at once")
        assert (opener.heard[reader].code, opener.heard[flood].code) == (137, 137)
        # The port is served on: nothing begins any more.
        opener.port.settimeout(None)
        assert opener.run(shell("true")).refused == "the workload has ended"


def test_a_session_that_is_not_read_holds_up_the_workloads_end_no_longer_than_said(
    furnished: Path,
) -> None:
    with Inner(furnished, config("sh", "-c", "read a", stdin=True)) as inner:
        opener = inner.opener
        opener.end(0)
        for _ in range(8):
            # Beyond what the sockets hold; and nothing of it is read before the end.
            opener.open(shell("yes"), reads=False)
        assert inner.ended().code in (0, 1)
