"""The relay's only sockets and its only clock.

Three descriptors: the NIC's stream, the connected UDP socket, the supervisor's control socket.
Sending on the connected socket is the one way out; no address is ever given here. A fourth, the
kill switch, is only ever closed, which kills the machine.

Nothing is queued: when QEMU reads slower than the endpoint sends, the rest of what was received
waits where it was received, the UDP socket is not read meanwhile, and its buffer in the kernel
loses what does not fit, as a network card does.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from math import ceil

from wgcell.relay import control as words
from wgcell.relay import link
from wgcell.relay.datagrams import Datagrams
from wgcell.relay.rate import RateLimiter
from wgcell.relay.relay import (
    Arrived,
    Command,
    Cut,
    Relay,
    Report,
    Send,
    Verified,
    WriteNic,
)
from wgcell.relay.seal import Seal
from wgcell.relay.session import Handshake, SessionTable
from wgcell.wire import wireguard
from wgcell.wire.lines import LineError

__all__ = ["Loop"]

BUFFERS_A_WRITE = 1024
"""IOV_MAX."""


def boottime() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Loop:
    """Runs one relay until the supervisor says ``quit`` or is gone."""

    def __init__(
        self,
        nic: socket.socket,
        udp: socket.socket,
        control: socket.socket,
        kill_switch: int = -1,
    ) -> None:
        nic.setblocking(False)
        self._kill_switch = kill_switch
        self._nic: socket.socket | None = nic
        self._udp = udp
        self._datagrams = Datagrams(udp)
        self._control = control
        self._partial = b""
        self._fresh: list[int] = []
        """Sockets that have arrived before the order that they belong to."""
        self._pending: list[bytes | memoryview] = []
        self._relay: Relay | None = None
        self._stats_sent: words.Stats | None = None
        self._stats_due = 0.0
        self._unreported = True
        self._alive_at = 0.0
        self._read_at = 0.0
        self._out_of_step_at: dict[str, float] = {}
        self._limiters: tuple[RateLimiter, RateLimiter] | None = None
        """Out and in, if the job has a rate."""
        self._quota = 0
        self._held: dict[int, float] = {}
        """Descriptors that are not read until that time of CLOCK_BOOTTIME."""
        self._done = False

    @staticmethod
    def warm() -> None:
        """Run every kind of code once, so that nothing has to be loaded behind the seal."""
        relay = Relay(SessionTable(bytes(32), bytes(32), 1420))
        covered = b"\x01\0\0\0" + bytes(112)
        message = covered + wireguard.mac1(bytes(32), covered) + bytes(16)
        for data in (link.wrap(message), bytes(60)):
            record = len(data).to_bytes(4, "big") + data
            relay.room()[: len(record)] = record
            relay.outbound(len(record), boottime())
        relay.inbound([Arrived(message, (message,))], boottime())
        rogue = words.Rogue("é", "", message, time.time(), boottime())
        words.EVENTS.word(words.EVENTS.line(rogue))
        with contextlib.suppress(LineError):
            words.ORDERS.word(b'{"order": "warm"}')
        socket.CMSG_SPACE(4)
        array.array("i")

    def run(self, seal: Seal) -> None:
        """Serve until the end. ``seal`` is reported to the supervisor."""
        self._configure()
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        self._watch()
        supervisor, udp = self._control.fileno(), self._udp.fileno()
        self._report_event(words.Ready(seal.whole, seal.missing))
        while not self._done:
            for fd, events in self._poll.poll(self._patience()):
                if fd == supervisor:
                    self._obey()
                    continue
                self._unreported = True
                if fd == udp:
                    self._read_udp()
                elif self._nic is not None:
                    if events & select.POLLOUT:
                        self._write(self._pending)
                    if events & ~select.POLLOUT:
                        self._read_nic()
            if self._held:
                self._release()
            self._stats()
        self._stats(now=True)

    # The supervisor.

    def _report_event(self, word: words.Event) -> None:
        try:
            self._control.sendall(words.EVENTS.line(word))
        except OSError:
            self._done = True

    def _lines(self) -> list[words.Order]:
        try:
            data, fresh, _, _ = socket.recv_fds(self._control, 65536, 1)
        except ConnectionResetError:
            data, fresh = b"", []  # the supervisor has ended, and left something unread
        self._fresh += fresh
        if not data:
            self._done = True
            return []
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [words.ORDERS.word(line) for line in lines if line]

    def _renew(self, *, met: bool) -> None:
        """A fresh socket to the endpoint takes the old one's number: the host's network changed.

        ``met``: it is connected to another address, so the old one's sessions are forgotten first.
        """
        descriptor = self._fresh.pop(0)
        if met and self._relay is not None:
            self._relay.meet()
        os.dup2(descriptor, self._udp.fileno(), inheritable=False)
        os.close(descriptor)
        self._datagrams.renew()

    def _configure(self) -> None:
        lines: list[words.Order] = []
        while not lines and not self._done:
            lines = self._lines()
        if not lines:
            return
        first, *rest = lines
        if not isinstance(first, words.Configure):
            self._done = True  # the cell ended before it began
            return
        sessions = SessionTable(first.guest_public_key, first.endpoint_public_key, first.mtu)
        self._relay = Relay(sessions, lenient=first.lenient)
        if first.rate:
            self._limiters = RateLimiter(first.rate), RateLimiter(first.rate)
        self._quota = first.quota or 0
        for line in rest:
            self._execute(line)

    def _obey(self) -> None:
        for line in self._lines():
            self._execute(line)

    def _execute(self, word: words.Order) -> None:
        match word:
            case words.Renewed(met):
                self._renew(met=met)
            case words.Quit():
                self._done = True

    # The two ways.

    def _read_nic(self) -> None:
        if self._nic is None or self._relay is None:
            return
        try:
            room = self._relay.room()
            if self._limiters is not None:
                room = room[: self._limiters[0].read]
            count = self._nic.recv_into(room)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._unplug()
            self._report_event(words.Closed("nic"))
            return
        self._read_at, carried = boottime(), self._relay.bytes_out
        self._execute_commands(self._relay.outbound(count, self._read_at))
        if self._limiters is not None and self._nic is not None:
            passed = self._relay.bytes_out - carried
            self._hold(self._nic, self._limiters[0].spend(passed, self._read_at))
        if self._quota:
            self._count()

    def _read_udp(self) -> None:
        if self._relay is None:
            return
        arrived = self._datagrams.receive()
        if not arrived:
            return
        before, carried = self._relay.messages_in, self._relay.bytes_in
        now = boottime()
        self._execute_commands(self._relay.inbound(arrived, now))
        if self._limiters is not None:
            self._hold(self._udp, self._limiters[1].spend(self._relay.bytes_in - carried, now))
        if self._quota:
            self._count()
        if self._relay.messages_in > before and now - self._alive_at >= 1:
            self._alive_at = now
            self._report_event(words.Alive())

    def _execute_commands(self, commands: list[Command]) -> None:
        send = self._datagrams.send
        for command in commands:
            if type(command) is Send:  # nearly all are
                send(command.payloads)
                continue
            match command:
                case WriteNic(buffers):
                    self._write(buffers)
                case Handshake(initiator):
                    self._report_event(words.Handshake(initiator.value))
                case Verified():
                    self._report_event(words.Verified())
                case Report(refusal, frame):
                    self._report(refusal.reason.value, refusal.detail, refusal.rogue, frame)
                case Cut():
                    self._cut()

    def _report(self, reason: str, detail: str, rogue: bool, frame: bytes) -> None:
        if rogue:
            self._report_event(words.Rogue(reason, detail, frame, time.time(), self._read_at))
        elif boottime() - self._out_of_step_at.get(reason, -1.0) >= 1:
            self._out_of_step_at[reason] = boottime()
            self._report_event(words.OutOfStep(reason, detail))

    def _write(self, buffers: list[bytes | memoryview]) -> None:
        """Write to the NIC's socket. The rest waits if it is full, and so does the endpoint."""
        if self._nic is None:
            return
        waited = bool(self._pending)
        try:
            while buffers:
                written = os.writev(self._nic.fileno(), buffers[:BUFFERS_A_WRITE])
                buffers = _behind(buffers, written)
        except BlockingIOError:
            pass
        except OSError:
            buffers = []  # the read will say that it is closed
        self._pending = buffers
        if waited != bool(buffers):
            self._watch()

    def _watch(self) -> None:
        """Set what wakes the loop: bytes to read, and room in the NIC's socket."""
        if self._nic is not None:
            reads = 0 if self._nic.fileno() in self._held else select.POLLIN
            self._want(self._nic, reads | (select.POLLOUT if self._pending else 0))
        held = self._udp.fileno() in self._held
        self._want(self._udp, 0 if self._pending or held else select.POLLIN)

    def _want(self, sock: socket.socket, events: int) -> None:
        # A socket that is merely masked still wakes the loop at an error of the path.
        if events:
            self._poll.register(sock, events)
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(sock)

    # The job's limits, where it has any.

    def _hold(self, sock: socket.socket, seconds: float) -> None:
        if seconds > 0:
            self._held[sock.fileno()] = boottime() + seconds
            self._watch()

    def _release(self) -> None:
        now = boottime()
        due = [fd for fd, until in self._held.items() if until <= now]
        if due:
            for fd in due:
                del self._held[fd]
            self._watch()

    def _patience(self) -> int | None:
        """The most milliseconds to wait; None if no figures are to come and nobody is held."""
        patience = 1000 if self._unreported else None
        if self._held:
            soon = max(1, ceil((min(self._held.values()) - boottime()) * 1000))
            patience = soon if patience is None else min(patience, soon)
        return patience

    def _count(self) -> None:
        """Cut the link when the job's quota, both ways together, has been carried."""
        relay = self._relay
        if relay is None or relay.cut or relay.bytes_out + relay.bytes_in < self._quota:
            return
        # The machine lives on without a link: its workload has a grace period.
        self._unplug()
        self._report_event(words.Quota(relay.bytes_out + relay.bytes_in))

    def _cut(self) -> None:
        """Kill the machine; the event comes later."""
        if self._kill_switch >= 0:
            os.close(self._kill_switch)
            self._kill_switch = -1
        self._unplug()

    def _unplug(self) -> None:
        if self._relay is not None:
            self._relay.cut = True
        if self._nic is not None:
            self._held.pop(self._nic.fileno(), None)
            self._want(self._nic, 0)
            self._nic.close()
            self._nic = None
            self._pending = []
            self._watch()

    def _stats(self, *, now: bool = False) -> None:
        relay = self._relay
        if relay is None or (boottime() < self._stats_due and not now):
            return
        self._stats_due = boottime() + 1
        self._unreported = False
        stats = words.Stats(
            messages_out=relay.messages_out,
            messages_in=relay.messages_in,
            bytes_out=relay.bytes_out,
            bytes_in=relay.bytes_in,
            handshakes=relay.handshakes,
            refused=dict(relay.refused),
            dropped_in=dict(relay.dropped_in),
            lost=self._datagrams.lost,
            unanswered=relay.unanswered,
        )
        if stats != self._stats_sent or now:
            self._stats_sent = stats
            self._report_event(stats)


def _behind(buffers: list[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """The rest of ``buffers`` when so many bytes are written."""
    if written == sum(map(len, buffers)):
        return []
    for n, buffer in enumerate(buffers):
        if written < len(buffer):
            return [buffer[written:], *buffers[n + 1 :]]
        written -= len(buffer)
    return []
