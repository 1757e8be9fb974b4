"""Command lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.support.zygotes import Typist


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typist]:
    """Types: ``typed(folder, *words)``."""
    with contextlib.closing(Typist(tmp_path_factory.mktemp("typed"))) as made:
        yield made
