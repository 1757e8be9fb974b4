"""The control: what stands in the relay's place when the wall is to be down.

It has the shape of `wgcell.cell.children.RelayProcess`, and checks nothing. What comes from the
NIC goes onto the host's card as it is, as through a tap on a bridge; what is addressed to the
link's gateway is also sent on as the relay would, so that a whole cell comes up behind it. A frame
that no card takes (too short) goes out as a datagram's payload. Back come both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from wgcell.prove.oracle import PACKET_OUTGOING, tunnel_payload
from wgcell.relay import control, link

__all__ = ["OpenedRelay"]

VERIFIED_AFTER = 2.0
"""Seconds."""
_READ = 1 << 18
_LONGEST = 70_000


class OpenedRelay:
    """A relay without a wall."""

    sealed = False
    missing: Mapping[str, str] = MappingProxyType({"relay": "opened on purpose, as a control"})

    def __init__(
        self,
        nic: socket.socket,
        udp: socket.socket,
        wire: socket.socket | None,
        to: tuple[str, int] | None = None,
    ) -> None:
        """``to`` is where datagrams go if ``udp`` is not connected."""
        self._nic, self._udp, self._to = nic, udp, to
        self._wire = None if wire is None else socket.socket(fileno=os.dup(wire.fileno()))
        self._kept = b""
        self._pending = bytearray()
        self._events: asyncio.Queue[control.Said | None] = asyncio.Queue()
        self._gateway = frozenset({link.GATEWAY_ADDRESS})
        self._closed = False

    def listen(self) -> OpenedRelay:
        """Begin."""
        loop = asyncio.get_running_loop()
        ways = ((self._nic, self._from_nic), (self._udp, self._from_udp), (self._wire, self._tap))
        for sock, read in ways:
            if sock is not None:
                sock.setblocking(False)
                loop.add_reader(sock, read)
        return self

    def replace_udp(self, fresh: socket.socket, *, met: bool) -> None:
        """Send there from now on; closed here then."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._udp)
        self._udp.close()
        with fresh:
            self._udp = fresh.dup()
        self._udp.setblocking(False)
        loop.add_reader(self._udp, self._from_udp)

    def _from_nic(self) -> None:
        try:
            data = self._nic.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # QEMU is gone; as the relay does, this stays until it is told to quit.
            asyncio.get_running_loop().remove_reader(self._nic)
            return
        self._kept += data
        while len(self._kept) >= 4:
            length = int.from_bytes(self._kept[:4], "big")
            if not 0 < length <= _LONGEST:
                # A length that lies: whatever stands behind it, out with it.
                length = len(self._kept) - 4
            if len(self._kept) < 4 + length:
                return
            frame, self._kept = self._kept[4 : 4 + length], self._kept[4 + length :]
            self._out(frame)

    def _out(self, frame: bytes) -> None:
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

    def _from_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._in(link.wrap(self._udp.recv(1 << 16)))
                self._events.put_nowait(control.Alive())

    def _tap(self) -> None:
        with contextlib.suppress(OSError):
            while self._wire is not None:
                frame, (_, _, kind, *_) = self._wire.recvfrom(1 << 17)
                if kind != PACKET_OUTGOING:
                    self._in(frame)

    def _in(self, frame: bytes) -> None:
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

    # The shape of a RelayProcess.

    async def configure(self, configuration: control.Configure) -> None:
        """As `RelayProcess.configure`; the configuration has nothing to say here.

        The tunnel is called verified, unlooked at; what counts then is the guest's own word.
        """
        self.listen()
        loop = asyncio.get_running_loop()
        loop.call_later(VERIFIED_AFTER, self._events.put_nowait, control.Verified())

    def send(self, word: control.Told) -> None:
        """No command means anything here."""

    async def events(self) -> AsyncIterator[control.Said]:
        """What a supervisor needs to hear, until the end."""
        while (event := await self._events.get()) is not None:
            yield event

    async def quit(self) -> int:
        """End."""
        self.close()
        return 0

    def close(self) -> None:
        """Close all sockets; more than once does no harm."""
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
