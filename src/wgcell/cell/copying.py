"""Files between this machine and a cell that runs, through a session of the cell's.

Out of a cell comes what its workload likes to send: the same confined process unpacks it that
unpacks outputs, by the same rules. Into a cell goes the tar that inputs are packed into, or one of
the caller's, which is read strictly on its way, for the guest's tar knows one format only.

Every call blocks and belongs in a thread; `stop` of a `Copy` ends it from another.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from wgcell.cell.archive import Unpacked
from wgcell.cell.control.session import Connection
from wgcell.cell.folder import Folder
from wgcell.cell.inputs import Input
from wgcell.cell.packing import MOST_BYTES, write
from wgcell.cell.tarstream import TarStream, headers
from wgcell.cell.unpacking import Unpacking
from wgcell.errors import ArchiveError, InputError, StateError
from wgcell.guest.frames import STDERR, STDOUT, Data, Exit, Pack, Unpack

__all__ = ["Copy", "Stopped", "literal"]

NO_FOLDER = 126
"""The exit code of a session whose folder is not there."""
_EMPTY_TAR = bytes(1024)
_MOST_SAID = 4096
"""Bytes of what the guest's tar says about its errors that are kept."""
UNPACKED_WITHIN = 45.0
"""Seconds that the unpacking may go on after the last byte that came."""


class Stopped(Exception):
    """Somebody stopped the copy."""


class Copy:
    """One copy, between a cell and here. ``moved`` is called with how many bytes have gone."""

    def __init__(self, cell: Folder, moved: Callable[[int], None] = lambda count: None) -> None:
        self._cell = cell
        self._moved = moved
        self._stopped, self._stop = socket.socketpair()
        self._said = b""
        """What the guest's tar says about its errors."""
        self._code = 0

    def close(self) -> None:
        """Let go of what it holds."""
        self._stopped.close()
        self._stop.close()

    def stop(self) -> None:
        """End it: whatever waits raises `Stopped`. Any thread may call it."""
        with suppress(OSError):
            self._stop.shutdown(socket.SHUT_WR)

    def _begun(self, subject: Pack | Unpack) -> Connection:
        self._said = b""
        return Connection(self._cell, subject)

    # Out of the cell.

    async def fetch(
        self, path: str, destination: Path, asked: Sequence[str], most: int
    ) -> Unpacked:
        """Unpack the tar of ``path`` into the folder ``destination``, which is made.

        ``asked`` are the patterns that members must fit, ``most`` bounds their bytes. Raises
        StateError, GuestError and HostError.
        """
        with self._begun(Pack(path)) as connection:
            unpacking = await Unpacking.start(destination, asked, most)
            unpacked = await unpacking.unpacked(
                lambda take: self._receive(connection, take), UNPACKED_WITHIN
            )
        self._require(self._code)
        return unpacked

    def _receive(self, connection: Connection, take: Callable[[memoryview], None]) -> None:
        while True:
            for frame in self._heard(connection):
                match frame:
                    case Data(_, stream, data) if stream == STDOUT:
                        take(memoryview(data))
                        connection.credit(STDOUT, len(data))
                        self._moved(len(data))
                    case Exit(_, code):
                        self._code = code
                        return

    # Into the cell.

    def is_folder(self, path: str) -> bool:
        """Whether ``path`` is a folder in the cell. Raises StateError."""
        with self._begun(Unpack(path)) as connection:
            if connection.room:  # else it has ended by now
                connection.write(_EMPTY_TAR)
            return self._finish(connection) != NO_FOLDER

    def send(self, inputs: Sequence[Input], path: str) -> None:
        """Pack ``inputs`` into the folder ``path`` of the cell.

        Raises InputFileError as `packing.write` does; StateError, with what the guest's tar says,
        if it can't be written there.
        """
        with self._begun(Unpack(path)) as connection:
            file = cast(BinaryIO, _Sink(lambda data: self._write(connection, data)))
            write(inputs, file, ignore_files=False)
            self._require(self._finish(connection))

    def send_tar(self, source: BinaryIO, path: str) -> None:
        """Unpack the tar ``source`` into the folder ``path`` of the cell.

        Raises InputError for a tar of another form than GNU's; StateError as `send`.
        """
        with self._begun(Unpack(path)) as connection:
            vetted = _Vetted(source, lambda data: self._write(connection, data))
            stream = TarStream(cast(BinaryIO, vetted), MOST_BYTES)
            try:
                for header in headers(stream):
                    vetted.pass_on()
                    for _ in stream.contents(header.size):
                        vetted.pass_on()
                stream.finish()
            except ArchiveError as error:
                raise InputError(
                    f"standard input: {error.message}", hint="make it with tar --format=gnu"
                ) from None
            vetted.pass_on()
            self._require(self._finish(connection))

    def _write(self, connection: Connection, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not (room := connection.room):
                for frame in self._heard(connection):
                    if isinstance(frame, Exit):
                        raise StateError(f"{self._cell.id}: {self._reason()}")
                continue
            connection.write(bytes(view[:room]))
            self._moved(min(room, len(view)))
            view = view[room:]

    def _finish(self, connection: Connection) -> int:
        """The exit code, once the tar has ended."""
        connection.write(b"")
        while True:
            for frame in self._heard(connection):
                if isinstance(frame, Exit):
                    return frame.code

    def _require(self, code: int) -> None:
        if code:
            raise StateError(f"{self._cell.id}: {self._reason()}")

    def _reason(self) -> str:
        said = self._said.decode("utf-8", "backslashreplace").strip()
        return said.removeprefix("wgcell: ") or "the guest's tar failed, and did not say why"

    def _heard(self, connection: Connection) -> list[Data | Exit]:
        """What comes next, if anything does; what the guest's tar says of errors is kept."""
        if not (found := connection.receive()):
            here, stopped = connection.fileno(), self._stopped.fileno()
            writing = (here,) if connection.wants_to_write else ()
            ready, _, _ = select.select((here, stopped), writing, ())
            if stopped in ready:
                raise Stopped
            connection.flush()
            found = connection.receive()
        for frame in found:
            if isinstance(frame, Data) and frame.stream == STDERR:
                self._said = (self._said + frame.data)[:_MOST_SAID]
                connection.credit(STDERR, len(frame.data))
        return [one for one in found if isinstance(one, Data | Exit)]


class _Sink:
    """A file that a tar is written to: it knows how far it is, and gives it on."""

    def __init__(self, give: Callable[[bytes], None]) -> None:
        self._give = give
        self._at = 0

    def write(self, data: bytes) -> int:
        self._give(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at


class _Vetted:
    """A source that is passed on as it was read, but not before `pass_on`."""

    def __init__(self, source: BinaryIO, give: Callable[[bytes], None]) -> None:
        self._source, self._give = source, give
        self._held: list[bytes] = []

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._held.append(data)
        return data

    def pass_on(self) -> None:
        held, self._held = self._held, []
        for data in held:
            self._give(data)


def literal(name: str) -> str:
    """The pattern that matches ``name`` alone."""
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)
