"""The destinations of a machine's output: its console, its two streams, its outputs.

All of it is capped on disk, and none of it can hold up the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from wgcell.cell.archive import Unpacked
from wgcell.cell.core.events import Looked
from wgcell.cell.folder import CappedLog
from wgcell.cell.host import HostContext
from wgcell.cell.job import Job
from wgcell.cell.streams import ArrivingOutputs, Log, Sink, Stream
from wgcell.cell.unpacking import Unpacking
from wgcell.guest import protocol

__all__ = ["OUTPUTS", "UNPACKED_WITHIN", "Outlets", "copy"]

OUTPUTS = "files"
"""The port over which the guest sends the tar of its outputs."""

UNPACKED_WITHIN = 45.0
"""Seconds that the unpacking of the outputs may go on after the last byte that came."""

_DIAGNOSTICS_CAP = 1 << 20


class Outlets:
    """One cell's outlets. ``heard`` is called in the event loop when a stream has changed."""

    def __init__(
        self, job: Job, host: HostContext, sinks: Mapping[str, Sink], heard: Callable[[], None]
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self.arriving: ArrivingOutputs | None = None
        self.console: CappedLog | None = None
        self._folder = host.folder.path
        self.diagnostics = CappedLog(self._folder / "diagnostics.log", _DIAGNOSTICS_CAP)
        self.unpacking: asyncio.Future[Unpacked] | None = None
        self.walls_missing: Mapping[str, str] = {}
        """Walls of the unpacking process that could not be built, and why."""
        self._job = job
        self._known_links = host.known_links
        self._sinks = sinks
        self._heard = heard

    def carry(
        self, take: Callable[[str], socket.socket], logged: Callable[[str, Path], Log]
    ) -> None:
        """Start both streams. ``take`` gives the host's end of a channel, ``logged`` makes the log
        of a stream, by its name, at a path."""
        for name in protocol.STREAMS:
            log = logged(name, self._folder / f"{name}.log")
            stream = self.streams[name] = Stream(name, self._sinks[name], log, self._heard)
            stream.carry(take(name))
        if self._job.outputs:
            self.arriving = ArrivingOutputs(take(OUTPUTS))

    def look(self) -> Looked:
        """How far everything is."""
        arriving = self.arriving
        return Looked(
            tuple(stream.facts() for stream in self.streams.values()),
            0 if arriving is None else arriving.received,
            0.0 if arriving is None else arriving.moved,
        )

    async def copy_console(self, channel: socket.socket) -> None:
        """The guest's console, into its log, until it ends."""
        reader, writer = await asyncio.open_connection(sock=channel)
        with contextlib.closing(writer):
            console = self.console = CappedLog(self._folder / "console.log")
            await copy(reader, console.write)

    def start_unpacking(self) -> asyncio.Future[Unpacked] | None:
        """Unpack the outputs as they arrive; None if none are to come."""
        if self.arriving is not None:
            self.unpacking = asyncio.ensure_future(self.unpack(self.arriving))
        return self.unpacking

    async def unpack(self, arriving: ArrivingOutputs) -> Unpacked:
        """The outputs, once they are unpacked. Raises GuestError, HostError."""
        job = self._job
        folder = self._folder / "outputs"
        unpacking = await Unpacking.start(folder, job.outputs, job.disk, self._known_links)
        try:
            return await unpacking.unpacked(arriving.carry, UNPACKED_WITHIN)
        finally:
            self.walls_missing = unpacking.missing

    def close_port(self) -> None:
        """Close the port of the outputs, if nothing was ever carried from it."""
        if self.arriving is not None and self.unpacking is None:
            self.arriving.close()

    def close_logs(self) -> None:
        """Close the logs that no thread writes."""
        with contextlib.ExitStack() as logs:
            for log in (self.console, self.diagnostics):
                if log is not None:
                    logs.callback(log.close)


async def copy(reader: asyncio.StreamReader, write: Sink) -> None:
    """Everything that ``reader`` has, until it ends."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            write(data)
