"""One peer's gate, without an engine. What it can't show: a flow's bytes (test_hosts.py does)."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from typing import Any

import pytest
from tests.gateway.conftest import config_of
from tests.waiting import forever, soon

from wgcell.gateway import __main__ as process
from wgcell.gateway import gate, kernel
from wgcell.gateway.config import parse_config
from wgcell.gateway.gate import Gate
from wgcell.gateway.joining import join_datagrams
from wgcell.gateway.policy import LEARNED, Verdict

WORLD = ipaddress.ip_address("203.0.113.7")


def made(**changes: Any) -> tuple[Gate, list[dict[str, object]]]:
    config = parse_config(config_of(**changes))
    told: list[dict[str, object]] = []
    return Gate(config, config.peers[0], told.append), told


def begin(one: Gate) -> tuple[Verdict, str]:
    decision = one.decide(one.flow("tcp", WORLD, 80), one.peer.address)
    return decision.verdict, decision.reason


def test_what_a_limit_refuses_no_rule_would_mend() -> None:
    one, told = made(learn=True, limits={"flows": 1, "flows_per_second": 1})
    assert begin(one)[0] is Verdict.ALLOW and told[-1]["mend"] == "203.0.113.7:80"
    assert begin(one)[0] is Verdict.REFUSE and told[-1]["mend"] == ""


def ask(one: Gate, ago: float, ttl: float = 1) -> None:
    """A name's answer, so many seconds ago."""
    one.names.learn("api.example.com", (WORLD,), ttl, time.monotonic() - ago)


def test_a_connection_after_its_answers_end_is_told_as_that() -> None:
    one, told = made(rules=["allow api.example.com:80"])
    ask(one, 59)
    assert begin(one)[0] is Verdict.ALLOW
    one, told = made(rules=["allow api.example.com:80"])
    ask(one, 75)
    ended = "the answer for api.example.com ended 15 s ago, and it was not asked again"
    assert begin(one) == (Verdict.REFUSE, ended)
    assert (told[-1]["name"], told[-1]["mend"]) == ("api.example.com", "")
    # It is not what another port, or an address that no name led to, is told.
    decision = one.decide(one.flow("tcp", WORLD, 81), one.peer.address)
    assert decision.reason == "no rule allows it"


def test_a_lease_is_prolonged_while_a_flow_uses_it_and_no_longer() -> None:
    opened: list[tuple[str, float]] = []

    async def learned(leads: tuple[tuple[str, Any, float], ...]) -> None:
        opened.extend((name, ttl) for name, _, ttl in leads)

    config = parse_config(config_of(rules=["allow api.example.com:80"]))
    one = Gate(config, config.peers[0], lambda event: None, learned)
    ask(one, 40)

    async def using() -> str:
        await one.prolong()
        return "closed"

    flow = one.flow("tcp", WORLD, 80)
    decision = one.decide(flow, one.peer.address)
    now = time.monotonic()
    assert one.names.short("api.example.com", WORLD, now)
    asyncio.run(one.join(flow, decision, using()))
    assert opened == [("api.example.com", 0.0)]
    assert one.names.names(WORLD, now + 59) and not one.names.names(WORLD, now + 70)
    # Nothing uses it any more; and one that is not joined here, as the kernel's own, counts too.
    one.names._leads.clear()
    ask(one, 40)
    asyncio.run(one.prolong())
    assert not one.names.names(WORLD, now + 30)
    asyncio.run(one.prolong([flow]))
    assert one.names.names(WORLD, now + 59)


class Silent:
    """A peer's end of a flow that says nothing."""

    async def read(self, n: int, /) -> bytes:
        await forever()
        return b""

    def write(self, data: bytes, /) -> None:
        raise AssertionError("nothing comes back")

    async def drain(self) -> None: ...

    def write_eof(self) -> None: ...


def test_a_datagram_that_this_machine_can_not_send_is_told_as_not_reached() -> None:
    one, told = made(rules=["allow 255.255.255.255:9"])
    # Linux refuses it to a socket that has not asked for broadcast, wherever routes lead.
    flow = one.flow("udp", ipaddress.ip_address("255.255.255.255"), 9)
    decision = one.decide(flow, one.peer.address)
    asyncio.run(one.join(flow, decision, join_datagrams(Silent(), flow, own=False)))
    begun, end = told
    assert (begun["event"], begun["verdict"]) == ("flow", "allow")
    assert (end["event"], end["verdict"]) == ("flow_end", "fail")
    assert end["reason"] == "target 255.255.255.255:9: Permission denied"


def test_all_peers_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flow takes descriptors, and the gateway needs some to cut off who took the others."""
    monkeypatch.setattr(gate, "MOST_JOINED", 2)
    gates = [made(rules=["allow 203.0.113.7:80"])[0] for _ in range(3)]

    async def together() -> list[str]:
        ended, holding, joined = asyncio.Event(), [0], []

        async def hold() -> str:
            holding[0] += 1
            await ended.wait()
            return "closed"

        for one in gates[:2]:
            flow = one.flow("tcp", WORLD, 80)
            joined.append(one.join(flow, one.decide(flow, one.peer.address), hold()))
        tasks = [asyncio.create_task(work) for work in joined]
        await soon(lambda: holding[0] == 2)
        assert begin(gates[2]) == (Verdict.REFUSE, "2 flows of all peers are open already")
        ended.set()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(together()) == ["closed", "closed"]
    assert begin(gates[2])[0] is Verdict.ALLOW


def test_a_flow_that_was_learned_is_compared_once_the_policy_is_known() -> None:
    one, _ = made(learn=True)
    other, _ = made(rules=["allow api.example.com:443"])
    one.names.learn("api.example.com", (WORLD,), 60, time.monotonic())
    flow = one.flow("tcp", WORLD, 443)

    async def changed_meanwhile() -> str:
        assert flow.rule == LEARNED
        one.change(other.peer)
        return "closed"

    asyncio.run(one.join(flow, one.decide(flow, one.peer.address), changed_meanwhile()))
    assert (flow.rule, flow.names) == ("allow api.example.com:443", ("api.example.com",))


def test_what_nothing_has_caught_is_told_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(process, "_say", told.append)
    stumbles = process._Stumbles()

    async def many() -> None:
        for _ in range(1000):
            stumbles(asyncio.get_running_loop(), {"message": "m", "exception": OSError("e")})

    asyncio.run(many())
    assert 1 <= len(told) <= 10 and told[0] == {"event": "stumble", "detail": "m: OSError('e')"}


def test_what_a_peer_does_not_take_keeps_its_flow_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target has ended, and the peer; but it reads nothing of what is left."""
    monkeypatch.setattr(kernel, "_TAKES_REST", 0.2)

    class Ended:
        async def run(self, target: object) -> str:
            return "closed"

    class Unread:
        closed = False

        @property
        def transport(self) -> Unread:
            return self

        def abort(self) -> None:
            assert self.closed

        def close(self) -> None:
            self.closed = True

        async def wait_closed(self) -> None:
            await forever()

    async def to_its_end() -> tuple[str, bool, float]:
        begun, unread = time.monotonic(), Unread()
        ended = await kernel._to_its_end(Ended(), None, (None, unread))  # type: ignore[arg-type]
        return ended, unread.closed, time.monotonic() - begun

    ended, closed, taken = asyncio.run(to_its_end())
    assert ended == "closed" and closed and 0.2 <= taken < 5


def test_the_tunnels_own_addresses_are_on_this_side() -> None:
    one, _ = made(address="203.0.113.1", services={"203.0.113.5:80": "127.0.0.1:8000"})
    for address in ("203.0.113.1", "203.0.113.5", "10.99.0.2"):
        assert one.peer.policy.kept(ipaddress.ip_address(address))
