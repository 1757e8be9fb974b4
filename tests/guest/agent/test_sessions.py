"""Sessions beside a workload, on this kernel and without a machine: the agent's own parts, opened
and read by hand over a socket in the place of the port.

What these can't show: a virtio port, and the guest's kernel (`tests/cells/test_sessions.py`).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.support.inner import Inner, config, shell
from tests.support.openers import Opener, command
from tests.support.waiting import until

from wgcell.guest.channel import MOST_SESSIONS, WINDOW
from wgcell.guest.frames import (
    STDERR,
    STDOUT,
    Attach,
    Credit,
    Hangup,
    Signal,
    Size,
    Terminal,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts in the first user namespace"),
]

# A command and its streams.


def test_a_command_runs_and_its_streams_and_code_come_back(opener: Opener) -> None:
    heard = opener.run(shell("echo out; echo err >&2; exit 7"))
    assert (heard.stdout, heard.stderr, heard.code) == (b"out\n", b"err\n", 7)
    assert heard.opened


def test_what_it_is_given_comes_through_whole_with_its_end(opener: Opener) -> None:
    sent = os.urandom(3 * WINDOW + 5)
    heard = opener.run(command("cat", stdin=True), sent)
    assert heard.stdout == sent and heard.code == 0
    assert heard.credit >= 2 * WINDOW


def test_without_standard_input_there_is_none(opener: Opener) -> None:
    heard = opener.run(shell("cat; readlink /proc/self/fd/0"))
    assert (heard.stdout, heard.code) == (b"/dev/null\n", 0)


def test_environment_folder_and_path_are_the_workloads_and_its_own(opener: Opener) -> None:
    text = 'echo "$A $B $HOME $PWD $(umask) $TERM"; cat /proc/self/oom_score_adj'
    heard = opener.run(shell(text, env=(("B", "b"),), folder="/tmp"))
    assert heard.stdout == b"x y b /root /tmp 0022 \n0\n"
    heard = opener.run(shell('echo "$A"', env=(("A", "mine"),)))
    assert heard.stdout == b"mine\n"


@pytest.mark.parametrize(
    ("words", "folder", "code", "said"),
    [
        (("none",), "", 127, "none: No such file or directory"),
        (("/none",), "", 127, "/none: No such file or directory"),
        (("/text",), "", 126, "/text: Permission denied"),
        (("",), "", 127, ": No such file or directory"),
        (("sh",), "none", 126, "none: No such file or directory"),
        (("sh",), "/text", 126, "/text: Not a directory"),
    ],
)
def test_what_can_not_be_executed_says_why_and_ends_as_dockers_does(
    opener: Opener, words: tuple[str, ...], folder: str, code: int, said: str
) -> None:
    heard = opener.run(command(*words, folder=folder))
    assert (heard.stderr.decode(), heard.code) == (f"wgcell: {said}\n", code)


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("someone", "uid=1000(someone) gid=1001 groups=1002(others)", "/tmp"),
        ("1000", "uid=1000(someone) gid=1001 groups=1002(others)", "/tmp"),
        ("someone:others", "uid=1000(someone) gid=1002(others)", "/tmp"),
        ("77:88", "uid=77 gid=88", "/"),
        ("77", "uid=77 gid=0(root)", "/"),
        ("root", "uid=0(root) gid=0(root)", "/root"),
    ],
)
def test_a_user_is_the_roots_own(opener: Opener, user: str, ids: str, home: str) -> None:
    heard = opener.run(shell("id; echo $HOME; echo more >/dev/stderr", user=user))
    assert (heard.stdout.decode(), heard.stderr) == (f"{ids}\n{home}\n", b"more\n")


def test_who_is_not_root_has_no_capability(confined: Opener) -> None:
    heard = confined.run(shell("grep Cap /proc/self/status", user="someone"))
    caps = dict(line.split(":\t") for line in heard.stdout.decode().splitlines())
    assert {caps[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert caps["CapBnd"] == f"{0x800405FB:016x}"


@pytest.mark.parametrize("user", ["nobody-here", "someone:nothing", ":1", "-1", "4294967295"])
def test_a_user_that_is_none_is_refused_by_name(opener: Opener, user: str) -> None:
    heard = opener.run(shell("true", user=user))
    assert heard.code == 126 and heard.stderr.startswith(b"wgcell: no ")


@pytest.mark.parametrize("kind", ["pipe", "endless", "memory", "folder", "loop"])
def test_tables_of_users_that_mean_harm_are_empty_ones(
    furnished: Path, kind: str, confined: Opener
) -> None:
    for name in ("passwd", "group"):
        place = furnished / "etc" / name
        place.unlink()
        match kind:
            case "pipe":
                os.mkfifo(place)
            case "endless":
                place.symlink_to("/dev/zero")
            case "memory":
                place.symlink_to("/proc/self/mem")
            case "folder":
                place.mkdir()
            case "loop":
                place.symlink_to(name)
    heard = confined.run(shell("id", user="someone"))
    assert (heard.code, heard.stderr) == (126, b"wgcell: no user 'someone' in /etc/passwd\n")
    heard = confined.run(command("grep", "Uid", "/proc/self/status", user="5"))
    assert heard.stdout == b"Uid:\t5\t5\t5\t5\n"


def test_it_has_the_workloads_namespaces_and_rights_and_nothing_more(furnished: Path) -> None:
    see = "for n in pid mnt uts ipc net; do readlink /proc/self/ns/$n; done;"
    see += "grep -E 'Cap|Sig(Ign|Blk)|Groups' /proc/self/status; ls /proc/self/fd; ulimit -n;"
    with Inner(furnished, config("sh", "-c", see + "echo; cat", stdin=True)) as inner:
        inner.until_printed(b"\n\n")
        heard = inner.opener.run(shell(see))
        assert heard.stdout + b"\n" == inner.printed["stdout"]
        # The workload's and the shell's own, seen from within.
        heard = inner.opener.run(shell("ls -d /proc/[0-9]* | wc -l; ls / /newroot"))
        assert int(heard.stdout.split()[0]) <= 6 and b"/newroot: No such" in heard.stderr


def test_in_a_root_of_one_static_program_it_runs_too(bare: Path) -> None:
    with Inner(bare, config()) as inner:
        heard = inner.opener.run(command("/see", "a b"))
        lines = heard.stdout.decode().splitlines()
        assert heard.code == 7 and "parent 0, group 1, session 1" in lines
        assert [line for line in lines if line.startswith("init ")] == ["init -1"] * 5
        assert not [line for line in lines if line.startswith("open ")]
        assert inner.opener.run(command("/see", user="1")).code == 7


def test_only_the_host_answers_for_the_workloads_streams(confined: Opener) -> None:
    heard = confined.run(Attach(False))
    assert heard.refused == "the guest starts no session of that kind"


# Many at once, and readers that stop.


def test_as_many_as_there_may_be_run_at_once_and_an_ended_one_makes_room(inner: Inner) -> None:
    opener = inner.opener
    sessions = [opener.open(command("cat", stdin=True)) for _ in range(MOST_SESSIONS)]
    opener.until(lambda: all(opener.heard[one].opened for one in sessions))
    with pytest.raises(ValueError, match="at once"):
        opener.open(command("true"))
    del opener.heard[opener.channel.next_session]
    opener.end(sessions[5])
    opener.until_over(sessions[5])
    assert opener.run(shell("echo more")).stdout == b"more\n"
    for session in sessions:
        if session != sessions[5]:
            opener.write(session, b"%d" % session)
            opener.end(session)
    opener.until_over(*sessions)
    for session in sessions:
        expected = b"" if session == sessions[5] else b"%d" % session
        assert opener.heard[session].stdout == expected


def test_a_flood_that_nobody_reads_stops_and_holds_up_nobody(opener: Opener) -> None:
    flood = opener.open(shell("yes"), reads=False)
    opener.until(lambda: len(opener.heard[flood].stdout) == WINDOW)
    assert opener.run(command("cat", stdin=True), bytes(2 * WINDOW)).stdout == bytes(2 * WINDOW)
    assert len(opener.heard[flood].stdout) == WINDOW
    # Its reader comes back.
    opener.silent.clear()
    opener.send(Credit(flood, STDOUT, WINDOW))
    opener.until(lambda: len(opener.heard[flood].stdout) > 3 * WINDOW)
    opener.send(Hangup(flood))
    assert opener.until_over(flood).code == 129


def test_a_program_that_does_not_read_holds_up_nobody(opener: Opener) -> None:
    deaf = opener.open(command("sleep", "1000", stdin=True))
    opener.write(deaf, bytes(WINDOW))
    assert opener.run(command("cat", stdin=True), b"x").stdout == b"x"
    assert opener.channel.room(deaf, 0) == 0 or opener.heard[deaf].credit <= 65536
    opener.send(Signal(deaf, 9))
    assert opener.until_over(deaf).code == 137


def test_a_program_that_closes_its_input_is_given_no_more(opener: Opener) -> None:
    session = opener.open(shell("exec <&-; echo closed; sleep 1000", stdin=True))
    opener.until(lambda: opener.heard[session].stdout == b"closed\n")
    opener.write(session, bytes(WINDOW))
    opener.end(session)
    opener.send(Signal(session, 9))
    assert opener.until_over(session).code == 137
    assert opener.heard[session].credit == 0


def test_a_port_that_is_not_read_stops_everything_and_loses_nothing(opener: Opener) -> None:
    """Then the host reads again."""
    sessions = [opener.open(shell(f"yes {n} | head -c 200000")) for n in range(6)]
    # Nothing is read here until the sockets between both are full.
    opener.until_over(*sessions)
    for number, session in enumerate(sessions):
        heard = opener.heard[session]
        assert heard.stdout == (b"%d\n" % number * 100_000)[:200_000] and heard.code == 0


# The end of a session.


def test_all_that_a_program_left_comes_before_its_exit_however_slowly_it_is_read(
    opener: Opener,
) -> None:
    session = opener.open(shell(f"head -c {WINDOW + 60_000} /dev/zero"), reads=False)
    opener.until(lambda: len(opener.heard[session].stdout) == WINDOW)
    assert opener.heard[session].code is None
    opener.send(Credit(session, STDOUT, 50_000))
    opener.until(lambda: len(opener.heard[session].stdout) == WINDOW + 50_000)
    opener.send(Credit(session, STDOUT, 10_000))
    heard = opener.until_over(session)
    assert len(heard.stdout) == WINDOW + 60_000 and heard.code == 0


def test_a_window_that_is_spent_to_the_last_byte_holds_up_no_exit(opener: Opener) -> None:
    session = opener.open(shell(f"head -c {WINDOW} /dev/zero; exit 3"), reads=False)
    heard = opener.until_over(session)
    assert (len(heard.stdout), heard.code) == (WINDOW, 3)


def test_others_that_keep_a_stream_open_do_not_hold_up_the_exit(opener: Opener) -> None:
    heard = opener.run(shell("sleep 1000 & yes & echo begun >&2; exit 4"))
    assert (heard.stderr, heard.code) == (b"begun\n", 4)


def test_a_stream_that_is_closed_early_ends_early(opener: Opener) -> None:
    session = opener.open(shell("exec >&- 2>&-; read a; exit 3", stdin=True))
    opener.until(lambda: opener.heard[session].ended == {STDOUT, STDERR})
    assert opener.heard[session].code is None
    opener.end(session)
    assert opener.until_over(session).code == 3


def test_signals_reach_the_process_group(opener: Opener) -> None:
    text = "trap 'echo parent; exit 5' TERM; sh -c \"trap 'echo child' TERM; echo on; read a\" "
    session = opener.open(shell(text + "; wait", stdin=True))
    opener.until(lambda: opener.heard[session].stdout == b"on\n")
    opener.send(Signal(session, signal.SIGTERM))
    opener.end(session)
    heard = opener.until_over(session)
    assert heard.code == 5 and b"child\n" in heard.stdout and b"parent\n" in heard.stdout


def test_a_signal_that_comes_with_the_opening_is_not_lost(opener: Opener) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        session = opener.open(command("sleep", "1000"))
        opener.send(Signal(session, number))
        heard = opener.until_over(session)
        assert (heard.code, heard.stderr) == (128 + number, b"")


def test_a_hangup_is_heard_and_the_session_is_over_at_once(opener: Opener) -> None:
    text = "trap 'echo hup >/work/heard; exit' HUP; echo on; while :; do :; done"
    session = opener.open(shell(text))
    opener.until(lambda: opener.heard[session].stdout)
    opener.send(Hangup(session))
    assert opener.until_over(session).code == 129
    heard = opener.run(shell("until [ -s heard ]; do sleep 0.01; done; cat heard"))
    assert heard.stdout == b"hup\n"


def test_a_stopped_program_hears_a_hangup(opener: Opener) -> None:
    session = opener.open(shell("trap 'echo hup >/work/heard; exit' HUP; echo $$; kill -STOP $$"))
    opener.until(lambda: opener.heard[session].stdout)
    state = f"/proc/{int(opener.heard[session].stdout)}/status"
    opener.run(shell(f"until grep -q 'State:.*T' {state}; do sleep 0.01; done"))
    opener.send(Hangup(session))
    opener.until_over(session)
    heard = opener.run(shell("until [ -s heard ]; do sleep 0.01; done; cat heard"))
    assert heard.stdout == b"hup\n"


def test_a_program_that_ignores_a_hangup_lives_on_and_holds_no_session(opener: Opener) -> None:
    sessions = []
    for _ in range(3):
        sessions.append(opener.open(shell("trap '' HUP; echo $$; sleep 0.5; echo >>/work/lived")))
        opener.until(lambda: opener.heard[sessions[-1]].stdout)
        opener.send(Hangup(sessions[-1]))
        assert opener.until_over(sessions[-1]).code == 129
    opener.run(shell("until [ $(cat lived | wc -l) = 3 ]; do sleep 0.01; done", folder="/work"))
    # They are waited for, each.
    heard = opener.run(shell("ps -o stat,comm | grep -c '^Z'"))
    assert heard.stdout == b"0\n"


def test_frames_for_a_session_that_is_over_are_dropped(opener: Opener) -> None:
    session = opener.open(command("true", stdin=True))
    opener.until(lambda: opener.heard[session].opened)
    # Whichever of these crosses with its end.
    for frame in (Size(session, Terminal(1, 1)), Signal(session, 1), Hangup(session)):
        if opener.channel.is_open(session):
            opener.send(frame)
    opener.until_over(session)
    assert opener.run(shell("echo on")).stdout == b"on\n"


# The guest in want, and a host that is gone.

FULL = """
import os
from wgcell.guest.agent import execution
fork = os.fork
def full():
    if os.path.exists("/mnt/full"):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
execution.os = type("Full", (), {**vars(os), "fork": staticmethod(full)})
"""


def test_where_there_is_no_room_for_a_process_it_is_refused_and_nothing_is_left(
    furnished: Path,
) -> None:
    with Inner(furnished, config(), before=FULL) as inner:
        opener = inner.opener
        assert opener.run(command("true")).code == 0
        before = inner.descriptors()
        (furnished / "full").touch()
        for given in ({}, {"stdin": True}, {"terminal": Terminal(1, 1), "stdin": True}):
            heard = opener.run(command("true", **given))
            assert heard.refused == "the guest can't start it: Resource temporarily unavailable"
        assert inner.descriptors() == before
        (furnished / "full").unlink()
        assert opener.run(shell("tty <&2", terminal=Terminal(1, 1))).stdout == b"/dev/pts/0\r\n"


def test_what_sessions_held_is_let_go(inner: Inner) -> None:
    opener = inner.opener
    opener.run(command("true"))
    before = inner.descriptors()
    for given in ({}, {"stdin": True}, {"terminal": Terminal(1, 1), "stdin": True}):
        opener.run(command("true", **given))
        session = opener.open(command("cat", **given))
        opener.send(Hangup(session))
        opener.until_over(session)
        ignores = opener.open(shell("trap '' HUP; echo on; sleep 1000", **given))
        opener.until(lambda ignores=ignores: opener.heard[ignores].stdout)
        opener.send(Signal(ignores, 9))
        opener.until_over(ignores)
    # One that was hung up may still have to be waited for.
    until(lambda: inner.descriptors() == before, f"{before} descriptors")


def test_when_the_host_is_gone_sessions_are_hung_up_and_the_workload_goes_on(
    furnished: Path,
) -> None:
    text = "trap 'echo hup >/work/heard' HUP; echo on; while [ ! -s /work/heard ]; do :; done"
    with Inner(furnished, config("sh", "-c", "until [ -s heard ]; do sleep 0.01; done")) as inner:
        session = inner.opener.open(shell(text))
        inner.opener.until(lambda: inner.opener.heard[session].stdout)
        inner.opener.port.shutdown(2)
        assert inner.ended().code == 0
