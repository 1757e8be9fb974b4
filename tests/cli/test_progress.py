"""A cell's events as lines: each is one line of wgcell's, whatever a stranger's text is in it."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support.shown import assert_clean, told

from wgcell.cli.progress import Verbosity

anything = st.text(st.characters(), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=4,
)


@given(anything, anything, JSON)
def test_no_event_forges_a_line_or_moves_the_terminal(one: str, two: str, odd: Any) -> None:
    """A guest's fault, a gateway's event, a wall's reason: each with a stranger's text."""
    flow = {"event": "flow", "verdict": one, "protocol": two, "address": one, "port": two}
    events: list[dict[str, Any]] = [
        {"event": "state", "state": one, "folder": two},
        {"event": "gateway", "engine": one, "reason": two},
        {**flow, "name": one, "reason": two, "hint": one},
        {**flow, "name": f"fe80::1%{one}", "verdict": "allow", "rule": "learn", "hint": two},
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
    assert told(good, Verbosity.QUIET) == ""
    assert told(good, Verbosity.NORMAL).splitlines() == [
        "wgcell: completed (exit code 0); records in /cells/x-abcdef"
    ]
    assert len(told(good, Verbosity.VERBOSE).splitlines()) == 8
    assert told(bad, Verbosity.QUIET) == told(bad, Verbosity.NORMAL)
    assert "/cells/x-abcdef/rogue.pcapng, which Wireshark opens" in told(bad, Verbosity.QUIET)
    assert "embedded" not in told(good, Verbosity.VERBOSE)


def test_a_spinner_on_a_real_terminal_does_not_hold_up_what_it_stands_for() -> None:
    """rich puts the console in the place of standard error, to which the console itself writes."""
    script = (
        "import sys, time\n"
        "from wgcell.cli.progress import EventPrinter, Verbosity\n"
        "printer = EventPrinter(Verbosity.VERBOSE)\n"
        "for state in ('consent', 'booting', 'verifying', 'running'):\n"
        "    printer({'event': 'state', 'state': state})\n"
        "print('said')\n"
        "printer.stop()\n"
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


def test_an_unknown_event_or_state_prints_nothing() -> None:
    assert told([{"event": "unknown"}, {"event": "state", "state": "unknown"}]) == ""


def test_walls_that_stand_print_nothing_and_each_that_is_missing_a_line() -> None:
    walls: dict[str, Any] = {"event": "walls", "seal": True, "jail": True, "missing": {}}
    assert told([walls]) == ""
    down = {**walls, "jail": False, "missing": {"jail": "no bwrap", "landlock": "old kernel"}}
    assert told([down], Verbosity.NORMAL).splitlines() == [
        "wgcell: not up: jail: no bwrap",
        "wgcell: not up: landlock: old kernel",
    ]


def test_outputs_that_are_missing_are_reported_at_the_end_and_at_once() -> None:
    events: list[dict[str, Any]] = [
        {"event": "outputs", "left_out": ["a/b"], "verdict": "one output is missing"},
        {"event": "landed", "whole": False, "sentence": "the folder is full"},
        ended("completed", 0),
    ]
    assert told(events, Verbosity.NORMAL).splitlines() == [
        "wgcell: output left out: a/b",
        "wgcell: one output is missing",
        "wgcell: the folder is full",
        "wgcell: completed (exit code 0)",
    ]
    assert told(events, Verbosity.QUIET) == "wgcell: the folder is full\n"
