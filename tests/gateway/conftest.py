"""The small Internet, and gateways on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.gateways import Gateway, config_of
from tests.support.networks import Topology


@pytest.fixture
def gateway() -> Iterator[Callable[..., Gateway]]:
    """Starts gateways on loopback; they end with the test."""
    started: list[Gateway] = []

    def start(engine: str = "embedded", **changes: Any) -> Gateway:
        started.append(Gateway(config_of(**changes), argv=[engine]))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    made = Topology()
    yield made
    made.close()
