"""A supervisor's own control socket: there from its beginning to its end, and obeyed."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest
from tests.support.supervisors import Finished, lived
from tests.support.waiting import forever

from wgcell.cell.control import listener, words
from wgcell.cell.control.client import Unreachable, ask
from wgcell.cell.control.place import NAME


class Endless(Finished):
    """One whose start never ends by itself."""

    async def live(self) -> None:
        await forever()


async def asked(cell: Endless, question: words.Question) -> list[words.Answer]:
    return await asyncio.to_thread(lambda: list(ask(cell.folder, question)))


@pytest.mark.parametrize("now", [False, True])
def test_a_cell_says_its_state_and_stops_when_it_is_asked_to(tmp_path: Path, now: bool) -> None:
    cell = Endless(tmp_path)
    heard: list[bytes] = []

    def follow() -> None:
        for word in ask(cell.folder, words.Events(0, True), follow=True):
            assert isinstance(word, words.Event)
            heard.append(word.line)

    async def body() -> None:
        running = asyncio.create_task(cell.run())
        while not (cell.folder.path / NAME).exists():
            await asyncio.sleep(0)
        following = asyncio.create_task(asyncio.to_thread(follow))
        (status,) = await asked(cell, words.State())
        assert isinstance(status, words.Status) and status.state == cell.core.state.value
        assert await asked(cell, words.Stop(now)) == [words.Stopping()]
        result = await running
        await following
        assert (result.outcome.value, result.reason) == ("cancelled", "stopped")
        with pytest.raises(Unreachable):
            await asked(cell, words.State())

    asyncio.run(body())
    # A follower has every line, the last too; and the socket is gone.
    assert heard == (cell.folder.path / "events.jsonl").read_bytes().splitlines()
    assert json.loads(heard[-1])["event"] == "ended"
    assert not (cell.folder.path / NAME).exists()


def test_a_file_system_without_sockets_costs_a_cell_its_socket_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: listener.Listener) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(listener.Listener, "_listen", refuse)
    cell = Finished(tmp_path)
    result, raised = lived(cell)
    assert raised is None and result is not None and result["outcome"] == "completed"
    (event,) = [event for event in cell.events if event["event"] == "no_control"]
    assert event["reason"] == "Operation not permitted"
