"""The agent's parts that need no machine: texts, streams, and a root that means harm.

What these can't show: the kernel of the guest, and what needs its root's privileges
(`agent/test_workload.py`, `tests/cells`).
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.guests import CONFIG

from wgcell.errors import GuestError
from wgcell.guest import protocol, verify
from wgcell.guest.agent import files, main, network, results, root, standing, tools
from wgcell.guest.agent.loop import READABLE, Loop
from wgcell.guest.agent.main import Lines
from wgcell.guest.agent.process import Process
from wgcell.guest.agent.streams import Feed, Stream
from wgcell.guest.config import GuestConfig
from wgcell.guest.firewall import comparable, ruleset
from wgcell.guest.walls import Wall

DEVICES = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       0       0    0    0    0     0          0         0        0       0    0    0
  eth0: 1234567      10    0    0    0     0          0         0     1000      10    0    0
"""
ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0040A8C0\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0
"""
ROUTES_6 = """00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
00000000000000000000000000000000 00000400 00000001 00000000 00000001      wg0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 \
00000000000000000000000000000000 00000000 00000002 00000000 80200001       lo
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 \
00000000000000000000000000000000 00000100 00000001 00000000 00000001      wg0
"""


def test_interfaces_and_routes_are_read_from_the_kernels_own_tables() -> None:
    assert standing.interfaces("first", DEVICES) == ["first lo", "first eth0"]
    assert standing.routes(ROUTES) == ["eth0 0040A8C0 FCFFFFFF"]
    assert standing.routes(ROUTES_6) == ["wg0 00000000000000000000000000000000 00"]


def test_every_peer_is_reported_and_no_key_that_is_secret() -> None:
    dump = "private\tpublic\t51820\toff\n"
    dump += "one\tpreshared\t192.168.64.1:51820\t0.0.0.0/0\t0\t1\t2\t25\n"
    assert standing.peers(dump) == "one 192.168.64.1:51820 0.0.0.0/0 25"
    dump += "two\t(none)\t(none)\t(none)\t0\t0\t0\toff\n"
    said = standing.peers(dump)
    assert said.splitlines()[1] == "two (none) (none) off"
    assert "private" not in said and "preshared" not in said
    asked = verify.expected(CONFIG)
    routes = "wg0 00000000 00000000"
    more = f"{asked['wireguard']}\ntwo (none) (none) off"
    assert verify.mismatch(CONFIG, {**asked, "routes": routes}) is None
    assert verify.mismatch(CONFIG, {**asked, "routes": routes, "wireguard": more}) is not None


def test_traffic_is_no_change_and_anything_else_is() -> None:
    asked = {"firewall": ruleset(), "links": "first lo"}
    counted = ruleset().replace("packets 0 bytes 0", "packets 7 bytes 999")
    assert counted != ruleset()
    assert standing.changes(asked, {**asked, "firewall": counted}) == ""
    assert standing.drops(counted) == 7 and standing.drops("") == 0
    changed = standing.changes(asked, {**asked, "links": "first lo\nfirst eth1"})
    assert "= links\nfirst lo\nfirst eth1" in changed and "= firewall" in changed


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("counter packets 12 bytes 34", "counter packets 0 bytes 0"),
        ("packets 1 bytes 2 packets 3 bytes 4\n", "packets 0 bytes 0 packets 0 bytes 0"),
        ("packets x bytes 2", "packets x bytes 2"),
        ("packets 1 bytes", "packets 1 bytes"),
        ("packets  bytes 2", "packets  bytes 2"),
        ("packets 5\n", "packets 5"),
    ],
)
def test_counters_are_made_zero_and_nothing_else(text: str, same: str) -> None:
    assert comparable(text) == same


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2: eth0: <BROADCAST,MULTICAST,NOARP,UP,LOWER_UP> mtu 1500 qdisc pfifo_fast", True),
        ("4: wg0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1380 qdisc noqueue", True),
        ("4: wg0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1420 qdisc noqueue", False),
        ("2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc pfifo_fast", False),
        ("2: eth0: <BROADCAST,MULTICAST,NOARP,UP,LOWER_UP> mtu 1500 master br0 qdisc", False),
        ("Deleted 2: eth0: <BROADCAST,MULTICAST,NOARP,UP,LOWER_UP> mtu 1500 ", False),
        ("203.0.113.7 via 192.168.64.1 dev eth0", False),
        ("Deleted multicast ff00::/8 dev wg0 table local proto kernel metric 256", True),
        ("multicast ff00::/8 dev wg0 table local proto kernel metric 256", True),
        ("multicast ff00::/8 dev eth0 table local proto kernel metric 256", False),
        ("Deleted 2000::/3 dev wg0 metric 1024", False),
    ],
)
def test_what_the_kernel_tells_late_is_expected(line: str, expected: bool) -> None:
    assert standing.is_expected(line, 1380) is expected


def test_the_tools_are_told_what_was_configured() -> None:
    config = replace(CONFIG, preshared_key=b"s" * 32, allowed_ips=("10.0.0.0/8", "::/0"))
    settings = network.wireguard_settings(config)
    assert "AllowedIPs = 10.0.0.0/8,::/0\n" in settings and "PresharedKey = c3Nz" in settings
    assert "PresharedKey" not in network.wireguard_settings(CONFIG)
    assert "netns add workload" in network.link_batch(frozenset(Wall))
    assert "netns" not in network.link_batch(frozenset({Wall.FIREWALL}))
    batch = network.tunnel_batch(config).splitlines()
    assert "route replace ::/0 dev wg0" in batch and "link set wg0 mtu 1420 up" in batch


def test_who_was_killed_is_named_and_a_process_with_an_odd_name_is_not_misread() -> None:
    assert results.kills("pgfault 1\noom_kill 3\n") == 3 and results.kills("pgfault 1\n") == 0
    log = "x: Killed process 12 (first) total-vm:1kB\nx: Killed process 13 (a (b) c) total-vm:2kB\n"
    assert results.victim(log) == "a (b) c" and results.victim("nothing") == ""


# A root that means harm.


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A root whose folders and files are links to what is outside; and what is outside."""
    inside, outside = tmp_path / "root", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    for name in ("dev", "run", "tmp", "work", "etc"):
        (inside / name).symlink_to(outside)
    (inside / "sys").write_text("a file")
    os.mkfifo(inside / "proc")
    return inside, outside


def test_links_in_the_roots_first_level_lead_nowhere(hostile: tuple[Path, Path]) -> None:
    inside, outside = hostile
    root.make_folders(str(inside))
    root.write_names(str(inside), CONFIG)
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "work"):
        assert stat.S_ISDIR((inside / name).lstat().st_mode), name
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["hosts", "hostname", "resolv.conf"])
def test_a_link_or_a_pipe_in_etc_is_replaced(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    target = tmp_path / "outside"
    target.write_text("mine")
    (inside / "etc" / name).symlink_to(target)
    others = {"hosts", "hostname", "resolv.conf"} - {name}
    for other in others:
        os.mkfifo(inside / "etc" / other)
    root.write_names(str(inside), replace(CONFIG, dns=("10.99.0.1",), search=("a", "b")))
    assert target.read_text() == "mine"
    assert (inside / "etc/hosts").read_text() == "127.0.0.1 localhost cell\n"
    assert (inside / "etc/hostname").read_text() == "cell\n"
    resolver = (inside / "etc/resolv.conf").read_text()
    assert resolver == "nameserver 10.99.0.1\nsearch a b\n"
    assert (inside / "etc/hosts").stat().st_mode & 0o777 == 0o644


def test_names_of_hosts_are_lines_behind_the_guests_own(tmp_path: Path) -> None:
    root.make_folders(str(tmp_path))
    hosts = (("db.example.com", "10.99.0.5"), ("six", "fd99::5"))
    root.write_names(str(tmp_path), replace(CONFIG, hosts=hosts))
    found = (tmp_path / "etc/hosts").read_text()
    assert found == "127.0.0.1 localhost cell\n10.99.0.5 db.example.com\nfd99::5 six\n"


def test_a_root_with_nothing_in_it_will_do(tmp_path: Path) -> None:
    root.make_folders(str(tmp_path))
    root.write_names(str(tmp_path), CONFIG)
    assert (tmp_path / "work").is_dir() and (tmp_path / "etc/hosts").exists()


# Streams and lines.


def test_every_byte_is_carried_and_counted_however_slowly_it_is_read() -> None:
    sent = os.urandom(300_000)
    reading, writing = os.pipe()
    outside, port = os.pipe()
    os.set_blocking(port, False)
    seen: list[bytes] = []
    loop = Loop()
    stream = Stream(loop, reading, port, seen.append)

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(sent)

    got = bytearray()

    def read() -> None:
        while part := os.read(outside, 1000):
            got.extend(part)

    threads = [threading.Thread(target=each, daemon=True) for each in (write, read)]
    for thread in threads:
        thread.start()
    loop.run(lambda: not stream.ended)
    os.close(port)
    for thread in threads:
        thread.join(30)
    assert bytes(got) == sent == b"".join(seen)
    assert stream.count == len(sent)
    os.close(outside)


@pytest.mark.parametrize("full", [False, True])
def test_a_stream_that_nobody_reads_any_more_ends_its_writer(full: bool) -> None:
    reading, writing = os.pipe()
    outside, port = os.pipe()
    os.set_blocking(port, False)
    loop = Loop()
    stream = Stream(loop, reading, port)
    if full:
        # Each pipe holds 64 KiB, so a part of this stays between them.
        os.write(port, bytes(1000))
        os.write(writing, bytes(65536))
        loop.run(lambda: stream.count < 60_000)
        assert stream.count < 65_536
    stream.close()
    stream.close()
    assert stream.ended
    previous = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with pytest.raises(BrokenPipeError):
            os.write(writing, b"x")
    finally:
        signal.signal(signal.SIGPIPE, previous)
    for descriptor in (writing, outside, port):
        os.close(descriptor)


def test_what_the_workload_takes_back_is_not_waited_for() -> None:
    """It may read its own pipe, by /proc/self/fd, between the agent's two looks at it."""
    reading, writing = os.pipe()
    port = os.open("/dev/null", os.O_WRONLY)
    thief = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_NONBLOCK)
    first, second = os.pipe()
    loop, taken = Loop(), []
    loop.watch(first, READABLE, lambda: taken.append((os.read(first, 1), os.read(thief, 9))))
    stream = Stream(loop, reading, port)
    os.write(second, b"x")
    os.write(writing, b"stolen")
    # What blocks ends the test, and not only this thread of it.
    signal.alarm(20)
    try:
        loop.run(lambda: not taken)
        os.write(writing, b"kept")
        loop.run(lambda: stream.count < 4)
    finally:
        signal.alarm(0)
    assert taken == [(b"x", b"stolen")] and stream.count == 4
    stream.close()
    for descriptor in (writing, port, thief, first, second):
        os.close(descriptor)


def test_a_program_that_can_not_be_started_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each beat asks three of them, and a workload may have taken every process there is."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        tools.output("no program of this name")
    with pytest.raises(FileNotFoundError):
        tools.run("no program of this name", given="text")
    agent = main.Agent()
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        agent._follow("network", "no program of this name")
    assert os.listdir("/proc/self/fd") == opened
    del agent
    assert len(opened) - len(before) == 2  # its poll, and its own namespace


def test_a_workload_that_leaves_no_room_for_a_process_is_watched_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may fork without end in its first half second."""
    started: list[tuple[str, ...]] = []
    full = [BlockingIOError(11, "no more processes")] * 4

    def start(argv: tuple[str, ...], stdin: int | None = None, stdout: int | None = None) -> int:
        if full:
            raise full.pop()
        started.append(tuple(argv[:2]))
        return 0

    monkeypatch.setattr(main.tools, "start", start)
    monkeypatch.setattr(main.Agent, "say", lambda self, message: None)
    agent = main.Agent(first_beat=0.01)
    agent._watched = True
    monkeypatch.setattr(agent, "_beat", lambda: None)
    agent._begin_watch()
    assert started == []
    agent._loop.run(lambda: len(started) < 3)
    assert sorted(started) == [("ip", "-o"), ("ip", "-o"), ("nft", "monitor")]


def test_an_endpoint_that_has_moved_gets_a_handshake_as_soon_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[str, float]] = []
    waited, calls = 0.0, []
    full = [BlockingIOError(11, "no more processes")] * 2

    class Probe:
        def send(self) -> None:
            done.append(("probe", waited))

    def connect(config: GuestConfig) -> None:
        if full:
            raise full.pop()
        done.append((config.hostname, waited))

    agent = main.Agent()
    agent._probe, agent._config = Probe(), CONFIG  # type: ignore[assignment]
    monkeypatch.setattr(main.network, "connect", connect)
    monkeypatch.setattr(agent._loop, "after", lambda *words: calls.append(words))
    agent.take(protocol.RELEASE.splitlines())
    agent.runs(4321)
    agent.take([protocol.RECONNECT.strip()])
    while calls:
        seconds, call = calls.pop()
        waited += seconds
        call()
    assert done == [("cell", 1.0), *[("probe", 1.0 + second) for second in range(20)]]


def test_lines_are_whole_however_they_arrive() -> None:
    reading, writing = os.pipe()
    lines = Lines(reading)
    os.write(writing, b"one\ntwo\nthr")
    assert lines.next() == b"one"
    os.write(writing, b"ee\nfour\n")
    assert lines.next() == b"two"
    assert lines.more() == [b"three", b"four"]
    os.write(writing, b"five\nsix\n")
    assert lines.next() == b"five"
    assert lines.held() == [b"six"]
    os.close(writing)
    with pytest.raises(EOFError):
        lines.next()
    os.close(reading)


def test_what_init_could_not_load_is_the_agents_fault_to_tell() -> None:
    reading, writing = os.pipe()
    init = main.Init(reading)
    os.write(writing, b"early\nthe modules x could not be loaded\n")
    init.wait_for("early")
    with pytest.raises(GuestError, match="the modules x could not be loaded"):
        init.wait_for("late")
    os.close(writing)
    with pytest.raises(GuestError, match="init has ended"):
        init.wait_for("late")
    os.close(reading)


def test_what_a_port_does_not_take_at_once_is_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A virtio-serial port takes 32 KiB a call; a report may be four times as long."""
    written = bytearray()

    def write(file: int, data: bytes) -> int:
        written.extend(data[:10])
        return len(data[:10])

    monkeypatch.setattr(files.os, "write", write)
    files.write_all(9, bytes(range(100)))
    assert written == bytes(range(100))


def test_orders_behind_the_release_wait_for_the_workload() -> None:
    """The host may say both at once: an end that is asked for must not be lost."""

    class Work:
        def obey(self, order: protocol.Order) -> None:
            obeyed.append(order)

    obeyed: list[protocol.Order] = []
    agent = main.Agent()
    agent.take(protocol.RELEASE.splitlines() + protocol.TERMINATE.splitlines())
    assert agent.released and obeyed == []
    agent.runs(Work())  # type: ignore[arg-type]
    assert obeyed == [protocol.Terminate()]
    agent.take([protocol.KILL.strip()])
    assert obeyed == [protocol.Terminate(), protocol.Kill()]


# What the loop calls, and what goes into a program.


def test_a_descriptor_that_was_closed_and_opened_anew_is_not_called_for_the_old_one() -> None:
    """Both are ready at once; the first to be called closes the other and opens it again."""
    loop, called = Loop(), []
    pipes = [os.pipe() for _ in range(2)]

    def replace_other(mine: int, other: int) -> None:
        called.append("first")
        loop.forget(mine)
        loop.forget(other)
        os.close(other)
        again, writing = os.pipe()
        assert again == other
        loop.watch(again, READABLE, lambda: called.append("stale"))
        called.append(writing)

    (one, into_one), (two, into_two) = pipes
    loop.watch(one, READABLE, lambda: replace_other(one, two))
    loop.watch(two, READABLE, lambda: replace_other(two, one))
    for writing in (into_one, into_two):
        os.write(writing, b"x")
    loop.run(lambda: not called)
    loop.after(0, lambda: called.append("after"))
    loop.run(lambda: "after" not in called)
    assert "stale" not in called
    for descriptor in {one, two, into_one, into_two, called[1]}:
        os.close(descriptor)


def test_a_feed_says_what_has_gone_in_and_ends_behind_its_last_byte() -> None:
    reading, writing = os.pipe()
    loop, taken = Loop(), []
    feed = Feed(loop, writing, taken.append, lambda: b"end")
    sent = os.urandom(200_000)
    feed.give(sent)
    held = sum(taken)
    assert 0 < held < len(sent)
    feed.end()
    got: list[bytes] = []

    def read() -> None:
        with open(reading, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    loop.run(lambda: sum(taken) < len(sent) + 3)
    reader.join(30)
    assert got == [sent + b"end"]


def test_a_feed_that_nobody_reads_any_more_drops_the_rest_and_grants_nothing() -> None:
    reading, writing = os.pipe()
    loop, taken = Loop(), []
    feed = Feed(loop, writing, taken.append, bytes)
    feed.give(bytes(200_000))
    held = sum(taken)
    os.close(reading)
    ended: list[bool] = []
    loop.after(0.01, lambda: ended.append(True))
    loop.run(lambda: not ended)
    feed.give(b"more")
    feed.end()
    feed.close()
    assert sum(taken) == held
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(writing)


def test_a_process_that_can_not_be_watched_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    with pytest.raises(OSError, match="Too many"):
        Process(Loop(), child, lambda code: None)
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)
