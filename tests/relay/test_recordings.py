"""Two real tunnels through a rekey, as ``record.py`` took them: nothing in them is refused.

Then the same with what a network does to them, and with what it does not.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader
from tests.support.messages import frame

from wgcell.relay.framing import prefixed
from wgcell.relay.relay import Arrived, Relay, Report, Verified
from wgcell.relay.session import Handshake, SessionTable, Side
from wgcell.relay.verdict import Refusal
from wgcell.wire import wireguard

FOLDER = Path(__file__).parent / "recordings"
NAMES = ("boringtun", "wireguard-go")
REKEY_AFTER_TIME = 120


@dataclass(frozen=True)
class Recorded:
    sender: Side
    time: float
    message: bytes


@cache
def recording(name: str) -> tuple[Recorded, ...]:
    with PcapNgReader(str(FOLDER / f"{name}.pcapng")) as reader:
        packets = list(reader)
    return tuple(
        Recorded(Side(p.comments[0].decode()), float(p.time), bytes(Ether(bytes(p))[UDP].payload))
        for p in packets
    )


@cache
def keys(name: str) -> tuple[bytes, bytes, int]:
    noted = json.loads((FOLDER / f"{name}.json").read_text())
    return (base64.b64decode(noted["guest"]), base64.b64decode(noted["endpoint"]), noted["mtu"])


def say(table: SessionTable, one: Recorded) -> Refusal | None:
    way = table.outbound if one.sender is Side.GUEST else table.inbound
    return way(one.message, one.time)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_goes_through_a_rekey_with_full_packets(name: str) -> None:
    messages = recording(name)
    asked = [one.time for one in messages if one.message[0] == wireguard.MessageType.INITIATION]
    assert len(asked) >= 2 and asked[-1] - asked[0] >= REKEY_AFTER_TIME
    for side in Side:
        lengths = {len(one.message) for one in messages if one.sender is side}
        assert max(lengths) == keys(name)[2] + wireguard.SHORTEST_TRANSPORT


@pytest.mark.parametrize("name", NAMES)
def test_the_table_refuses_nothing(name: str) -> None:
    table = SessionTable(*keys(name))
    assert [refusal for one in recording(name) if (refusal := say(table, one))] == []
    assert table.handshakes().count(Handshake(Side.GUEST)) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_relay_refuses_nothing(name: str) -> None:
    relay = Relay(SessionTable(*keys(name)))
    commands = []
    for one in recording(name):
        if one.sender is Side.GUEST:
            # As Linux sends it: no DF, an identification.
            data = prefixed(frame(one.message, ip={"flags": 0, "id": len(one.message)}))
            relay.room()[: len(data)] = data
            commands += relay.outbound(len(data), one.time)
        else:
            commands += relay.inbound([Arrived(one.message, (one.message,))], one.time)
    assert not any(isinstance(command, Report) for command in commands)
    assert relay.refused == {} and relay.dropped_in == {}
    assert relay.messages_out + relay.messages_in == len(recording(name))
    assert commands.count(Verified()) == 1


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_what_a_network_does_is_never_rogue(name: str, data: st.DataObject) -> None:
    """Loss, duplication and reordering, but of the first handshake: a guest that has not received
    its response can't have sent what follows."""
    messages = recording(name)
    first = next(n for n, one in enumerate(messages) if one.message[0] == 4) + 1
    rest = list(messages[first:])
    for _ in range(data.draw(st.integers(0, 30))):
        at = data.draw(st.integers(0, len(rest) - 1))
        match data.draw(st.sampled_from(("lose", "repeat", "delay"))):
            case "lose":
                del rest[at]
            case "repeat":
                rest.insert(at + data.draw(st.integers(0, 40)), rest[at])
            case "delay":
                rest.insert(at + data.draw(st.integers(0, 40)), rest.pop(at))
    table = SessionTable(*keys(name))
    for one in (*messages[:first], *rest):
        refusal = say(table, one)
        assert refusal is None or not refusal.rogue


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_truncated_or_changed_message_is_refused(name: str, data: st.DataObject) -> None:
    messages = recording(name)
    handshakes = [n for n, one in enumerate(messages) if one.message[0] != 4]
    at = data.draw(st.one_of(st.sampled_from(handshakes), st.integers(0, len(messages) - 1)))
    table = SessionTable(*keys(name))
    for one in messages[:at]:
        assert say(table, one) is None
    true = messages[at]
    if true.message[0] == wireguard.MessageType.TRANSPORT:
        # Its body is authenticated end to end, and by nobody between; type and length are ours.
        length = data.draw(st.one_of(st.none(), st.integers(0, 31)))
        changeable = range(4 * 8)
    else:
        length = data.draw(st.one_of(st.none(), st.integers(0, len(true.message) - 1)))
        # mac1 covers all before it; mac2, behind it, is zero here.
        changeable = range(len(true.message) * 8)
    if length is not None:
        changed = true.message[:length]
    else:
        bit = data.draw(st.sampled_from(changeable))
        as_int = int.from_bytes(true.message, "little") ^ (1 << bit)
        changed = as_int.to_bytes(len(true.message), "little")
    assert say(table, Recorded(true.sender, true.time, changed)) is not None
    assert say(table, true) is None  # and leaves nothing behind
