"""A terminal that stands still holds up nobody but the thread that speaks to it."""

from __future__ import annotations

import threading

import pytest

from wgcell.cell.events import Event
from wgcell.cli.aside import Aside


def event(number: int) -> Event:
    return Event(event="state", number=number)


def test_all_is_told_in_order_before_it_is_closed() -> None:
    told: list[int] = []
    aside = Aside(lambda one: told.append(one["number"]))
    for number in range(1000):
        aside(event(number))
    assert aside.close()
    assert told == list(range(1000))


def test_a_reader_who_stands_still_holds_up_nobody() -> None:
    reads = threading.Event()
    told: list[int] = []

    def tell(one: Event) -> None:
        reads.wait()
        told.append(one["number"])

    aside = Aside(tell, patience=0.1)
    for number in range(1000):
        aside(event(number))  # here it would stand still, too
    assert not aside.close() and not told
    reads.set()
    assert aside.close() and len(told) == 1000


def test_a_fault_in_telling_is_one_at_the_end() -> None:
    def tell(one: Event) -> None:
        raise KeyError("verdict")

    aside = Aside(tell)
    aside(event(1))
    aside(event(2))
    with pytest.raises(KeyError):
        aside.close()
