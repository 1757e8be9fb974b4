"""The bounds of what a cell may take of its host."""

from __future__ import annotations

import pytest

from wgcell.prove.battery.exhaustion import EXHAUSTIONS
from wgcell.prove.battery.usage import DISK, MEMORY, ResourceUse


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("machine", MEMORY, MEMORY + (2 << 30)),
        ("others", 80 << 20, 200 << 20),
        ("disk", DISK, DISK + (100 << 20)),
        ("evidence", 100 << 10, 2 << 20),
        ("processors", 1.9, 3.5),
        ("neighbour", [0.1], [0.1, 1.5]),
    ],
)
def test_each_bound_accepts_a_value_within_and_reports_one_beyond(
    field: str, within: object, beyond: object
) -> None:
    use = ResourceUse()
    setattr(use, field, within)
    assert use.beyond() == []
    setattr(use, field, beyond)
    assert len(use.beyond()) == 1


def test_a_cell_that_takes_nothing_shows_no_attack() -> None:
    assert [one.name for one in EXHAUSTIONS if one.seen(ResourceUse(), 0)] == []
