"""Whatever a guest, a relay or a gateway can say, thousands of times, in every state of a cell.

::

    a thread -- socket --> followers.follow_guest | follow_relay | follow_gateway | Sessions
                                 |  events
                           Supervisor.feed: the core, which must hear a cancel meanwhile

The supervisor is the real one, with its own loop, record and end; only what it would have started
(QEMU, the relay, the gateway) is a socket. A word without a row here fails the last test.
``WGCELL_FLOOD=50000`` is the long form.

What these can't show: a flood of the workload's own output, which is not read by the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from tests.support.guests import BARE
from tests.support.programs import command
from tests.support.supervisors import closed, supervisor, with_streams
from tests.support.waiting import soon

from wgcell.cell import children, followers
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.core import events as seen
from wgcell.cell.events import first_bad
from wgcell.cell.listening import RATES
from wgcell.cell.states import Cause, Outcome, State
from wgcell.cell.streams import Stream
from wgcell.cell.supervisor import Supervisor
from wgcell.gateway import words as gateway
from wgcell.guest import frames, protocol
from wgcell.guest.channel import Channel
from wgcell.relay import control as relay

MANY = int(os.environ.get("WGCELL_FLOOD", "2000"))
"""Words of a flood."""
PART = 100
CANCELLED_AT = MANY // 4
PATIENCE = 100 + MANY / 100
"""Seconds for one flood."""
HEARD_WITHIN = 50
"""Words from a Ctrl-C until it is acted upon."""

BIG = "\u0001" * 100_000
"""A text as long as may be, of letters that JSON writes as six."""
TEXT = b64encode(b"\\" * 24_000)
SHA = b"a" * 64

GUEST: dict[type, Callable[[int], bytes]] = {
    protocol.Hello: lambda n: b"hello 1\n",
    protocol.Report: lambda n: b"report " + b64encode(f"= links\n{n}".encode()) + b"\n",
    protocol.Ready: lambda n: b"ready\n",
    protocol.Heartbeat: lambda n: b"heartbeat %d %d\n" % (n, n),
    protocol.Changed: lambda n: b"changed network " + TEXT + b"\n",
    protocol.Fault: lambda n: b"fault " + TEXT + b"\n",
    protocol.OutOfMemory: lambda n: b"oom %d " % n + TEXT + b"\n",
    protocol.Exited: lambda n: b"exit 0 %d 0\n" % n,
    protocol.Outputs: lambda n: b"outputs %d 0 %s\n" % (n, SHA),
}
RELAY: dict[type, Callable[[int], Any]] = {
    relay.Begun: lambda n: relay.Begun(),
    relay.Ready: lambda n: relay.Ready(True, {}),
    relay.Verified: lambda n: relay.Verified(),
    relay.Alive: lambda n: relay.Alive(),
    relay.Handshake: lambda n: relay.Handshake("guest"),
    relay.Rogue: lambda n: relay.Rogue(BIG, BIG, bytes(4096), n, n),
    relay.OutOfStep: lambda n: relay.OutOfStep(BIG, BIG),
    relay.Quota: lambda n: relay.Quota(n),
    relay.Stats: lambda n: relay.Stats(n, n, n, n, n, {"mac1": n}, {"flood": n}, n, n),
    relay.Closed: lambda n: relay.Closed("nic"),
    relay.Fault: lambda n: relay.Fault(BIG),
}
FLOW = (1.0, 1, BIG, "tcp", BIG, 443, BIG)
GATEWAY: dict[type, Callable[[int], Any]] = {
    gateway.Ready: lambda n: gateway.Ready("192.0.2.1", 1, {}, "embedded", BIG),
    gateway.Flow: lambda n: gateway.Flow(
        *FLOW, ("allow", "refuse", gateway.FAILED)[n % 3], BIG, BIG, BIG
    ),
    gateway.FlowEnd: lambda n: gateway.FlowEnd(*FLOW, "allow", BIG, BIG, n, n, 1.0),
    gateway.FlowsOmitted: lambda n: gateway.FlowsOmitted(1.0, BIG, n, n, n),
    gateway.ServerBroken: lambda n: gateway.ServerBroken(1.0, BIG, 1.0),
    gateway.Applied: lambda n: gateway.Applied(),
    gateway.PolicyChanged: lambda n: gateway.PolicyChanged(
        *(1.0, ("allow", "deny", "expired")[n % 3], "x" * 1200, 0, n),
        number=n if n % 2 else None,
        until=float(n),
    ),
    gateway.OrderRefused: lambda n: gateway.OrderRefused(n, BIG, BIG),
    gateway.RulesListed: lambda n: gateway.RulesListed(
        n, (gateway.RuleInForce("x" * 1200, "start"),) * gateway.RULES_AT_ONCE, True
    ),
    gateway.Published: lambda n: gateway.Published(BIG, BIG, 1, 1),
    gateway.Fault: lambda n: gateway.Fault(BIG),
    gateway.Stumble: lambda n: gateway.Stumble(BIG),
}
SESSION: dict[type, Callable[[int], frames.Frame]] = {
    # Of the guest's session 1, which runs, and whose standard input has ended.
    frames.Open: lambda n: frames.Open(n, command("x")),
    frames.Opened: lambda n: frames.Opened(1),
    frames.SessionRefused: lambda n: frames.SessionRefused(1, BIG),
    frames.Data: lambda n: frames.Data(1, frames.STDOUT, bytes(frames.MOST_DATA)),
    frames.End: lambda n: frames.End(1, frames.STDOUT),
    frames.Credit: lambda n: frames.Credit(1, frames.STDIN, 1),
    frames.Size: lambda n: frames.Size(1, frames.Terminal(n % 100, 1)),
    frames.Signal: lambda n: frames.Signal(1, 2),
    frames.Hangup: lambda n: frames.Hangup(1),
    frames.Exit: lambda n: frames.Exit(1, 0),
}
IN_ONE_TURN = 64 * 1024 // 9
"""Frames that are read at once, at most."""
pytestmark = [pytest.mark.timeout(PATIENCE + 20), pytest.mark.usefixtures(closed.__name__)]
WITH_A_GUEST = [s for s in State if s not in (State.PREPARING, State.CONSENT, State.ENDED)]
CASES = [
    *(
        pytest.param(who, w, s, id=f"{who}-{w.__name__}-{s.value}")
        for who, words in (("guest", GUEST), ("session", SESSION))
        for w in words
        for s in WITH_A_GUEST
    ),
    *(
        pytest.param(who, word, state, id=f"{who}-{word.__name__}-{state.value}")
        for who, words in (("relay", RELAY), ("gateway", GATEWAY))
        for word in words
        for state in State
        if state is not State.ENDED
    ),
]


def lines(who: str, word: type, count: int) -> Iterator[bytes]:
    """So many of one word, some in each part."""
    if who == "session":
        yield frames.encode(frames.Opened(1))
    some = [] if who == "guest" else _some(who, word)
    for at in range(0, count, PART):
        numbers = range(at, min(at + PART, count))
        yield b"".join(some[n % len(some)] if some else GUEST[word](n) for n in numbers)


@cache
def _some(who: str, word: type) -> list[bytes]:
    if who == "session":
        return [frames.encode(SESSION[word](n)) for n in range(6)]
    if who == "relay":
        return [relay.EVENTS.line(RELAY[word](n)) for n in range(6)]
    return [gateway.EVENTS.line(GATEWAY[word](n)) for n in range(6)]


class Standing:
    """What the supervisor believes to be its children, and what was seen of it."""

    def __init__(self, one: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.one = one
        self.heard = 0
        """Words that have been read."""
        self.synced = 0
        self.acted_at: int | None = None
        """How many had been when the cancel was acted upon."""
        self.on_word: Callable[[], None] = lambda: None
        self._patch = monkeypatch
        monkeypatch.setattr(Stream, "over", _nothing_on_its_way)
        monkeypatch.setattr(children, "_end", _ended)
        sync = os.fdatasync

        def syncing(fd: int) -> None:
            self.synced += 1
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", syncing)
        self._count(protocol, "parse")
        self._count(relay.EVENTS, "word")
        self._count(gateway.EVENTS, "word")
        self._count(frames, "_frame")
        handle = one.core.handle

        def handling(event: Any, now: float) -> Any:
            asked = handle(event, now)
            if isinstance(event, seen.CancelAsked) and self.acted_at is None:
                self.acted_at = self.heard
                # Its grace period is another test's.
                asyncio.get_running_loop().call_soon(one.abort, "")
            return asked

        monkeypatch.setattr(one.core, "handle", handling)

    def _count(self, place: Any, name: str) -> None:
        read = getattr(place, name)

        def reading(*line: Any) -> Any:
            self.heard += 1
            self.on_word()
            return read(*line)

        self._patch.setattr(place, name, reading)

    async def follow(self, who: str, ours: socket.socket) -> None:
        """As `_live` leaves it: one of them is listened to."""
        one = self.one
        if who == "guest":
            await followers.follow_guest(ours, one.feed, lambda agent: None)
            return
        if who == "session":
            await self._follow_sessions(ours)
            return
        limit = relay.LONGEST_LINE if who == "relay" else gateway.EVENTS.longest
        reader, writer = await asyncio.open_connection(sock=ours, limit=limit)
        try:
            if who == "relay":
                process: Any = SimpleNamespace(stderr=None)
                one.launch.own_relay(RelayProcess(process, {}, True, ours, reader, writer))
                await followers.follow_relay(one.launch.relay, one.feed)  # type: ignore[arg-type]
            else:
                process = SimpleNamespace(stdout=reader, stdin=writer)
                draining = asyncio.create_task(asyncio.sleep(0))
                made = GatewayProcess(process, "192.0.2.1", 1, "embedded", "", draining)
                one.launch.own_gateway(made)
                await followers.follow_gateway(made, one.feed)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)  # the loop closes it

    async def _follow_sessions(self, ours: socket.socket) -> None:
        """A client has begun a session, and reads nothing."""
        one, (here, there) = self.one, socket.socketpair()
        self._patch.setattr(one.sessions._hub, "_refusal", lambda subject: "")
        await one.sessions.connect(ours)
        opener = Channel(opener=True)
        first = opener.send(frames.Open(1, command("x"))) + opener.send(frames.End(1, 0))
        _, writer = await asyncio.open_connection(sock=here)
        transport: Any = writer.transport
        serving = one.sessions.serve(transport, first, 0, detached=False)
        one.tasks.spawn(serving, "a client")
        try:
            await soon(lambda: not one.sessions.is_connected)
        finally:
            there.close()
            transport.abort()


async def _nothing_on_its_way(stream: Stream, patience: float) -> bool:
    return True


async def _ended(process: Any, patience: float) -> int:
    return 0


def prepared(tmp_path: Path, state: State, told: list[Any], **changed: Any) -> Supervisor:
    """A supervisor in ``state``, with all that the guest has said by then; time stands still."""
    one = with_streams(supervisor(tmp_path, told.append, **changed))
    one.log._clock = lambda: 0.0
    one.log._synced = 0.0
    # Wrong, and as long as may be: whoever judges them writes them down.
    wrong = protocol.Report(dict.fromkeys(protocol.REPORTS, "\\" * 24_000))
    if state not in (State.PREPARING, State.CONSENT):
        one.core.state = State.BOOTING
        one.core.handle(seen.Booting(BARE, 1), 0.0)
        one.core.handle(seen.FromGuest(wrong), 0.0)
        if state is not State.BOOTING:
            one.core.handle(seen.FromGuest(protocol.Hello(1)), 0.0)
            one.core.state = State.PREPARING  # where nothing that is judged wrong means anything
            one.core.handle(seen.FromRelay(relay.Verified()), 0.0)
            one.core.handle(seen.FromGuest(protocol.Ready()), 0.0)
            one.core.handle(seen.FromGuest(protocol.Report({"links": "new"})), 0.0)
    return one


def record(tmp_path: Path) -> list[bytes]:
    (events,) = tmp_path.glob("cell-*/events.jsonl")
    return events.read_bytes().splitlines(keepends=True)


def size(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def pour(theirs: socket.socket, data: Iterable[bytes]) -> threading.Thread:
    """Write ``data`` as fast as it is read, from a thread; then close, as who has ended."""

    def write() -> None:
        with theirs, contextlib.suppress(OSError):
            for part in data:
                theirs.sendall(part)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


async def flooded(
    one: Supervisor, standing: Standing, who: str, state: State, data: Iterable[bytes]
) -> None:
    ours, theirs = socket.socketpair()

    async def live() -> None:
        one.core.state = state
        pouring = pour(theirs, data)
        await asyncio.wait([one.tasks.spawn(standing.follow(who, ours), "the flood")])
        one.cancel("the flood is over")
        await asyncio.to_thread(pouring.join)

    one.live = live  # type: ignore[method-assign]
    try:
        await asyncio.wait_for(one.run(), PATIENCE)
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize(("who", "word", "state"), CASES)
def test_no_word_in_any_state_writes_without_bound_or_holds_up_a_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, word: type, state: State
) -> None:
    async def body() -> None:
        told: list[Any] = []
        one = prepared(tmp_path, state, told)
        standing = Standing(one, monkeypatch)

        def on_word() -> None:
            if standing.heard == CANCELLED_AT:
                # As a signal's handler is called.
                asyncio.get_running_loop().call_soon(one.cancel, "Ctrl-C")

        standing.on_word = on_word
        await flooded(one, standing, who, state, lines(who, word, MANY))
        assert one.core.state is State.ENDED
        assert one.host.folder.read("result.json")
        if standing.heard >= CANCELLED_AT:
            assert standing.acted_at is not None
            within = IN_ONE_TURN if who == "session" else HEARD_WITHIN
            assert standing.acted_at <= CANCELLED_AT + within, "nobody heard the cancel"
        written = record(tmp_path)
        assert first_bad(written) is None
        assert len(written) <= RATES["flow"].at_once + 100
        assert standing.synced <= 100
        longest = max(map(len, written))
        assert size(tmp_path) <= (RATES["flow"].at_once + 10) * longest + (1 << 20)
        assert len(told) == len(written)

    asyncio.run(body())


def test_the_timeout_is_heard_in_a_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flood has no end of its own: only the timeout can end it."""

    async def body() -> None:
        one = prepared(tmp_path, State.RUNNING, [], timeout=0.05, grace=0.0)
        standing = Standing(one, monkeypatch)
        ours, theirs = socket.socketpair()
        ended = threading.Event()

        def write() -> None:
            block = b"".join(lines("guest", protocol.Heartbeat, 1000))
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    theirs.sendall(block)

        async def live() -> None:
            # As the guest that is set up as it was asked to be.
            one.core.state = State.VERIFYING
            one.feed(seen.Caused(Cause.VERIFIED))
            threading.Thread(target=write, daemon=True).start()
            await standing.follow("guest", ours)

        one.live = live  # type: ignore[method-assign]
        enter = one.log.append

        def entering(event: str, **fields: Any) -> None:
            enter(event, **fields)
            if fields.get("state") == "terminating":
                asyncio.get_running_loop().call_soon(one.abort, "")

        one.log.append = entering  # type: ignore[method-assign]
        try:
            result = await asyncio.wait_for(one.run(), 100)
        finally:
            ended.set()
            theirs.close()
            ours.close()
        assert result.outcome is Outcome.TIMEOUT, result.reason

    asyncio.run(body())


def test_a_flood_that_takes_its_time_ends_at_the_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second passes from word to word, so that the rate alone would let each of them through."""
    most = 256 << 10

    async def body() -> None:
        told: list[Any] = []
        one = prepared(tmp_path, State.RUNNING, told)
        standing = Standing(one, monkeypatch)
        one.log._clock = lambda: float(standing.heard)
        one.log._ceiling.most = most
        await flooded(one, standing, "gateway", State.RUNNING, lines("gateway", gateway.Flow, MANY))
        kinds = [event["event"] for event in told]
        assert kinds.count("log_full") == 1
        behind = kinds[kinds.index("log_full") + 1 :]
        assert "flow" in kinds and "flow" not in behind
        assert behind.count("unlogged") == 1  # at the end, how many there were
        counted = sum(e["counts"]["flow"] for e in told if e["event"] == "unlogged")
        assert counted + kinds.count("flow") == MANY
        longest = max(map(len, record(tmp_path)))
        assert sum(map(len, record(tmp_path))) <= most + 20 * longest

    asyncio.run(body())


def test_no_client_of_sessions_writes_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins one after the other, and the guest refuses each with as many words as may be."""

    async def body() -> None:
        told: list[Any] = []
        one = prepared(tmp_path, State.RUNNING, told)
        hub = one.sessions._hub
        monkeypatch.setattr(hub, "_refusal", lambda subject: "")
        client, opener = hub.join(0), Channel(opener=True)
        guest = Channel(opener=False, workload=True)
        for number in range(1, MANY + 1):
            hub.hear_client(client, opener.send(frames.Open(number, command("x" * 100_000))))
            while raw := hub.take_for_guest():
                guest.receive(raw)
            hub.hear_guest(guest.send(frames.SessionRefused(number, BIG)))
            while raw := client.box.take():
                opener.receive(raw)
        at_once = RATES["session_opened"].at_once
        assert len(record(tmp_path)) <= 2 * at_once + 10
        assert size(tmp_path) <= 2 * at_once * 3000

    asyncio.run(body())


@pytest.mark.parametrize("when", ["1e999", "NaN", "-1", "Infinity", "-0.5", "1e13", "true", '"1"'])
@pytest.mark.parametrize("field", ["time", "boottime"])
def test_a_relays_time_that_is_none_leaves_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, when: str
) -> None:
    async def body() -> None:
        one = prepared(tmp_path, State.RUNNING, [])
        standing = Standing(one, monkeypatch)
        line = relay.EVENTS.line(relay.Rogue("mac1", "", b"", 7.0, 7.0)).decode()
        line = line.replace(f'"{field}":7.0', f'"{field}":{when}')
        await flooded(one, standing, "relay", State.RUNNING, [line.encode()])
        result = one.host.folder.read("result.json")
        assert result is not None
        assert result["outcome"] == "error" and "the relay said" in result["reason"]

    asyncio.run(body())


def test_every_word_has_a_row() -> None:
    assert set(GUEST) == set(get_args(protocol.Message))
    assert set(RELAY) == set(relay.EVENTS.words.values()) == set(get_args(relay.Event))
    assert set(SESSION) == set(get_args(frames.Frame))
    assert set(GATEWAY) == set(gateway.EVENTS.words.values()) == set(get_args(gateway.Event))
    for word, made in GUEST.items():
        assert type(protocol.parse(made(1))) is word
