"""One peer's admission, without an engine. The bytes of a flow are shown by test_hosts.py."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from typing import Any

from tests.support.gateways import config_of
from tests.support.waiting import forever, soon

from wgcell.gateway import words
from wgcell.gateway.model.parsing import parse_config
from wgcell.gateway.model.policy import LEARNED, Decision
from wgcell.gateway.model.rules import Action
from wgcell.gateway.peer.admission import MOST_FLOWS, Admission
from wgcell.gateway.proxy.udp import splice_datagrams

WORLD = ipaddress.ip_address("203.0.113.7")


def made(most_flows: int = MOST_FLOWS, **changes: Any) -> tuple[Admission, list[Any]]:
    config = parse_config(config_of(**changes))
    told: list[words.Event] = []
    return Admission(config, config.peers[0], told.append, most_flows=most_flows), told


def begin(one: Admission) -> tuple[Action, str]:
    decision = one.decide(one.new_flow("tcp", WORLD, 80), one.peer.address)
    return decision.action, decision.reason


def test_what_a_limit_refuses_no_rule_would_allow() -> None:
    one, told = made(learn=True, limits={"flows": 1, "flows_per_second": 1})
    assert begin(one)[0] is Action.ALLOW and told[-1].hint == "203.0.113.7:80"
    assert begin(one)[0] is Action.REFUSE and told[-1].hint == ""


def ask(one: Admission, ago: float, ttl: float = 1) -> None:
    """A name's answer, so many seconds ago."""
    one.cache.add("api.example.com", (WORLD,), ttl, time.monotonic() - ago)


def test_a_connection_after_its_answers_end_is_told_as_that() -> None:
    one, told = made(rules=["allow api.example.com:80"])
    ask(one, 59)
    assert begin(one)[0] is Action.ALLOW
    one, told = made(rules=["allow api.example.com:80"])
    ask(one, 75)
    ended = "the answer for api.example.com ended 15 s ago, and it was not asked again"
    assert begin(one) == (Action.REFUSE, ended)
    assert (told[-1].name, told[-1].hint) == ("api.example.com", "")
    # It is not what another port, or an address that no name led to, is told.
    decision = one.decide(one.new_flow("tcp", WORLD, 81), one.peer.address)
    assert decision.reason == "no rule allows it"


def test_a_lease_is_prolonged_while_a_flow_uses_it_and_no_longer() -> None:
    opened: list[tuple[str, float]] = []

    async def learned(leads: tuple[tuple[str, Any, float], ...]) -> None:
        opened.extend((name, ttl) for name, _, ttl in leads)

    config = parse_config(config_of(rules=["allow api.example.com:80"]))
    one = Admission(config, config.peers[0], lambda event: None, learned)
    ask(one, 40)

    async def using() -> str:
        await one.extend()
        return "closed"

    flow = one.new_flow("tcp", WORLD, 80)
    decision = one.decide(flow, one.peer.address)
    now = time.monotonic()
    assert one.cache.expires_soon("api.example.com", WORLD, now)
    asyncio.run(one.carry(flow, decision, using()))
    assert opened == [("api.example.com", 0.0)]
    assert one.cache.names(WORLD, now + 59) and not one.cache.names(WORLD, now + 70)
    # Nothing uses it any more; and one that is not joined here, as the kernel's own, counts too.
    one.cache.clear()
    ask(one, 40)
    asyncio.run(one.extend())
    assert not one.cache.names(WORLD, now + 30)
    asyncio.run(one.extend([flow]))
    assert one.cache.names(WORLD, now + 59)


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
    flow = one.new_flow("udp", ipaddress.ip_address("255.255.255.255"), 9)
    decision = one.decide(flow, one.peer.address)
    asyncio.run(one.carry(flow, decision, splice_datagrams(Silent(), flow, False)))
    begun, end = told
    assert (type(begun), begun.verdict) == (words.Flow, "allow")
    assert (type(end), end.verdict) == (words.FlowEnd, "fail")
    assert end.reason == "target 255.255.255.255:9: Permission denied"


def test_all_peers_together_have_a_bound() -> None:
    """Each flow takes descriptors, and the gateway needs some to cut off who took the others."""
    gates = [made(2, rules=["allow 203.0.113.7:80"])[0] for _ in range(3)]

    async def together() -> list[str]:
        ended, holding, joined = asyncio.Event(), [0], []

        async def hold() -> str:
            holding[0] += 1
            await ended.wait()
            return "closed"

        for one in gates[:2]:
            flow = one.new_flow("tcp", WORLD, 80)
            joined.append(one.carry(flow, one.decide(flow, one.peer.address), hold()))
        tasks = [asyncio.create_task(work) for work in joined]
        await soon(lambda: holding[0] == 2)
        assert begin(gates[2]) == (Action.REFUSE, "2 flows of all peers are open already")
        ended.set()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(together()) == ["closed", "closed"]
    assert begin(gates[2])[0] is Action.ALLOW


def test_a_flow_that_was_learned_is_compared_once_the_policy_is_known() -> None:
    one, _ = made(learn=True)
    other, _ = made(rules=["allow api.example.com:443"])
    one.cache.add("api.example.com", (WORLD,), 60, time.monotonic())
    flow = one.new_flow("tcp", WORLD, 443)

    async def changed_meanwhile() -> str:
        assert flow.rule == LEARNED
        one.change(other.peer)
        return "closed"

    asyncio.run(one.carry(flow, one.decide(flow, one.peer.address), changed_meanwhile()))
    assert (flow.rule, flow.names) == ("allow api.example.com:443", ("api.example.com",))


def test_another_policy_counts_the_flows_that_it_ends_and_leaves_queries_alone() -> None:
    one, _ = made(rules=["allow 203.0.113.7:80", "allow 203.0.113.7:81"])
    other, _ = made(rules=["allow 203.0.113.7:81"])
    resolver = ipaddress.ip_address("10.99.0.1")

    async def together() -> None:
        tasks = []
        for address, port in ((WORLD, 80), (WORLD, 80), (WORLD, 81), (resolver, 53)):
            flow = one.new_flow("tcp", address, port)
            decision = Decision(Action.ALLOW, "", "")
            tasks.append(asyncio.create_task(one.carry(flow, decision, holding())))
        await soon(lambda: len(one._open) == 4)
        assert one.change(other.peer) == 2
        await soon(lambda: len(one._open) == 2)
        assert [task.done() for task in tasks] == [True, True, False, False]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def holding() -> str:
        await forever()
        return ""

    asyncio.run(together())


def test_the_tunnels_own_addresses_are_on_this_side() -> None:
    one, _ = made(address="203.0.113.1", services={"203.0.113.5:80": "127.0.0.1:8000"})
    for address in ("203.0.113.1", "203.0.113.5", "10.99.0.2"):
        assert one.peer.policy.protection(ipaddress.ip_address(address))
