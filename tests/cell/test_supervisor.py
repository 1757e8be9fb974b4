"""The loop around the core: events in, actions out, in order, whatever an action does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.guests import BARE
from tests.support.supervisors import Finished, supervisor, with_streams
from tests.support.supervisors import closed as closed

from wgcell.cell.core import events as seen
from wgcell.cell.events import Event
from wgcell.cell.states import State
from wgcell.cell.supervisor import Supervisor
from wgcell.errors import StateError
from wgcell.guest import protocol, verify
from wgcell.relay import control as relay

VERIFIED = seen.FromRelay(relay.Verified())


class Guest:
    """An agent that is told lines, and a machine that is killed."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.kills = 0

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def kill(self) -> None:
        self.kills += 1


def verifying(
    cells: Path, report: Callable[[Event], None] = lambda event: None
) -> tuple[Supervisor, Guest]:
    """A cell that waits for the relay's word alone. Needs a running loop."""
    one, guest = with_streams(supervisor(cells, report)), Guest()
    one._effects.attach(guest)  # type: ignore[arg-type]
    one.launch.machine = guest  # type: ignore[assignment]
    one.core.state = State.VERIFYING
    judged = one.core._verification
    judged.config, judged.guest_ready, judged.reports = BARE, True, {"links": "x"}
    return one, guest


@pytest.fixture(autouse=True)
def as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "mismatch", lambda config, reports: None)


def test_nothing_is_released_whose_state_can_not_be_written_down(tmp_path: Path) -> None:
    async def body() -> None:
        one, guest = verifying(tmp_path)

        def full(event: str, **fields: Any) -> None:
            raise StateError("No space left on device")

        one.log.append = full  # type: ignore[method-assign]
        one.feed(VERIFIED)
        assert one._over.is_set()
        assert guest.lines == []

    asyncio.run(body())


def test_what_is_asked_within_an_action_comes_behind_it(tmp_path: Path) -> None:
    """A caller's ``event`` may end the cell: the guest is told nothing out of its order."""

    async def body() -> None:
        def report(event: Event) -> None:
            if event.get("state") == "running":
                one.cancel("not now")

        one, guest = verifying(tmp_path, report)
        one.feed(VERIFIED)
        assert guest.lines == [protocol.RELEASE, protocol.TERMINATE]
        assert one.core.state is State.TERMINATING

    asyncio.run(body())


@pytest.mark.parametrize("how", ["feed", "post"])
def test_a_report_that_raises_keeps_no_machine_alive(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "mismatch", lambda config, reports: "the links are wrong")

    async def body() -> None:
        def report(event: Event) -> None:
            raise ValueError("a caller's error")

        one, guest = verifying(tmp_path, report)
        if how == "feed":
            with pytest.raises(ValueError, match="a caller's error"):
                one.feed(VERIFIED)
        else:
            one.post(VERIFIED)
        assert guest.kills and one._over.is_set()

    asyncio.run(body())


def test_a_core_that_fails_is_a_fault_and_ends_the_cell(tmp_path: Path) -> None:
    async def body() -> None:
        one, guest = verifying(tmp_path)
        one.post(SimpleNamespace())  # type: ignore[arg-type]
        assert guest.kills and one.core.outcome is not None
        assert one.core.outcome.value == "error"

    asyncio.run(body())


def test_no_timer_outlives_the_cell(tmp_path: Path) -> None:
    """The loop of a program that runs cells goes on, and must not hold on to each of them."""

    async def body() -> None:
        cell = Finished(tmp_path)
        cell.script.insert(0, seen.CancelAsked("a grace period begins"))
        before = set(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
        await cell.run()
        after = set(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
        assert [timer for timer in after - before if not timer.cancelled()] == []

    asyncio.run(body())
