"""The report of a beginning, as bytes that come in any pieces."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.cell.remark import Remark
from wgcell.cell.start import (
    SAID,
    Failed,
    Fault,
    Happened,
    Made,
    Over,
    Said,
    Verified,
)
from wgcell.client.beginning import Beginning
from wgcell.errors import HostError, JobError, LaunchError, WgcellError

MADE = Made("a-000000", "/cells/a-000000")
WORDS: list[Said] = [Remark("normal", True, "x"), MADE, Happened(b"{}"), Verified()]


@given(st.lists(st.integers(1, 400), max_size=6))
def test_it_may_come_in_any_pieces(cuts: list[int]) -> None:
    raw = b"".join(map(SAID.line, WORDS))
    heard: list[Said] = []
    beginning = Beginning(heard.append)
    at = 0
    for cut in (*cuts, len(raw)):
        assert not beginning.is_over
        beginning.feed(raw[at : at + cut])
        at += cut
        if at >= len(raw):
            break
    assert heard == WORDS and beginning.is_over and beginning.verified
    assert beginning.folder is not None and beginning.folder.path == Path("/cells/a-000000")


def fed(*words: Said) -> Beginning:
    beginning = Beginning()
    for word in words:
        beginning.feed(SAID.line(word))
    return beginning


def test_the_last_word() -> None:
    over = Over("unverified", 121, "nobody answered")
    assert fed(MADE, over).end is over or fed(MADE, over).end == over
    with pytest.raises(JobError, match="no such"):
        fed(Failed("JobError", ("no such",)))
    with pytest.raises(HostError, match="it is kept in /x"):
        fed(Fault("KeyError: 1", "/x"))
    with pytest.raises(HostError, match="could not be kept"):
        fed(Fault("KeyError: 1", ""))
    with pytest.raises(HostError, match="after its last word"):
        fed(Verified(), Verified())


@pytest.mark.parametrize("raw", [b"x\n", b"{}\n", b"x" * (SAID.longest + 1)])
def test_what_is_no_report_is_an_error(raw: bytes) -> None:
    with pytest.raises(HostError):
        Beginning().feed(raw)


def test_a_report_that_breaks_off() -> None:
    assert isinstance(fed().broke_off(1, "why"), LaunchError)
    assert "exit code 1" in str(fed().broke_off(1, "why")) and "why" in str(
        fed().broke_off(1, "why")
    )
    assert "a-000000" in str(fed(MADE).broke_off(-9, "")) and "signal 9" in str(
        fed(MADE).broke_off(-9, "")
    )


@given(st.binary(max_size=500))
def test_any_bytes_are_a_report_or_an_error(raw: bytes) -> None:
    with contextlib.suppress(WgcellError):
        Beginning().feed(raw + b"\n")
