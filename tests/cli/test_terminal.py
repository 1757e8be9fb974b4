"""wgcell's own lines on a terminal: no stranger's text controls it or forges a line."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.shown import assert_clean, is_text

from wgcell.cell import emulation
from wgcell.cli import terminal
from wgcell.cli.escapes import TerminalFilter
from wgcell.cli.terminal import complain
from wgcell.display import one_line
from wgcell.errors import GuestError, JobError, LaunchError, WgcellError

anything = st.text(st.characters(), max_size=40)


class Terminal(io.StringIO):
    """A standard error that is a terminal, and dumb: rich writes no spinner's escapes."""

    def isatty(self) -> bool:
        return True


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
    told = emulation.explanation(reason)
    assert words in told and "security boundary" in told and "fix" in told
    assert re.fullmatch(r"[^\x00-\x1f]+", told)
