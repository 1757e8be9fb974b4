"""A cell that answers its control socket, in a thread, and does nothing else."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from tests.support.waiting import GENEROUS

from wgcell.cell.control.listener import Listener
from wgcell.cell.events import EventLog
from wgcell.cell.folder import create


class Answering:
    """One that runs in a thread of ours, with its socket, until it is stopped."""

    def __init__(self, cells: Path) -> None:
        self.folder = create(cells, "busy")
        self.folder.write("job.json", {"name": "busy", "command": ["sleep", "9"]})
        self._lock = self.folder.hold()
        self.state = "verifying"
        self.stopped: list[bool] = []
        self._up, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._thread.start()
        assert self._up.wait(GENEROUS)

    async def _live(self) -> None:
        listener = Listener(self.folder, self)
        await listener.start()
        log = EventLog(self.folder.path / "events.jsonl", lambda event: listener.wake())
        log.append("state", state="running")  # the record's last: the cell itself knows better
        self._up.set()
        await asyncio.to_thread(self._ended.wait)
        log.append("ended", outcome="cancelled")
        with (self.folder.path / "stdout.log").open("ab") as file:
            file.write(b"last words\n")
        log.close()
        await listener.close()
        self.folder.write("result.json", {"outcome": "cancelled", "exit_code": 130})
        os.close(self._lock)

    def stop(self, *, now: bool) -> None:
        self.stopped.append(now)
        self._ended.set()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(GENEROUS)
