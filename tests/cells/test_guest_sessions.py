"""Sessions in real machines, opened by hand: what the guest's kernel and its port do with them.

What these can't show: the host's hub and its clients (`test_detached.py`, `tests/cell/sessions`).
"""

from __future__ import annotations

import os
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest
from tests.support.inner import shell
from tests.support.machines import sessioned
from tests.support.openers import Opener, command
from tests.support.waiting import until

from wgcell.guest.channel import MOST_SESSIONS, WINDOW
from wgcell.guest.frames import STDOUT, Credit, Hangup, Pack, Signal, Size, Terminal, Unpack

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

SEE = (
    "for n in pid mnt uts ipc net; do readlink /proc/self/ns/$n; done;"
    "grep -E '^(Cap|Sig(Ign|Blk)|Groups|Seccomp|NoNew)' /proc/self/status; ulimit -a; umask;"
    "cat /proc/self/oom_score_adj; ls /proc/self/fd; env | grep -v PWD | sort; hostname"
)
# Runs what the fork is, which is the agent's own Python, and tries to change it.
OWN = "#!/proc/self/exe\nimport os\nos.open('/proc/self/exe', os.O_WRONLY)\n"


def test_a_cell_serves_sessions_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One boot for all: each session leaves the others as they are."""
    words = ("sh", "-c", f"{SEE}; echo; exec sleep 1000")
    with sessioned(tmp_path, monkeypatch, command=words) as cell:
        opener = cell.opener
        it_has_the_workloads_rights_and_nothing_more(opener, cell.printed["stdout"])
        users_and_folders(opener)
        terminals(opener)
        files(opener)
        what_a_fork_is_can_not_be_changed(opener)
        floods(opener)
        many_at_once(opener)
        deaf = opener.open(shell("trap '' HUP TERM; echo on; sleep 1000"))
        opener.until(lambda: opener.heard[deaf].stdout)
        opener.send(Signal(0, 15))
        assert opener.until_over(deaf).code == 137
    assert cell.result is not None
    assert (cell.result.outcome.value, cell.result.exit_code) == ("completed", 143)


def it_has_the_workloads_rights_and_nothing_more(opener: Opener, printed: bytearray) -> None:
    heard = opener.run(shell(SEE))
    assert heard.code == 0
    until(lambda: heard.stdout + b"\n" == printed, "what the workload sees, which is the same")
    assert b"CapEff:\t00000000800405fb\n" in heard.stdout


def users_and_folders(opener: Opener) -> None:
    heard = opener.run(shell("id -un; id -Gn; pwd; echo $HOME", user="nobody", folder="/tmp"))
    assert heard.stdout == b"nobody\nnogroup\n/tmp\n/nonexistent\n"
    heard = opener.run(shell("touch /root/x", user="nobody"))
    assert heard.code == 1 and b"denied" in heard.stderr
    assert opener.run(command("none")).code == 127


def terminals(opener: Opener) -> None:
    size = Terminal(24, 80)
    session = opener.open(command("bash", "--norc", terminal=size, stdin=True))
    heard = opener.heard[session]
    opener.write(session, b"PS1=; tty; stty size\n")
    opener.until(lambda: b"/dev/pts/0\r\n24 80\r\n" in heard.stdout)
    opener.send(Size(session, Terminal(50, 10_000)))
    opener.write(session, b"stty size; sh -c 'echo b''egun; exec sleep 1000'\n")
    opener.until(lambda: b"50 10000\r\nbegun\r\n" in heard.stdout)
    opener.write(session, b"\x03")
    opener.until(lambda: b"^C" in heard.stdout)
    opener.write(session, b"python3 -c 'import os; print(os.ttyname(0))'; exit 9\n")
    assert opener.until_over(session).code == 9
    assert heard.stdout.endswith(b"/dev/pts/0\r\nexit\r\n"), heard.stdout


def files(opener: Opener) -> None:
    sent = {"a": b"text", "below/b": os.urandom(2 * WINDOW)}
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in sent.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o640
            tar.addfile(member, BytesIO(data))
    # Whatever tar is in the root, or in its working folder, is not what runs.
    opener.run(
        shell("printf '#!/bin/sh\nexit 99\n' >tar; chmod 755 tar; cp tar /bin/tar; mkdir in")
    )
    heard = opener.run(Unpack("in"), made.getvalue())
    assert (heard.code, heard.stderr) == (0, b"")
    heard = opener.run(Pack("../work/in"))
    assert (heard.code, heard.stderr) == (0, b"")
    with tarfile.open(fileobj=BytesIO(heard.stdout)) as tar:
        back = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        assert {name: file.read() for name, file in back.items() if file} == {
            f"./in/{name}": data for name, data in sent.items()
        }


def what_a_fork_is_can_not_be_changed(opener: Opener) -> None:
    opener.run(shell('printf %s "$OWN" >own; chmod 755 own', env=(("OWN", OWN),)))
    heard = opener.run(command("/work/own"))
    assert heard.code == 1 and b"Text file busy" in heard.stderr, heard


def floods(opener: Opener) -> None:
    flood = opener.open(command("yes"), reads=False)
    opener.until(lambda: len(opener.heard[flood].stdout) == WINDOW)
    assert opener.run(command("cat", stdin=True), bytes(WINDOW)).stdout == bytes(WINDOW)
    assert len(opener.heard[flood].stdout) == WINDOW
    opener.send(Credit(flood, STDOUT, 1000))
    opener.until(lambda: len(opener.heard[flood].stdout) == WINDOW + 1000)
    opener.send(Hangup(flood))
    assert opener.until_over(flood).code == 129


def many_at_once(opener: Opener) -> None:
    begun = time.monotonic()
    sessions = [opener.open(command("cat", stdin=True)) for _ in range(MOST_SESSIONS)]
    opener.until(lambda: all(opener.heard[one].opened for one in sessions))
    print(f"{MOST_SESSIONS} sessions in {time.monotonic() - begun:.2f} s")
    for session in sessions:
        opener.write(session, b"%d" % session)
        opener.end(session)
    opener.until_over(*sessions)
    assert [opener.heard[one].stdout for one in sessions] == [b"%d" % one for one in sessions]


def test_without_walls_and_with_a_terminal_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"command": ("bash", "--norc"), "stdin": True, "terminal": Terminal(24, 80)}
    settings = {"guest_walls": "off"}
    with sessioned(tmp_path, monkeypatch, settings=settings, **asked) as cell:
        opener = cell.opener
        opener.write(0, b"PS1=; tty; stty size; echo err >&2\n")
        until(lambda: b"/dev/pts/0\r\n24 80\r\nerr\r\n" in cell.printed["stdout"])
        heard = opener.run(shell("id -u; grep CapEff /proc/self/status; tty <&2; ls -d /proc/1",
                                 terminal=Terminal(1, 1)))  # fmt: skip
        assert heard.stdout.startswith(b"0\r\nCapEff:\t000001ffffffffff\r\n/dev/pts/1\r\n")
        opener.send(Size(0, Terminal(30, 100)))
        opener.write(0, b"stty size; sh -c 'echo b''egun; exec sleep 1000'\n")
        until(lambda: b"30 100\r\nbegun\r\n" in cell.printed["stdout"])
        opener.write(0, b"\x03")
        deaf = opener.open(shell("trap '' HUP TERM; echo on; sleep 1000"))
        opener.until(lambda: opener.heard[deaf].stdout)
        opener.write(0, b"exit 9\n")
        assert opener.until_over(deaf).code == 137
    assert cell.result is not None and cell.result.exit_code == 9
