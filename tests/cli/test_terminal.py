"""wgcell's own words on a terminal: nothing of a stranger's moves it, nothing forges a line."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.shown import is_text, told

from wgcell.cell import emulation
from wgcell.cli import terminal
from wgcell.cli.escapes import TerminalFilter
from wgcell.cli.terminal import Words, complain
from wgcell.display import one_line
from wgcell.errors import GuestError, JobError, LaunchError, WgcellError

anything = st.text(st.characters(), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=4,
)


class Terminal(io.StringIO):
    """A standard error that is a terminal, and dumb: rich writes no spinner's escapes."""

    def isatty(self) -> bool:
        return True


def assert_clean(said: str, *begins: str) -> None:
    for line in said.split("\n")[:-1]:
        assert is_text(line), repr(line)
        assert line.startswith(begins), repr(line)


@given(anything, anything, JSON)
def test_no_event_forges_a_line_or_moves_the_terminal(one: str, two: str, odd: Any) -> None:
    """A guest's fault, a gateway's event, a wall's reason: each with a stranger's text."""
    flow = {"event": "flow", "verdict": one, "protocol": two, "address": one, "port": two}
    events: list[dict[str, Any]] = [
        {"event": "state", "state": one, "folder": two},
        {"event": "gateway", "engine": one, "reason": two},
        {**flow, "name": one, "reason": two, "mend": one},
        {**flow, "name": f"fe80::1%{one}", "verdict": "allow", "rule": "learn", "mend": two},
        {"event": "flows_omitted", "refuse": 3},
        {"event": "walls", "seal": False, "jail": False, "missing": {one: two}},
        {"event": "path_mtu", "path": odd, "tunnel": odd, "before": odd},
        {"event": "exited", "exit_code": odd},
        {"event": "reader_stopped", "stream": one, "delivered": odd},
        {"event": "changed", "what": odd},
        {"event": "outputs", "refused": [one, two], "files": odd, "bytes": odd},
        {"event": one},
        {"event": "ended", "outcome": one, "reason": two, "exit_code": odd},
    ]
    assert_clean(told(events), "wgcell: ")


@given(anything, anything, st.sampled_from([GuestError, JobError, WgcellError]))
def test_no_error_forges_a_line_or_moves_the_terminal(one: str, two: str, kind: Any) -> None:
    said = io.StringIO()
    before, sys.stderr = sys.stderr, said
    try:
        complain(kind(f"found {one}", hint=two), one)
        complain(LaunchError(one, output=two, exit_code=1, hint=one))
    finally:
        sys.stderr = before
    first = "wgcell: "
    assert_clean(said.getvalue().expandtabs(), first, "  ")
    assert said.getvalue().count(f"\n{first}") <= 1


def test_an_errors_own_text_is_clean_wherever_it_goes() -> None:
    error = LaunchError("\x1b[2J", output="\x9b6n\n", hint="\x07")
    assert (error.message, error.output, error.hint) == ("\\x1b[2J", "\\x9b6n\n", "\\x07")


@given(anything)
def test_one_line_is_one_printable_line(text: str) -> None:
    assert is_text(one_line(text))
    assert len(one_line(text, 10)) <= 10


CELL: list[dict[str, Any]] = [
    {"event": "state", "state": "preparing", "folder": "/cells/x-abcdef"},
    {"event": "gateway", "engine": "namespace", "reason": ""},
    *({"event": "state", "state": state} for state in ("consent", "booting", "verifying")),
    {"event": "walls", "seal": True, "jail": True, "missing": {}},
    {"event": "state", "state": "running"},
    {"event": "exited", "exit_code": 0},
]


def ended(outcome: str, code: int, reason: str = "") -> dict[str, Any]:
    return {"event": "ended", "outcome": outcome, "exit_code": code, "reason": reason}


def test_a_run_says_little_unless_asked_and_nothing_but_errors_if_quiet() -> None:
    good, bad = [*CELL, ended("completed", 0)], [*CELL, ended("rogue", 120, "not the tunnel's")]
    assert told(good, Words.ERRORS) == ""
    assert told(good, Words.FEW).splitlines() == [
        "wgcell: completed (exit code 0); records in /cells/x-abcdef"
    ]
    assert len(told(good, Words.ALL).splitlines()) == 8
    assert told(bad, Words.ERRORS) == told(bad, Words.FEW)
    assert "/cells/x-abcdef/rogue.pcapng, which Wireshark opens" in told(bad, Words.ERRORS)
    assert "embedded" not in told(good, Words.ALL)


def test_our_words_begin_on_a_line_of_their_own_and_in_plain_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    workload = TerminalFilter()
    monkeypatch.setattr(terminal, "_filters", [workload])
    workload.feed(b"\x1b[8mconcealed, and no newline")
    complain("one")
    assert said.getvalue().startswith("\x1b[0m\n")
    said.truncate(0)
    said.seek(0)
    complain("two")
    assert not said.getvalue().startswith("\x1b[0m\n")
    workload.feed(b"\x1b[31m\n")
    terminal.restore()
    assert said.getvalue().endswith("\x1b[0m")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("/dev/kvm is not there", "firmware"),
        ("/dev/kvm may not be opened by this user", "usermod -aG kvm"),
        ("a kernel started on KVM did not run within 8 s", "hypervisor"),
        ("\x1b[2J", "\\x1b[2J"),
    ],
)
def test_emulation_is_told_in_words(reason: str, words: str) -> None:
    told = emulation.told(reason)
    assert words in told and "security boundary" in told and "fix" in told
    assert re.fullmatch(r"[^\x00-\x1f]+", told)


def test_a_spinner_on_a_real_terminal_does_not_hold_up_what_it_stands_for() -> None:
    """rich puts the console in the place of standard error, to which the console itself writes."""
    script = (
        "import sys, time\n"
        "from wgcell.cli.terminal import Narrator, Words\n"
        "narrator = Narrator(Words.ALL)\n"
        "for state in ('consent', 'booting', 'verifying', 'running'):\n"
        "    narrator({'event': 'state', 'state': state})\n"
        "print('said')\n"
        "narrator.stop()\n"
    )
    ours, theirs = pty.openpty()
    try:
        done = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
            while data := os.read(ours, 65536):
                said += data
        assert done.wait(60) == 0
    finally:
        os.close(ours)
    assert b"said" in said and b"tunnel verified" in said
    # The cursor that a spinner hides is shown again.
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")
