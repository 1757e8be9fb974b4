"""The fast path against the plain one: whatever comes, the same verdicts, payloads and state."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.messages import ENDPOINT, GUEST, initiation, response
from tests.support.messages import transport as short_transport

from wgcell.relay import link, runs
from wgcell.relay.framing import BUFFER, LONGEST_FRAME, PREFIX, Stream, prefixed
from wgcell.relay.relay import (
    SEGMENTS_BYTES,
    SEGMENTS_MOST,
    Arrived,
    Relay,
    Report,
    Send,
    WriteNic,
)
from wgcell.relay.runs import HEAD, LEAST, MOST, Runs
from wgcell.relay.session import SessionTable
from wgcell.wire import ethernet, ipv4, wireguard

MTU = 1420
COUNTER = HEAD - PREFIX - 8
FULL = MTU + wireguard.SHORTEST_TRANSPORT


def transport(receiver: int, counter: int, size: int = FULL) -> bytes:
    return short_transport(receiver, counter, size)


@dataclass(frozen=True)
class Frame:
    """A transport message of the guest's as Linux sends it, but for what is given."""

    size: int = FULL
    counter: int = 0
    receiver: int = 20
    identification: int = 0
    tos: int = 0
    ttl: int = 64
    changed: tuple[int, int] | None = None

    def record(self) -> bytes:
        length = 28 + self.size
        head = struct.pack(">BBHHHBB", 0x45, self.tos, length, self.identification, 0, self.ttl, 17)
        head += b"\0\0" + link.GUEST_ADDRESS + link.GATEWAY_ADDRESS
        head = head[:10] + struct.pack(">H", ipv4.checksum(head)) + head[12:]
        udp = struct.pack(">HHHH", 51820, 51820, 8 + self.size, self.counter * 7 % 0x10000)
        payload = transport(self.receiver, self.counter, self.size)
        raw = bytearray(ethernet.header(link.GATEWAY_MAC, link.GUEST_MAC) + head + udp + payload)
        if self.changed is not None:
            raw[self.changed[0]] ^= self.changed[1]
        return prefixed(bytes(raw))


def established() -> Relay:
    """Sessions 10/20 and 11/21, lenient: a rogue frame is dropped and the rest goes on."""
    sessions = SessionTable(GUEST, ENDPOINT, MTU)
    for guest, endpoint in ((10, 20), (11, 21)):
        assert sessions.outbound(initiation(guest), 0) is None
        assert sessions.inbound(response(endpoint, guest), 0) is None
        assert sessions.outbound(transport(endpoint, 0), 0) is None
        assert sessions.inbound(transport(guest, 0), 0) is None
    sessions.handshakes()
    return Relay(sessions, lenient=True)


@dataclass
class Seen:
    """What a relay did with a stream."""

    sent: list[bytes]
    reports: list[Report]
    refused: dict[str, int]
    messages: int
    sizes: int


def fed(relay: Relay, pieces: list[bytes], now: float = 1) -> Seen:
    sent: list[bytes] = []
    reports: list[Report] = []
    for piece in pieces:
        relay.room()[: len(piece)] = piece
        for command in relay.outbound(len(piece), now):
            if isinstance(command, Report):
                reports.append(command)
            elif isinstance(command, Send):
                sizes = [len(payload) for payload in command.payloads]
                assert len(sizes) <= SEGMENTS_MOST
                assert len(sizes) == 1 or sum(sizes) <= SEGMENTS_BYTES
                assert set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0]
                sent += map(bytes, command.payloads)
    return Seen(sent, reports, dict(relay.refused), relay.messages_out, relay.bytes_out)


def run(count: int, first: int = 1, **fields: int) -> list[Frame]:
    return [
        Frame(counter=first + n, identification=65530 + n & 0xFFFF, **fields) for n in range(count)
    ]


def test_a_run_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[list[memoryview], bool]] = []
    take = Runs.take
    monkeypatch.setattr(Runs, "take", lambda *a: taken.append(take(*a)) or taken[-1])
    frames = run(150)
    seen = fed(established(), [b"".join(frame.record() for frame in frames)])
    assert seen.sent == [transport(20, n + 1) for n in range(150)]
    assert [len(payloads) for payloads, _ in taken] == [0, 64, 64, 21]  # the first is the pattern


def test_frames_of_many_sizes_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[list[memoryview], bool]] = []
    take = Runs.take
    monkeypatch.setattr(Runs, "take", lambda *a: taken.append(take(*a)) or taken[-1])
    sizes = [FULL, FULL, 96, 32, 1008] * 8
    frames = [Frame(counter=n + 1, identification=n, size=size) for n, size in enumerate(sizes)]
    seen = fed(established(), [b"".join(frame.record() for frame in frames)])
    assert seen.sent == [transport(20, n + 1, size) for n, size in enumerate(sizes)]
    assert [len(payloads) for payloads, _ in taken] == [0, 39]


def test_a_run_leaves_as_segments_and_a_shorter_last_joins() -> None:
    records = [frame.record() for frame in (*run(44), *run(3, 45, size=96))]
    relay = established()
    data = b"".join(records)
    relay.room()[: len(data)] = data
    commands = relay.outbound(len(data), 1)
    assert [[len(p) for p in c.payloads] for c in commands if isinstance(c, Send)] == [
        [FULL] * 44,
        [96] * 3,
    ]
    relay = established()
    data = b"".join(frame.record() for frame in (*run(3), *run(1, 4, size=96), *run(1, 5)))
    relay.room()[: len(data)] = data
    commands = relay.outbound(len(data), 1)
    assert [[len(p) for p in c.payloads] for c in commands if isinstance(c, Send)] == [
        [FULL, FULL, FULL, 96],
        [FULL],
    ]


@pytest.mark.parametrize("at", range(1, 10))
@pytest.mark.parametrize("offset", range(HEAD - PREFIX))
@pytest.mark.parametrize("step", [0, 16])
def test_one_changed_byte_is_seen_wherever_it_is(offset: int, at: int, step: int) -> None:
    """Every byte of the head in turn, in a run of one size and in one of many: the two of UDP's
    checksum alone mean nothing."""
    frames = [replace(frame, size=FULL - n * step) for n, frame in enumerate(run(10))]
    frames[at] = replace(frames[at], changed=(offset, 0x41))
    records = [frame.record() for frame in frames]
    whole, one_by_one = fed(established(), [b"".join(records)]), fed(established(), records)
    assert whole == one_by_one
    if offset < COUNTER:
        assert (whole.messages == 10) == (offset in (40, 41))


def relengthened(record: bytes, by: int) -> bytes:
    """IPv4's length is wrong, its checksum right."""
    raw = bytearray(record)
    ip = raw[18:38]
    ip[2:4] = (int.from_bytes(ip[2:4], "big") + by).to_bytes(2, "big")
    ip[10:12] = b"\0\0"
    ip[10:12] = ipv4.checksum(bytes(ip)).to_bytes(2, "big")
    raw[18:38] = ip
    return bytes(raw)


@pytest.mark.parametrize("step", [0, 16])
def test_a_wrong_length_under_a_right_checksum_is_seen(step: int) -> None:
    frames = [replace(frame, size=FULL - n * step) for n, frame in enumerate(run(10))]
    records = [frame.record() for frame in frames]
    records[6] = relengthened(records[6], 16)
    whole = fed(established(), [b"".join(records)])
    assert whole == fed(established(), records)
    assert whole.refused == {"ip_length": 1}


@pytest.mark.parametrize("size", [0, 8, 16, 31, FULL + 16])
@pytest.mark.parametrize("many", [1, 6])
def test_too_short_or_too_long_among_others_is_seen(size: int, many: int) -> None:
    sizes = [FULL, 96, 48, 1008, *[size] * many, 96, 48, 1008, 64]
    records = [Frame(counter=n + 1, identification=n, size=s).record() for n, s in enumerate(sizes)]
    whole = fed(established(), [b"".join(records)])
    assert whole == fed(established(), records)
    assert whole.messages == len(sizes) - many


changes = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.integers(0, HEAD), st.integers(1, 255)),
    st.tuples(st.integers(0, 60), st.sampled_from([1, 0x80])),
)
steps = st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2, 9000, 1 << 33, -1])


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Runs of a few sizes, broken now and then by what may break one."""
    records: list[bytes] = []
    counters = {20: 0, 21: 0, 99: 0}
    for _ in range(draw(st.integers(1, 6))):
        mixed = draw(st.booleans())
        frame = Frame(
            size=draw(st.sampled_from([FULL, FULL, 96, 32, FULL + 1, 40])),
            receiver=draw(st.sampled_from([20, 20, 21, 99])),
            identification=draw(st.integers(0, 0xFFFF)),
            tos=draw(st.sampled_from([0, 0x88])),
            ttl=draw(st.sampled_from([64, 1])),
        )
        for _ in range(draw(st.sampled_from([1, 2, 4, 5, 9, 30, 70]))):
            step = draw(steps) if draw(st.integers(0, 9)) == 0 else 1
            counter = max(0, counters[frame.receiver] + step) % (1 << 64)
            counters[frame.receiver] = counter
            frame = replace(
                frame, counter=counter, identification=(frame.identification + 1) % 65536
            )
            if mixed:
                frame = replace(frame, size=draw(st.sampled_from([FULL, FULL, FULL, 96, 48, 32])))
            odd = replace(frame, changed=draw(changes)) if draw(st.integers(0, 9)) == 0 else frame
            records.append(odd.record())
    return records


@settings(max_examples=examples(150), deadline=None)
@given(records=streams(), now=st.sampled_from([1.0, 1.0, 200.0]))
def test_the_fast_path_decides_as_the_plain_one(records: list[bytes], now: float) -> None:
    data = b"".join(records)
    if len(data) > BUFFER:
        return
    fast, plain = established(), established()
    assert fed(fast, [data], now) == fed(plain, records, now)
    # And left the same state behind.
    again = [Frame(counter=counter, receiver=20).record() for counter in (0, 1, 2, 40, 9001, 9100)]
    assert fed(fast, again, now) == fed(plain, again, now)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 9000), max_size=20), size=st.sampled_from([FULL, 96]))
def test_a_run_in_pieces_is_the_same_run(cuts: list[int], size: int) -> None:
    data = b"".join(frame.record() for frame in run(100, size=size))
    pieces, at = [], 0
    for cut in (*cuts, len(data)):
        pieces.append(data[at : at + cut])
        at += cut
    seen = fed(established(), [piece for piece in pieces if piece])
    assert seen.sent == [transport(20, n + 1, size) for n in range(100)]
    assert seen.reports == []


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)), min_size=1, max_size=MOST)
)
def test_sums_modulo_65535(pairs: list[tuple[int, int]]) -> None:
    left, right = (struct.pack(f"<{len(pairs)}H", *column) for column in zip(*pairs, strict=True))
    for wanted in {sum(pair) % 0xFFFF for pair in pairs}:
        right_ones = all(sum(pair) % 0xFFFF == wanted for pair in pairs)
        assert runs._sum_to(wanted, [left, right, bytes(len(left))], len(pairs)) == right_ones


def test_the_longest_frame_fits_the_buffer_behind_a_part() -> None:
    assert BUFFER >= 2 * (PREFIX + LONGEST_FRAME)
    stream = Stream()
    stream.room()[:PREFIX] = LONGEST_FRAME.to_bytes(PREFIX, "big")
    stream.end = BUFFER
    assert stream.length() == LONGEST_FRAME
    assert LEAST <= MOST


# And in.


def groups(messages: list[bytes]) -> list[Arrived]:
    """As Linux coalesces them: neighbours of one size, and a shorter last."""
    made: list[list[bytes]] = []
    for message in messages:
        last = made[-1] if made else None
        if last and len(last[0]) == len(last[-1]) >= len(message):
            last.append(message)
        else:
            made.append([message])
    return [Arrived(b"".join(group), group) for group in made]


inbound = st.builds(
    transport,
    st.sampled_from([10, 10, 10, 11, 99]),
    st.integers(0, 99),
    st.sampled_from([FULL, FULL, 96, 117, 32, 1472, 1473, 1480]),
)


@settings(deadline=None)
@given(
    messages=st.lists(st.one_of(inbound, inbound, st.binary(min_size=1, max_size=99)), max_size=40),
    now=st.sampled_from([1.0, 200.0]),
)
def test_datagrams_together_are_judged_as_one_by_one(messages: list[bytes], now: float) -> None:
    together, alone = established(), established()
    written = [b"".join(c.buffers) for c in together.inbound(groups(messages), now)]
    single = [c.buffers for m in messages for c in alone.inbound([Arrived(m, (m,))], now)]
    assert b"".join(written) == b"".join(b"".join(buffers) for buffers in single)
    assert together.dropped_in == alone.dropped_in
    assert (together.messages_in, together.bytes_in) == (alone.messages_in, alone.bytes_in)


def test_a_group_goes_to_the_nic_frame_by_frame() -> None:
    messages = [transport(10, n) for n in range(20)] + [transport(10, 20, 96)]
    commands = established().inbound(groups(messages), 1)
    assert len(commands) == 1 and isinstance(commands[0], WriteNic)
    written = b"".join(commands[0].buffers)
    assert written == b"".join(prefixed(link.wrap(message)) for message in messages)


@pytest.mark.parametrize(
    "odd",
    [
        transport(99, 3),
        b"\x01" + transport(10, 3)[1:],
        b"\x04\0\0\1" + transport(10, 3)[4:],
        transport(10, 3)[:16],
        transport(10, 3)[:31],
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_one_odd_datagram_among_good_ones_is_dropped(odd: bytes, alone: bool) -> None:
    good = [transport(10, n) for n in range(3)]
    for messages in ([odd, *good], [*good, odd], [good[0], odd, *good[1:]]):
        relay = established()
        made = [g for m in messages for g in groups([m])] if alone else groups(messages)
        commands = relay.inbound(made, 1)
        written = b"".join(b"".join(c.buffers) for c in commands if isinstance(c, WriteNic))
        assert written == b"".join(prefixed(link.wrap(message)) for message in good)
        assert sum(relay.dropped_in.values()) == 1
