"""Whom signals end: the workload first, if it is there to get one; then its cell."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.waiting import soon

from wgcell.obedience import ENDINGS, until_its_end

INT, TERM, HUP, QUIT = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT


class Cell:
    """A cell that lives until it is aborted, and writes down what it was asked."""

    def __init__(self, takes_signals: bool) -> None:
        self.takes_signals = takes_signals
        self.asked: list[object] = []

    def signal(self, number: int) -> bool:
        if self.takes_signals:
            self.asked.append(number)
        return self.takes_signals

    def cancel(self, words: str) -> None:
        self.asked.append(words)

    def abort(self, words: str) -> None:
        self.asked.append(f"at once: {words}")

    async def run(self, **how: Any) -> list[object]:
        for number in self.sent:
            before = len(self.asked)
            os.kill(os.getpid(), number)
            await soon(lambda before=before: len(self.asked) > before)
        return self.asked

    sent: tuple[signal.Signals, ...] = ()


@pytest.fixture(autouse=True)
def as_in_a_shell() -> Any:
    """No signal is ignored, however the tests were started."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


CASES: dict[str, tuple[bool, bool, tuple[signal.Signals, ...], list[object]]] = {
    "the first to the workload": (True, True, (INT, INT, TERM), [2, ENDINGS[INT], ENDINGS[TERM]]),
    "of either kind": (True, True, (TERM, INT), [15, ENDINGS[INT]]),
    "no workload yet": (True, False, (INT, INT), [ENDINGS[INT], ENDINGS[INT]]),
    "not asked for": (False, True, (INT,), [ENDINGS[INT]]),
    "the terminal closes": (True, True, (HUP,), [ENDINGS[HUP]]),
    "and then a signal": (True, True, (HUP, INT), [ENDINGS[HUP], ENDINGS[INT]]),
    "at once": (True, True, (QUIT,), [f"at once: {ENDINGS[QUIT]}"]),
}


@pytest.mark.parametrize(("passes_on", "takes", "sent", "asked"), CASES.values(), ids=CASES)
def test_what_a_signal_leads_to(
    passes_on: bool, takes: bool, sent: tuple[signal.Signals, ...], asked: list[object]
) -> None:
    cell: Any = Cell(takes)
    cell.sent = sent
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    found: Any = until_its_end(
        cell, event=nothing, stdout=nothing, stderr=nothing, land=nothing, passes_on=passes_on
    )
    assert found == asked


def test_an_ignored_signal_stays_so() -> None:
    signal.signal(HUP, signal.SIG_IGN)
    cell: Any = Cell(True)
    cell.sent = (INT,)
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    until_its_end(cell, event=nothing, stdout=nothing, stderr=nothing, land=nothing)
    assert signal.getsignal(HUP) is signal.SIG_IGN
