"""The bulk sends and receives of the real kernel, over loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from wgcell.relay import datagrams
from wgcell.relay.datagrams import GROUPS, UDP_SEGMENT, Datagrams

Pair = tuple[Datagrams, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Ours, connected, and the endpoint's socket."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        endpoint.bind(("127.0.0.1", 0))
        endpoint.settimeout(5)
        udp.connect(endpoint.getsockname())
        endpoint.connect(udp.getsockname())
        yield Datagrams(udp), endpoint


def numbered(count: int, size: int) -> list[memoryview]:
    return [memoryview(n.to_bytes(4, "big") + bytes(size - 4)) for n in range(count)]


@pytest.mark.parametrize("sizes", [[1452] * 44, [1452] * 10 + [96], [96] * 64, [1452], [32]])
def test_each_payload_is_a_datagram_in_order(pair: Pair, sizes: list[int]) -> None:
    ours, endpoint = pair
    for _ in range(2):
        payloads = [numbered(n + 1, size)[n] for n, size in enumerate(sizes)]
        ours.send(payloads)
        assert [endpoint.recv(65536) for _ in payloads] == payloads
    assert ours.lost == 0


def test_a_single_one_longer_than_the_last_segments_is_not_cut(pair: Pair) -> None:
    ours, endpoint = pair
    ours.send(numbered(3, 96))
    ours.send(numbered(1, 1452))
    assert [len(endpoint.recv(65536)) for _ in range(4)] == [96, 96, 96, 1452]


@pytest.mark.parametrize("sizes", [[1452] * 40, [1000] * 3 + [7], [32] * 64])
def test_coalesced_datagrams_are_told_apart(pair: Pair, sizes: list[int]) -> None:
    ours, endpoint = pair
    payloads = [bytes([n]) * size for n, size in enumerate(sizes)]
    for _ in range(2):
        endpoint.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, sizes[0])
        endpoint.send(b"".join(payloads))
        arrived = ours.receive()
        assert [bytes(payload) for group in arrived for payload in group.payloads] == payloads
        assert b"".join(bytes(group.whole) for group in arrived) == b"".join(payloads)


def test_coalesced_ones_are_told_apart_after_a_single_one(pair: Pair) -> None:
    ours, endpoint = pair
    endpoint.send(b"alone")
    assert [bytes(group.whole) for group in ours.receive()] == [b"alone"]
    endpoint.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    endpoint.send(bytes(400))
    assert [len(p) for group in ours.receive() for p in group.payloads] == [100] * 4


def test_more_than_one_call_fetches(pair: Pair) -> None:
    ours, endpoint = pair
    for n in range(GROUPS + 3):
        endpoint.send(bytes([n]) * (100 + n % 2))
    found = [bytes(p)[0] for _ in range(2) for group in ours.receive() for p in group.payloads]
    assert found == list(range(GROUPS + 3))
    assert ours.receive() == []


def test_an_empty_datagram_and_an_error_of_the_path_are_nothing(pair: Pair) -> None:
    ours, endpoint = pair
    endpoint.send(b"")
    assert ours.receive() == []
    endpoint.close()
    ours.send([memoryview(b"to nobody")])
    assert ours.receive() == []  # refused by ICMP
    ours.send([memoryview(b"to nobody")])
    ours.send([memoryview(b"to nobody")])
    assert ours.lost == 0  # what was said of the one is not taken for the next


NARROW = """
import socket
from wgcell.relay.datagrams import Datagrams
endpoint, udp = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
endpoint.bind(("127.0.0.1", 0)); endpoint.settimeout(5)
udp.connect(endpoint.getsockname())
ours = Datagrams(udp)
payloads = [memoryview(bytes([n]) * 1452) for n in range(9)]
for _ in range(2):
    ours.send(payloads)
    assert [endpoint.recv(65536) for _ in payloads] == payloads
ours.send([memoryview(b"small")])
assert endpoint.recv(100) == b"small" and ours.lost == 0
narrow = [memoryview(bytes([n]) * 1200) for n in range(9)]
ours.send(narrow)
assert [endpoint.recv(65536) for _ in narrow] == narrow
assert ours.lost == 0 and ours._segment == 1200  # what fits still goes as segments
"""


@pytest.mark.process
def test_a_path_too_narrow_for_segments_gets_datagrams() -> None:
    """A namespace's loopback of 1280 bytes: segments of 1452 are refused, then sent one by one."""
    script = f"ip link set lo mtu 1280 up && exec {sys.executable} -c '{NARROW}'"
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script]
    subprocess.run(argv, check=True, timeout=30)


ANY_PATH = """
import fcntl, socket, struct
from hypothesis import HealthCheck, given, settings, strategies as st
from wgcell.relay.datagrams import Datagrams

def path(mtu):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, 0x8922, struct.pack("16si", b"lo", mtu))  # SIOCSIFMTU

SIZES = st.sampled_from([32, 96, 97, 972, 973, 1000, 1252, 1420, 1452])
SENDS = st.tuples(SIZES, st.integers(1, 5), st.sampled_from([0, 32, 96]))
STEPS = st.lists(st.one_of(st.sampled_from([600, 1000, 1280, 1500, 65536]), SENDS), max_size=12)

@settings(max_examples=150, deadline=None, database=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(STEPS)
def check(steps):
    path(65536)
    with (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint,
          socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp):
        endpoint.bind(("127.0.0.1", 0)); endpoint.settimeout(30)
        udp.connect(endpoint.getsockname())
        ours = Datagrams(udp)
        for step in steps:
            if isinstance(step, int):
                path(step)
                continue
            size, count, last = step
            lengths = [size] * count + [last] * (0 < last < size)
            payloads = [memoryview(bytes([n]) * length) for n, length in enumerate(lengths)]
            ours.send(payloads)
            assert [endpoint.recv(65536) for _ in payloads] == payloads, (steps, step)
        assert ours.lost == 0

check()
"""


def test_whatever_the_order_of_sizes_and_paths_each_payload_is_a_datagram() -> None:
    script = 'ip link set lo up && exec "$0" -c "$1"'
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script]
    subprocess.run([*argv, sys.executable, ANY_PATH], check=True, timeout=100)


def test_the_constants_are_linuxs() -> None:
    assert (datagrams.UDP_SEGMENT, datagrams.UDP_GRO) == (103, 104)  # linux/udp.h
