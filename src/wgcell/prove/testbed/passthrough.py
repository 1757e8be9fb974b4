"""A relay that checks nothing, for the controls: it has the interface of `RelayProcess`.

Each frame of the NIC goes unchanged onto the host's card, as through a tap on a bridge. The payload
of a frame to the link's gateway is also sent to the endpoint, as the relay would send it, so that a
whole cell can start behind it. A frame that the card refuses (too short) leaves as the payload of a
datagram. Frames and datagrams both come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from wgcell.prove.testbed.capture import tunnel_payload
from wgcell.relay import control, link

__all__ = ["PassThroughRelay"]

VERIFIED_AFTER = 2.0
"""Seconds from the start until the tunnel is reported as verified."""
_READ = 1 << 18
_LONGEST = 70_000


class PassThroughRelay:
    """A relay that passes everything through."""

    sealed = False
    missing: Mapping[str, str] = MappingProxyType(
        {"relay": "replaced by a pass-through on purpose, as a control"}
    )

    def __init__(
        self,
        nic: socket.socket,
        udp: socket.socket,
        wire: socket.socket | None,
        to: tuple[str, int] | None = None,
    ) -> None:
        """``to`` is the destination of datagrams if ``udp`` is not connected."""
        self._nic, self._udp, self._to = nic, udp, to
        self._wire = None if wire is None else socket.socket(fileno=os.dup(wire.fileno()))
        self._unparsed = b""
        self._pending = bytearray()
        self._events: asyncio.Queue[control.Event | None] = asyncio.Queue()
        self._gateway = frozenset({link.GATEWAY_ADDRESS})
        self._closed = False

    def listen(self) -> PassThroughRelay:
        """Begin to read all sockets."""
        loop = asyncio.get_running_loop()
        readers = (
            (self._nic, self._read_nic),
            (self._udp, self._read_udp),
            (self._wire, self._read_wire),
        )
        for sock, read in readers:
            if sock is not None:
                sock.setblocking(False)
                loop.add_reader(sock, read)
        return self

    def replace_udp(self, fresh: socket.socket, *, met: bool) -> None:
        """Replace the UDP socket by a duplicate of ``fresh``, and close ``fresh``."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._udp)
        self._udp.close()
        with fresh:
            self._udp = fresh.dup()
        self._udp.setblocking(False)
        loop.add_reader(self._udp, self._read_udp)

    def _read_nic(self) -> None:
        try:
            data = self._nic.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # QEMU is gone. The relay, too, stays until it is asked to quit.
            asyncio.get_running_loop().remove_reader(self._nic)
            return
        self._unparsed += data
        while len(self._unparsed) >= 4:
            length = int.from_bytes(self._unparsed[:4], "big")
            if not 0 < length <= _LONGEST:
                # A false length: send all bytes behind it.
                length = len(self._unparsed) - 4
            if len(self._unparsed) < 4 + length:
                return
            frame, self._unparsed = self._unparsed[4 : 4 + length], self._unparsed[4 + length :]
            self._emit(frame)

    def _emit(self, frame: bytes) -> None:
        payload = tunnel_payload(frame, self._gateway, link.PORT)
        try:
            if self._wire is None:
                raise OSError
            self._wire.send(frame)
        except OSError:
            self._send(frame if payload is None else payload)
            return
        if payload is not None:
            self._send(payload)

    def _send(self, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._to is None:
                self._udp.send(payload)
            else:
                self._udp.sendto(payload, self._to)

    def _read_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._deliver(link.wrap(self._udp.recv(1 << 16)))
                self._events.put_nowait(control.Alive())

    def _read_wire(self) -> None:
        with contextlib.suppress(OSError):
            while self._wire is not None:
                frame, (_, _, kind, *_) = self._wire.recvfrom(1 << 17)
                if kind != socket.PACKET_OUTGOING:
                    self._deliver(frame)

    def _deliver(self, frame: bytes) -> None:
        self._pending += len(frame).to_bytes(4, "big") + frame
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._nic)
        with contextlib.suppress(OSError):
            while self._pending:
                del self._pending[: self._nic.send(self._pending)]
        if self._pending and not self._closed:
            loop.add_writer(self._nic, self._flush)

    # The interface of RelayProcess.

    async def configure(self, configuration: control.Configure) -> None:
        """As `RelayProcess.configure`; the configuration changes nothing here.

        The tunnel is reported as verified without a check, after `VERIFIED_AFTER` seconds. So the
        guest's own reports decide whether the cell runs.
        """
        self.listen()
        loop = asyncio.get_running_loop()
        loop.call_later(VERIFIED_AFTER, self._events.put_nowait, control.Verified())

    def send(self, word: control.Order) -> None:
        """Ignore the command."""

    async def events(self) -> AsyncIterator[control.Event]:
        """The relay's messages to its supervisor, until the end."""
        while (event := await self._events.get()) is not None:
            yield event

    async def quit(self) -> int:
        """End."""
        self.close()
        return 0

    def close(self) -> None:
        """Close all sockets, once."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        for sock in (self._nic, self._udp, self._wire):
            if sock is not None:
                loop.remove_reader(sock)
                loop.remove_writer(sock)
                sock.close()
        self._events.put_nowait(None)
