"""A stream's log and its last bytes in memory, read from any place by readers of any pace."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.cell.sessions.tap import Tap
from wgcell.errors import StateError
from wgcell.guest.channel import WINDOW


@given(
    st.lists(st.integers(1, WINDOW), max_size=20),
    st.integers(0, 3 * WINDOW),
    st.lists(st.integers(1, WINDOW), min_size=1, max_size=5),
    st.booleans(),
)
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_reader_gets_all_in_order_or_learns_what_is_lost(
    tmp_path: Path, sizes: list[int], cap: int, reads: list[int], keeps_up: bool
) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    wakes: list[int] = []
    tap = Tap(path, lambda: wakes.append(1), cap)
    whole, at, lost = b"", 0, 0

    def read_on() -> None:
        nonlocal at, lost
        turn = 0
        while True:
            most = reads[turn % len(reads)]
            place, data = tap.read(at, most)
            assert place >= at and len(data) <= most
            assert data == whole[place : place + len(data)]
            lost += place - at
            if place == at and not data:
                break
            at, turn = place + len(data), turn + 1

    for number, size in enumerate(sizes):
        part = bytes([number]) * size
        whole += part
        tap.write(part)
        if keeps_up:
            read_on()
    read_on()
    assert at == tap.end == len(whole)
    assert lost <= max(0, len(whole) - cap - WINDOW)
    assert not (keeps_up and lost)
    assert len(wakes) == len(sizes)
    assert sum(map(len, tap._recent)) < 2 * WINDOW + 1
    tap.close()


def test_a_log_that_can_not_be_written_loses_only_what_memory_does_not_keep(tmp_path: Path) -> None:
    tap = Tap(tmp_path / "log", lambda: None)
    tap._log.close()
    for _ in range(3):
        with contextlib.suppress(StateError, ValueError):
            tap.write(bytes(WINDOW))
    (tmp_path / "log").unlink()
    place, data = tap.read(0, 100)
    assert (place, len(data)) == (2 * WINDOW, 100)
