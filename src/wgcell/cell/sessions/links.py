"""The hub's sockets: the guest's port, the clients' connections, and the taps.

Bytes go out as their reader takes them, and what it does not take waits in its `Outbox`, which is
bounded. A client that takes nothing is not read from either, for each of its frames may have an
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

from wgcell.cell.core import events as seen
from wgcell.cell.sessions.hub import Client, Hub, Refusal
from wgcell.cell.sessions.tap import Tap
from wgcell.cell.sessions.workload import Credited
from wgcell.cell.states import Cause
from wgcell.errors import GuestError
from wgcell.guest.channel import WORKLOAD
from wgcell.guest.frames import STDERR, STDOUT, Signal, Size, Terminal

__all__ = ["Sessions"]

STREAMS = {"stdout": STDOUT, "stderr": STDERR}
_AT_ONCE = 64 * 1024
"""Bytes that are read, or written, in one turn of the event loop."""
Report = Callable[[seen.Caused | seen.SessionOpened | seen.SessionExited], None]


class _Link(asyncio.BufferedProtocol):
    """One socket. ``take`` gives what is to be sent, ``heard`` takes each piece that comes, and
    ``resumed`` is called when the socket takes more again, ``lost`` when it is gone."""

    def __init__(
        self,
        take: Callable[[], bytes],
        heard: Callable[[bytes], None],
        resumed: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._take, self._heard, self._resumed, self._lost = take, heard, resumed, lost
        self._buffer = bytearray(_AT_ONCE)
        self._transport: asyncio.Transport | None = None
        self.free = True
        """The socket takes more."""
        self._finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_AT_ONCE)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._heard(bytes(memoryview(self._buffer)[:nbytes]))

    def pause_writing(self) -> None:
        self.free = False

    def resume_writing(self) -> None:
        self.free = True
        self._resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()

    def flush(self) -> None:
        """Send what the socket takes."""
        while self.free and self._transport is not None and not self._finished:
            parts, size = [], 0
            while size < _AT_ONCE and (raw := self._take()):
                parts.append(raw)
                size += len(raw)
            if not parts:
                return
            self._transport.write(b"".join(parts))

    def pace(self) -> None:
        """Read from an end only while it takes what it is sent."""
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.resume_reading if self.free else self._transport.pause_reading)()

    def finish(self) -> None:
        """Send nothing more. The other end reads the rest, and then leaves: were it closed here,
        what is still unread there would be lost at its next word."""
        if self._transport is not None and not self._finished:
            self._finished = True
            self._transport.write_eof()

    def abort(self) -> None:
        """No more, at once."""
        if self._transport is not None:
            self._transport.abort()


class Sessions:
    """One cell's sessions. ``report`` takes what is recorded, and what ends the cell."""

    def __init__(self, refusal: Refusal, report: Report) -> None:
        self._report = report
        self._sources: dict[int, Tap] = {}
        self._hub = Hub(self._sources, refusal, report)
        self._links: dict[Client, _Link] = {}
        self._gone: dict[Client, asyncio.Event] = {}
        self._guest: _Link | None = None
        self._ended = False
        """The machine is gone, or the guest is heard no more."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._will_show = False

    # The guest.

    @property
    def is_connected(self) -> bool:
        """Whether the guest can be spoken to."""
        return self._guest is not None

    async def connect(self, port: socket.socket) -> None:
        """Carry sessions over the guest's ``port``, which is closed here at its end."""
        link = _Link(self._hub.take_for_guest, self._heard_guest, self._flush, self._lost_guest)
        port.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=port)
        self._guest = link
        self._flush()

    def _heard_guest(self, data: bytes) -> None:
        try:
            self._hub.hear_guest(data)
        except GuestError as error:
            self._abort_guest()
            self._report(seen.Caused(Cause.GUEST_FAULTED, error.message))
        self._flush()

    def _lost_guest(self) -> None:
        self._guest, self._ended = None, True
        self._hub.lose_guest()
        self._hub.changed |= self._hub.clients
        self._flush()

    def _abort_guest(self) -> None:
        if self._guest is not None:
            self._guest.abort()

    # The workload.

    def tap(self, name: str, path: Path) -> Tap:
        """What the workload prints to the stream of that name: a log at ``path``, and for those
        who are attached."""
        self._loop = asyncio.get_running_loop()
        tap = self._sources[STREAMS[name]] = Tap(path, self._wake)
        return tap

    def _wake(self) -> None:
        """There is more to show. Called in the streams' threads."""
        if self._loop is not None and self._hub.watchers and not self._will_show:
            self._will_show = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._show)

    def _show(self) -> None:
        self._will_show = False
        self._hub.show()
        self._flush()

    def hold_stdin(self, credited: Credited) -> str:
        """Let the caller write the workload's standard input, a window of it at first; or why not.

        ``credited`` is called with how many bytes more may be written then.
        """
        return self._hub.workload.hold(credited)

    def write_stdin(self, credited: Credited, data: bytes) -> None:
        """More for the workload's standard input; no data is its end."""
        workload = self._hub.workload
        if data:
            workload.write(credited, data)
        else:
            workload.end(credited)
        self._flush()

    def resize(self, terminal: Terminal) -> None:
        """The workload's terminal has another size."""
        self._hub.guest.put(Size(WORKLOAD, terminal))
        self._flush()

    def signal(self, number: int) -> None:
        """Send the workload's process group a signal."""
        self._hub.guest.put(Signal(WORKLOAD, number))
        self._flush()

    # The clients.

    async def serve(
        self, transport: asyncio.Transport, first: bytes, uid: int, *, detached: bool
    ) -> None:
        """Speak frames with a client of that user until it is gone.

        Its ``transport`` reads nothing yet; ``first`` was read from it before.
        """
        client = self._hub.join(uid, detached=detached)
        link = _Link(
            client.box.take,
            lambda data: self._heard_client(client, data),
            lambda: self._resumed_client(client),
            lambda: self._lost_client(client),
        )
        gone = self._gone[client] = asyncio.Event()
        self._links[client] = link
        link.connection_made(transport)
        transport.set_protocol(link)
        try:
            if first:
                self._heard_client(client, first)
            link.pace()
            await gone.wait()
        finally:
            link.abort()

    def end(self, code: int) -> None:
        """The cell has ended with that exit code, and all that the workload printed is there."""
        self._ended = True
        self._hub.end(code)
        self._hub.changed |= self._hub.clients
        self._flush()

    def close(self) -> None:
        """Leave the guest and every client."""
        self._abort_guest()
        for link in self._links.values():
            link.abort()

    def _heard_client(self, client: Client, data: bytes) -> None:
        try:
            self._hub.hear_client(client, data)
        except GuestError:  # what it says is no session: it must go
            self._links[client].abort()
        self._flush()

    def _resumed_client(self, client: Client) -> None:
        self._hub.changed.add(client)
        self._flush()

    def _lost_client(self, client: Client) -> None:
        del self._links[client]
        self._gone.pop(client).set()
        self._hub.leave(client)
        self._flush()

    def _flush(self) -> None:
        """Send what there is, to whoever takes it."""
        if self._guest is not None:
            self._guest.flush()
        while self._hub.changed:
            client = self._hub.changed.pop()
            link = self._links[client]
            link.flush()
            link.pace()
            if self._ended and not client.attached and client.box.is_empty:
                link.finish()
