"""The relay's only sockets and its only clock.

Three descriptors: the NIC's stream, the connected UDP socket, the supervisor's control socket.
``send`` on the connected socket is the one way out; no address is ever given here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import time
from typing import Any

from wgcell.relay.relay import (
    Command,
    Cut,
    Phase,
    Relay,
    Report,
    SendDatagram,
    Verified,
    WriteNic,
)
from wgcell.relay.session import Handshake, SessionTable

__all__ = ["Loop"]

READ_SIZE = 1 << 18
DATAGRAMS_A_TURN = 64
PENDING_MOST = 1 << 22
"""Bytes kept for a NIC that does not read; beyond, datagrams are dropped as a full queue would."""
EVIDENCE_BYTES = 2048


def boottime() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Loop:
    """Runs one relay until the supervisor says ``quit`` or is gone."""

    def __init__(self, nic: socket.socket, udp: socket.socket, control: socket.socket) -> None:
        self._nic: socket.socket | None = nic
        self._udp = udp
        self._control = control
        self._told = b""
        self._pending = bytearray()
        self._overflow = 0
        self._relay: Relay | None = None
        self._stats_sent: dict[str, Any] = {}
        self._stats_due = 0.0
        self._alive_told = 0.0
        self._stumble_told: dict[str, float] = {}
        self._done = False

    def run(self) -> None:
        """Serve until the end."""
        self._configure()
        self._poll = select.poll()
        for sock in (self._nic, self._udp, self._control):
            if sock is not None:
                sock.setblocking(False)
                self._poll.register(sock, select.POLLIN)
        self._control.setblocking(True)
        self._tell("ready")
        while not self._done:
            for fd, events in self._poll.poll(1000):
                if fd == self._control.fileno():
                    self._obey()
                elif fd == self._udp.fileno():
                    self._read_udp()
                elif self._nic is not None and fd == self._nic.fileno():
                    if events & select.POLLOUT:
                        self._flush()
                    if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                        self._read_nic()
            self._stats()
        self._stats(now=True)

    # The supervisor.

    def _tell(self, event: str, **fields: Any) -> None:
        try:
            self._control.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")
        except OSError:
            self._done = True

    def _lines(self) -> list[dict[str, Any]]:
        data = self._control.recv(65536)
        if not data:
            self._done = True
            return []
        *lines, self._told = (self._told + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def _configure(self) -> None:
        lines: list[dict[str, Any]] = []
        while not lines and not self._done:
            lines = self._lines()
        if not lines:
            return
        first, *rest = lines
        sessions = SessionTable(
            base64.b64decode(first["guest_public_key"]),
            base64.b64decode(first["endpoint_public_key"]),
            int(first["mtu"]),
        )
        self._relay = Relay(sessions)
        for line in rest:
            self._one(line)

    def _obey(self) -> None:
        for line in self._lines():
            self._one(line)

    def _one(self, line: dict[str, Any]) -> None:
        match line.get("command"):
            case "phase" if self._relay is not None:
                self._relay.phase = Phase(line["phase"])
            case "cut":
                self._cut()
            case "quit":
                self._done = True

    # The two ways.

    def _read_nic(self) -> None:
        if self._nic is None or self._relay is None:
            return
        try:
            data = self._nic.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._cut()
            self._tell("closed", which="nic")
            return
        self._do(self._relay.outbound(data, boottime()))

    def _read_udp(self) -> None:
        if self._relay is None:
            return
        datagrams: list[bytes] = []
        for _ in range(DATAGRAMS_A_TURN):
            try:
                datagrams.append(self._udp.recv(65536))
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of the path, delivered once; the tunnel's clock decides
        before = self._relay.messages_in
        self._do(self._relay.inbound(datagrams, boottime()))
        if self._relay.messages_in > before and boottime() - self._alive_told >= 1:
            self._alive_told = boottime()
            self._tell("alive")

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case SendDatagram(payload):
                    # A full socket buffer or an unreachable path loses a datagram, as UDP does.
                    with contextlib.suppress(OSError):
                        self._udp.send(payload)
                case WriteNic(data):
                    self._write(data)
                case Handshake(initiator):
                    self._tell("handshake", initiator=initiator.value)
                case Verified():
                    self._tell("verified")
                case Report(refusal, frame):
                    self._report(refusal.reason.value, refusal.detail, refusal.rogue, frame)
                case Cut():
                    self._cut()

    def _report(self, reason: str, detail: str, rogue: bool, frame: bytes) -> None:
        if rogue:
            # The cut comes first in effect: nothing behind this frame was forwarded.
            shown = base64.b64encode(frame[:EVIDENCE_BYTES]).decode()
            self._tell("rogue", reason=reason, detail=detail, frame=shown, time=time.time())
        elif boottime() - self._stumble_told.get(reason, -1.0) >= 1:
            self._stumble_told[reason] = boottime()
            self._tell("out_of_step", reason=reason, detail=detail)

    def _write(self, data: bytes) -> None:
        if self._nic is None:
            return
        if len(self._pending) + len(data) > PENDING_MOST:
            self._overflow += 1
            return
        self._pending += data
        self._flush()

    def _flush(self) -> None:
        if self._nic is None:
            return
        try:
            while self._pending:
                del self._pending[: self._nic.send(self._pending)]
        except BlockingIOError:
            self._poll.modify(self._nic, select.POLLIN | select.POLLOUT)
            return
        except OSError:
            return  # the read will say that it is closed
        self._poll.modify(self._nic, select.POLLIN)

    def _cut(self) -> None:
        if self._relay is not None:
            self._relay.cut = True
        if self._nic is not None:
            self._poll.unregister(self._nic)
            self._nic.close()
            self._nic = None

    def _stats(self, *, now: bool = False) -> None:
        relay = self._relay
        if relay is None or (boottime() < self._stats_due and not now):
            return
        self._stats_due = boottime() + 1
        stats = {
            "messages_out": relay.messages_out,
            "messages_in": relay.messages_in,
            "bytes_out": relay.bytes_out,
            "bytes_in": relay.bytes_in,
            "handshakes": relay.handshakes,
            "refused": dict(relay.refused),
            "dropped_in": dict(relay.dropped_in),
            "overflow": self._overflow,
        }
        if stats != self._stats_sent or now:
            self._stats_sent = stats
            self._tell("stats", **stats)
