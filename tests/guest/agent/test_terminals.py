"""Terminals of sessions, on this kernel and without a machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.support.inner import Inner, config, shell
from tests.support.openers import Opener, command
from tests.support.waiting import until

from wgcell.guest.frames import Hangup, Signal, Size, Terminal

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts in the first user namespace"),
]


def test_a_terminal_has_a_name_a_size_and_a_session_of_its_own(opener: Opener) -> None:
    text = "tty; stty size; echo $TERM; ls -l /proc/$$/fd | grep -c pts; ps -o tty,args"
    session = opener.open(shell(text, terminal=Terminal(24, 80), stdin=True))
    heard = opener.until_over(session)
    lines = heard.stdout.decode().split("\r\n")
    assert lines[:4] == ["/dev/pts/0", "24 80", "xterm", "3"] and heard.stderr == b""
    assert any(re.match(r"136,0 +.*sh -c", line) for line in lines)


def test_a_terminals_size_follows(opener: Opener) -> None:
    session = opener.open(command("/see", "sizes", terminal=Terminal(0, 0)))
    opener.until(lambda: opener.heard[session].stdout.endswith(b"size 0 0\r\n"))
    for size in (Terminal(50, 10_000), Terminal(65_535, 65_535), Terminal(0, 0)):
        opener.send(Size(session, size))
        said = b"size %d %d\r\n" % (size.rows, size.columns)
        opener.until(lambda said=said: opener.heard[session].stdout.endswith(said))
    opener.send(Hangup(session))
    assert opener.until_over(session).code == 129


def test_control_c_reaches_the_foreground_process_group(opener: Opener) -> None:
    size = Terminal(24, 80)
    session = opener.open(command("sh", terminal=size, stdin=True))
    opener.write(session, b"sh -c 'echo b''egun; exec sleep 1000'\n")
    opener.until(lambda: b"begun\r\n" in opener.heard[session].stdout)
    opener.write(session, b"\x03")
    # The shell, in another group, goes on.
    opener.write(session, b"echo $?-a''b\n")
    opener.until(lambda: b"130-ab\r\n" in opener.heard[session].stdout)
    opener.write(session, b"exit 9\n")
    assert opener.until_over(session).code == 9


def test_the_end_of_a_terminals_input_is_a_character(opener: Opener) -> None:
    session = opener.open(command("cat", terminal=Terminal(24, 80), stdin=True))
    opener.write(session, b"line\n")
    opener.end(session)
    heard = opener.until_over(session)
    assert heard.code == 0 and heard.stdout.count(b"line\r\n") == 2


def test_a_terminal_without_input_reads_nothing(opener: Opener) -> None:
    heard = opener.run(shell("cat; tty <&1", terminal=Terminal(24, 80)))
    assert (heard.stdout, heard.code) == (b"/dev/pts/0\r\n", 0)


def test_a_terminals_hangup_reaches_whoever_is_in_the_foreground(opener: Opener) -> None:
    text = "sh -c \"trap 'echo hup >/work/heard; exit' HUP; echo on; while :; do :; done\""
    session = opener.open(shell(text, terminal=Terminal(24, 80), stdin=True))
    opener.until(lambda: b"on" in opener.heard[session].stdout)
    opener.send(Hangup(session))
    assert opener.until_over(session).code == 129
    heard = opener.run(shell("until [ -s heard ]; do sleep 0.01; done; cat heard"))
    assert heard.stdout == b"hup\n"


def test_a_terminal_is_its_users(opener: Opener) -> None:
    heard = opener.run(shell("ls -ln $(tty <&2); echo on >/dev/tty", user="someone",
                             terminal=Terminal(24, 80)))  # fmt: skip
    assert re.match(rb"crw------- +1 1000 .*/dev/pts/0\r\non\r\n$", bytes(heard.stdout)), heard


def test_a_terminal_that_others_keep_open_does_not_hold_up_the_exit(opener: Opener) -> None:
    text = (
        "trap '' HUP; setsid sh -c 'while :; do echo more >$0; done' $(tty <&2) & echo on; exit 6"
    )
    heard = opener.run(shell(text, terminal=Terminal(24, 80)))
    assert heard.code == 6 and b"on" in heard.stdout


def test_nothing_in_the_way_of_the_terminals_leads_elsewhere(opener: Opener) -> None:
    opener.run(shell("rm -rf /dev/ptmx; mkdir -p /work/pts; mv /dev/pts /dev/old; rm -r /dev/pts;"
                     "mknod /dev/pts/ptmx p; ln -s /work/pts /dev/pts"))  # fmt: skip
    heard = opener.run(shell("tty <&1", terminal=Terminal(24, 80)))
    assert heard.stdout == b"/dev/pts/0\r\n"


def test_when_there_are_no_terminals_left_the_next_is_refused(furnished: Path) -> None:
    with Inner(furnished, config(), before=FEW) as inner:
        first = inner.opener.open(command("cat", terminal=Terminal(1, 1), stdin=True))
        heard = inner.opener.run(command("cat", terminal=Terminal(1, 1), stdin=True))
        assert heard.refused == "the guest can't start it: No space left on device"
        inner.opener.send(Hangup(first))
        inner.opener.until_over(first)
        # It is free again once its last process is gone.
        again = command("true", terminal=Terminal(1, 1))
        until(lambda: inner.opener.run(again).code == 0, "a terminal")


FEW = """
from wgcell.guest.agent import kernel
kernel.mount("pts", "/mnt/dev/pts", "devpts", 0x20, "newinstance,ptmxmode=0666,max=1")
"""


def test_a_terminal_that_its_program_has_closed_takes_what_comes(opener: Opener) -> None:
    text = "trap 'exit 4' TERM; exec <&- >&- 2>&-; while :; do :; done"
    session = opener.open(shell(text, terminal=Terminal(24, 80), stdin=True))
    opener.until(lambda: opener.heard[session].ended)
    opener.send(Size(session, Terminal(1, 1)))
    opener.write(session, b"more")
    opener.end(session)
    opener.send(Signal(session, 15))
    assert opener.until_over(session).code == 4
