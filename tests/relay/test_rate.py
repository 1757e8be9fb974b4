"""A job's rate and quota: the bucket by itself, and the real relay process held to them."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.messages import frame, initiation, response, transport
from tests.support.relays import Process
from tests.support.waiting import pace

from wgcell.relay import link
from wgcell.relay.framing import PREFIX, prefixed
from wgcell.relay.rate import BURST, RateLimiter

RATE = 1_000_000.0
"""Bytes a second."""
SIZE = 1440


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=200), st.floats(8_000, 1e9))
def test_no_more_passes_than_the_rate_and_one_burst(reads: list[int], rate: float) -> None:
    pace, now, passed = RateLimiter(rate), 0.0, 0
    for count in reads:
        # A read is let through when the debt before it is paid.
        assert passed <= rate * (now + BURST) * 1.000001 + 1
        passed += count
        now += pace.spend(count, now)
    assert passed <= rate * (now + BURST) * 1.000001 + 1


def test_over_ten_seconds_it_is_exact_and_silence_saves_up_no_more_than_a_burst() -> None:
    pace, now, passed = RateLimiter(RATE), 100.0, 0
    pace.spend(0, now)
    while now < 110.0:
        passed += 30_000
        now += max(pace.spend(30_000, now), 0.001)
    assert passed / 10.0 == pytest.approx(RATE, rel=0.05)


class Joined(Process):
    """A relay with an established session, that has been told limits."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits
        super().__init__()
        self.nic.sendall(prefixed(frame(initiation(1))))
        self.endpoint.recv(2000)
        self.endpoint.sendto(response(5, 1), self.guest_port)
        self.nic.recv(2000)
        self.nic.sendall(prefixed(frame(transport(5))))
        self.endpoint.recv(2000)
        self.sent, self.template = 1, b""

    def tell(self, command: str, **fields: object) -> None:
        more = self.limits if command == "configure" else {}
        super().tell(command, **fields, **more)

    def message(self, index: int) -> bytes:
        self.sent += 1
        head = transport(index)[:8] + self.sent.to_bytes(8, "little")
        return head + bytes(SIZE - len(head))

    def batch(self, count: int) -> bytes:
        """Transport on its way out, each with its own counter: what changes is written in."""
        if not self.template:
            self.template = prefixed(frame(self.message(5)))
        counter = PREFIX + link.HEADERS + 8
        before, behind = self.template[:counter], self.template[counter + 8 :]
        self.sent += count
        numbers = range(self.sent - count + 1, self.sent + 1)
        return b"".join(before + n.to_bytes(8, "little") + behind for n in numbers)


@pytest.mark.alone
def test_out_the_relay_holds_qemu_to_the_rate() -> None:
    running, seconds = Joined(rate=RATE), 5.0
    running.nic.settimeout(seconds)
    stop = time.monotonic() + seconds

    def pour() -> None:
        while time.monotonic() < stop:
            try:
                running.nic.sendall(running.batch(16))
            except OSError:
                return

    pouring = threading.Thread(target=pour, daemon=True)
    running.endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    pouring.start()
    got = 0
    running.endpoint.settimeout(0.5)
    while time.monotonic() < stop:
        got += len(running.endpoint.recv(2000))
    assert got / seconds == pytest.approx(RATE, rel=0.1)
    running.tell("quit")
    running.close()
    pouring.join()


@pytest.mark.alone
def test_in_no_more_reaches_qemu_than_the_rate() -> None:
    running, seconds = Joined(rate=RATE), 5.0
    stop = time.monotonic() + seconds
    got = 0
    running.nic.settimeout(0.5)
    while time.monotonic() < stop:
        for _ in range(8):
            running.endpoint.sendto(running.message(1), running.guest_port)
        pace(0.001)
        running.nic.setblocking(False)
        try:
            while data := running.nic.recv(1 << 18):
                got += len(data)
        except BlockingIOError:
            pass
    assert got / seconds == pytest.approx(RATE, rel=0.1)
    running.tell("quit")
    running.close()


@pytest.mark.alone
def test_without_a_rate_nothing_is_held() -> None:
    """The control of the two above: the same, and far more passes."""
    running, got = Joined(), 0
    stop = time.monotonic() + 0.5
    while time.monotonic() < stop:
        running.nic.sendall(running.batch(16))
        for _ in range(16):
            got += len(running.endpoint.recv(2000))
    assert got / 0.5 > 2 * RATE
    running.tell("quit")
    running.close()


@pytest.mark.process
def test_a_quota_that_is_spent_cuts_the_link_and_says_so() -> None:
    quota = 1_000_000
    running, got = Joined(quota=quota), 0
    while got < 2 * quota:
        try:
            running.nic.sendall(running.batch(8))
            for _ in range(8):
                got += len(running.endpoint.recv(2000))
        except OSError:
            break
        running.endpoint.settimeout(0.5)
    event = running.event("quota")
    assert got <= event["bytes"] == pytest.approx(quota, rel=0.05)
    running.tell("quit")
    running.close()
