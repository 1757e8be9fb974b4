"""The workload's two streams and the tar of its outputs, on their way out of the guest.

The guest's message that the workload has ended comes on another port than the bytes, and earlier:
up to 4 MiB of each port are still on their way by then. So the guest states the number of bytes,
and nothing is complete before the host has them all.

Each of the three has a thread of its own, since standard output and the disk block. A reader that
stops reading stops its thread; the port fills up, and the workload waits in its next write, as it
would in a pipe. The threads are daemons: one that waits for its reader for good does not keep the
process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from wgcell.cell.core.events import StreamFacts
from wgcell.errors import GuestError, WgcellError

__all__ = ["ArrivingOutputs", "Log", "Sink", "Stream"]

_CHUNK = 1 << 16
_TAR_BUFFER = 1 << 18
_STANDS_STILL = 1.0
"""Seconds without a byte read, at a cell's end, that mean a reader who does not read."""

Sink = Callable[[bytes], None]
"""Writes all of what it is given, and returns when that is done.

BrokenPipeError means that nobody reads it any more, any other OSError that it can't be written.
"""


class Log(Protocol):
    """The log of a stream's bytes, on the disk."""

    def write(self, data: bytes) -> None:
        """Keep them. Raises StateError."""

    def close(self) -> None:
        """Close the file. Raises OSError."""


class Stream:
    """One of the workload's two streams, from its port to its log and to its reader.

    ``heard`` is called in the event loop after each change: bytes were delivered, the reader is
    gone, the sink failed, the port ended. The attributes have the state.
    """

    def __init__(self, name: str, sink: Sink, log: Log, heard: Callable[[], None]) -> None:
        self.name = name
        self.delivered = 0
        """Bytes that the reader has taken (or that were dropped, once it was gone)."""
        self.reader_gone = False
        self.failure: OSError | WgcellError | None = None
        """Why the bytes could not be written; they are dropped from then on."""
        self.ended = False
        """The port has ended, or the stream was given up: nothing more is delivered."""
        self.given_up = False
        self.moved = time.monotonic()
        """When bytes last came or went."""
        self.waits_for_reader = False
        self._sink: Sink | None = sink
        self._log = log
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()

    def facts(self) -> StreamFacts:
        """The stream's progress.

        Its thread goes on meanwhile, so the order counts: no byte may come behind an end that is
        reported, and no failure behind the bytes that are.
        """
        ended, delivered = self.ended, self.delivered
        failure = self.failure
        return StreamFacts(
            self.name,
            delivered,
            reader_gone=self.reader_gone,
            failure=None if failure is None else getattr(failure, "strerror", "") or str(failure),
            ended=ended,
            moved=self.moved,
            waits_for_reader=self.waits_for_reader,
        )

    def carry(self, port: socket.socket) -> None:
        """Start carrying; ``port`` is closed here at its end."""
        threading.Thread(target=self._carry, args=(port,), name=self.name, daemon=True).start()

    def give_up(self) -> None:
        """Its reader has had its time: what it has not read by now, it will not get."""
        self.given_up = self.ended = True

    async def over(self, patience: float) -> bool:
        """Wait for the port's end, at most ``patience`` seconds; whether it was reached.

        Not for a reader who stands still.
        """
        until = time.monotonic() + patience
        while not self._over.is_set():
            now = time.monotonic()
            if now > until or (self.waits_for_reader and now - self.moved > _STANDS_STILL):
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), 0.1)
        return True

    def _carry(self, port: socket.socket) -> None:
        port.setblocking(True)
        try:
            with port:
                while data := _received(port):
                    self.moved = time.monotonic()
                    self._deliver(data)
                    self.moved = time.monotonic()
                    self.delivered += len(data)
                    self._tell(self._heard)
        finally:
            try:
                self._log.close()
            except OSError as error:  # a network's file system may say only now that it is full
                self.failure = self.failure or error
            self.ended = True
            self._tell(self._over.set)
            self._tell(self._heard)

    def _deliver(self, data: bytes) -> None:
        if self.given_up:
            return  # the record may be closed by now
        try:
            self._log.write(data)
            if self._sink is None:
                return
            self.waits_for_reader = True
            self._sink(data)
        except BrokenPipeError:
            self._sink = None
            self.reader_gone = True
        except (OSError, ValueError, WgcellError) as error:
            self._sink = None
            self.failure = error if not isinstance(error, ValueError) else OSError(str(error))
        finally:
            self.waits_for_reader = False

    def _tell(self, heard: Callable[[], None]) -> None:
        # The loop is closed if the cell was given up while its reader stood still.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(heard)


def _received(port: socket.socket) -> bytes:
    """The next bytes; none at the end, or when QEMU is gone."""
    try:
        return port.recv(_CHUNK)
    except OSError:
        return b""


class ArrivingOutputs:
    """The tar of the outputs as it arrives, handed on as it comes, up to where the guest said.

    `carry` does it, in a thread; meanwhile the event loop may call `state`.
    """

    def __init__(self, port: socket.socket) -> None:
        port.setblocking(True)
        self._port = port
        self._digest = hashlib.sha256()
        self._size: int | None = None
        self._sha256 = ""
        self.received = 0
        self.moved = time.monotonic()

    def state(self, size: int, sha256: str) -> None:
        """The guest's word: the tar has ``size`` bytes, and that SHA-256 (hexadecimal)."""
        self._sha256 = sha256
        self._size = size
        if self.received >= size:
            # The reading thread waits for more; this wakes it. It looks the other way round, first
            # at what it received and then at the size, so one of both sees it.
            # It may have seen the size first, and closed the port.
            with contextlib.suppress(OSError):
                self._port.shutdown(socket.SHUT_RD)

    def carry(self, take: Callable[[memoryview], None]) -> None:
        """Give ``take`` each piece, until all has come; whether ``take`` wants it or not.

        Raises GuestError if what came is not what was stated.
        """
        buffer = memoryview(bytearray(_TAR_BUFFER))
        with self._port:
            while piece := self._piece(buffer):
                self._digest.update(piece)
                self.received += len(piece)
                self.moved = time.monotonic()
                take(piece)
                self.moved = time.monotonic()
        self._check()

    def close(self) -> None:
        """Close the port, of which nothing was carried."""
        self._port.close()

    def _piece(self, buffer: memoryview) -> memoryview:
        """The next bytes; none at the end that the guest stated, or when QEMU is gone."""
        if self._size is not None and self.received >= self._size:
            return buffer[:0]
        try:
            return buffer[: self._port.recv_into(buffer)]
        except OSError:
            return buffer[:0]

    def _check(self) -> None:
        if self._size is None:
            raise GuestError(f"the outputs broke off after {self.received} bytes")
        if self.received != self._size:
            raise GuestError(f"{self.received} of the outputs' {self._size} bytes came")
        if self._digest.hexdigest() != self._sha256:
            raise GuestError("the outputs that came have another SHA-256 than the guest stated")
