"""What reaches a terminal of what a workload writes."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.shown import is_text

from wgcell.cli.escapes import _LONGEST, TerminalFilter

PIECES = [
    *(b"\x1b", b"[", b"]", b"P", b"X", b"^", b"_", b"\\", b"\x07", b"\x18", b"\x9b", b"\xc2\x9b"),
    *(b"\x1b[", b"\x1b]", b"0;", b"31m", b"6n", b"2J", b"K", b"?25l", b"\x1b\\", b"\r\n", b"\b"),
    *("é".encode(), "雛".encode(), "\U0001f600".encode(), "\u202e".encode(), b"\xff", b"a" * 70),
    *(b"1;" * 40, b"m", b"\x1b[38;5;1m", b"\x1b[4:3m", b"\x1b(0", b"\x1bc", b"\x90", b"\x9d52;c;"),
]
anything = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)), max_size=30).map(
    b"".join
)

ALLOWED = re.compile(r"\x1b\[(?:[0-9;:]*m|[0-9]*[CDGK])")


def through(*chunks: bytes) -> bytes:
    terminal = TerminalFilter()
    return b"".join([*map(terminal.feed, chunks), terminal.close()])


def is_safe(shown: bytes) -> bool:
    """Written apart from the filter: no sequence but the allowed, no control but four."""
    rest = ALLOWED.sub("", shown.decode("utf-8"))
    return is_text(rest, but="\t\n\r\b")


@given(anything, st.data())
def test_chunks_never_change_the_result_and_nothing_else_passes(
    whole: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    edges = [0, *cuts, len(whole)]
    chunks = [whole[a:b] for a, b in pairwise(edges)]
    shown = through(whole)
    assert through(*chunks) == shown
    assert through(*(whole[i : i + 1] for i in range(len(whole)))) == shown
    assert is_safe(shown)


@given(anything)
def test_memory_is_bounded(whole: bytes) -> None:
    terminal = TerminalFilter()
    terminal.feed(whole)
    assert len(terminal._held) <= _LONGEST + 1


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\n",
        "10 %\r20 %\r\n",
        "ab\b \b",
        "\x1b[1;31mred\x1b[0m\n",
        "\x1b[38;2;1;2;3m\x1b[4:3mcurly\x1b[m",
        "\r\x1b[K\x1b[2Kdone\x1b[10G\x1b[3C\x1b[D\n",
        "é 雛 \U0001f600 שלום\n",
    ],
)
def test_what_a_terminal_expects_reaches_it_unchanged(text: str) -> None:
    reset = "\x1b[0m" if re.search("\x1b\\[[^GKCD]*m", text) else ""
    assert through(text.encode()) == (text + reset).encode()
    assert through(*(bytes([b]) for b in text.encode())) == (text + reset).encode()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"\x1b]0;title\x07x", b"x"),
        (b"\x1b]0;title\x1b\\x", b"x"),
        (b"\x1b]52;c;cm0gLXJmIC8K\x07x", b"x"),
        (b"\x1b]8;;http://example.com\x1b\\link\x1b]8;;\x1b\\", b"link"),
        (b"\x1bP$qm\x1b\\x\x1b_apc\x1b\\y\x1b^pm\x1b\\z\x1bXsos\x1b\\!", b"xyz!"),
        (b"\x1b[6n\x1b[c\x1b[>c\x1b[5n\x1b[x\x1b[18t\x1b[?1049h\x1b[?25l", b""),
        (b"\x1b[A\x1b[2J\x1b[H\x1b[1;1f\x1b[5d\x1b[2S\x1b[L\x1b[M", b""),
        (b"\x1bc\x1b7\x1b8\x1b(0\x1b#8\x1bM\x1bD\x1b=x", b"x"),
        (b"\x9b31m\x9d0;t\x9c", b"\\x9b31m\\x9d0;t\\x9c"),
        (b"\xc2\x9b31m", b"\\x9b31m"),
        (b"\x07\x05\x0e\x7f\x00", b"\\x07\\x05\\x0e\\x7f\\x00"),
        ("\u202eevil\u2066".encode(), b"\\u202eevil\\u2066"),
        (b"\xff\xe2\x82", b"\\xff\\xe2\\x82"),
        (b"\x1b]0;never ended\nnext line", b"\nnext line"),
        (b"\x1b[31" + b";1" * 60 + b"mx", b"x"),
        (b"\x1b[31\nx", b"\nx"),
        (b"\x1b[=31m\x1b[?31m\x1b[31 m\x1b[99999m", b""),
        (b"\x1b\x1b[31", b""),
    ],
)
def test_what_is_dangerous_does_not(sent: bytes, shown: bytes) -> None:
    assert through(sent) == shown
    assert through(*(bytes([b]) for b in sent)) == shown


def test_a_filter_knows_what_it_has_left_behind() -> None:
    terminal = TerminalFilter()
    terminal.feed(b"\x1b[8mhidden")
    assert terminal.coloured and terminal.line_open
    terminal.mark_reset()
    terminal.feed(b"one\n")
    assert not terminal.coloured and not terminal.line_open
    assert terminal.close() == b""
