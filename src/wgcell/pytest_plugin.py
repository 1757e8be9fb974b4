"""A pytest plugin: the fixture ``cell``, a cell for one test.

::

    @pytest.mark.cell(allow=["packages.example.com:443"], memory="1GiB")
    def test_untrusted(cell):
        cell.files.write("a.py", b"print(6 * 7)")
        assert cell.exec("python3", "a.py").stdout == b"42\\n"

The mark's keywords are the settings of `wgcell.Cell`; a positional word is the cell's own command.
The cell is started for the test and ends behind it, and its folder is deleted, unless the mark says
``remove=False``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wgcell.sync import Cell

__all__ = ["cell", "pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers", "cell(*command, **settings): what the fixture `cell` is like"
    )


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    """A cell that lives as long as the test: a `wgcell.sync.Cell`."""
    from wgcell.sync import Cell  # no test run that has no cell waits for it

    mark = request.node.get_closest_marker("cell")
    words, settings = (mark.args, mark.kwargs) if mark is not None else ((), {})
    with Cell(*words, **{"remove": True, **settings}) as made:
        yield made
