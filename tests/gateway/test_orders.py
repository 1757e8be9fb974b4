"""Orders to a running gateway as a script, with an engine that only notes what it is to serve."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.support.gateways import config_of
from tests.support.waiting import lulled, soon

from wgcell.errors import HostError
from wgcell.gateway import orders, words
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.parsing import parse_config
from wgcell.gateway.model.rules import Action
from wgcell.gateway.orders import Orders

ADDRESS = ipaddress.ip_address("203.0.113.7")
RULE = "203.0.113.7:443"
ROOT, ALICE = 0, 1000


class Script:
    """A gateway of one peer, its clock and its events."""

    def __init__(self, **config: Any) -> None:
        self.config = parse_config(config_of(**config))
        self.now = 5000.0
        self.told: list[words.Event] = []
        self.applied: list[GatewayConfig] = []
        self.fails: Exception | None = None
        self.given_up = False
        self.orders = Orders(self, self.config, self.told.append, self.give_up, lambda: self.now)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def apply(self, config: GatewayConfig) -> int:
        if self.fails is not None:
            raise self.fails
        self.applied.append(config)
        return 3

    def give_up(self) -> None:
        self.given_up = True

    def opens(self) -> bool:
        config = self.applied[-1] if self.applied else self.config
        policy = config.peers[0].policy
        return policy.evaluate(ADDRESS, 443, "tcp").action is Action.ALLOW

    def last(self) -> words.Event:
        return self.told[-1]


def played(play: Callable[[Script], Coroutine[Any, Any, None]], **config: Any) -> Script:
    async def body() -> Script:
        script = Script(**config)
        await play(script)
        await script.orders.close()
        return script

    return asyncio.run(body())


def test_an_allow_is_applied_then_told_with_who_and_until_when() -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(words.Allow(7, RULE, ALICE, 600.0))
        assert script.opens()
        told = script.last()
        assert isinstance(told, words.PolicyChanged)
        assert (told.number, told.change, told.rule) == (7, "allow", f"allow {RULE}")
        assert (told.who, told.cut) == (ALICE, 3)
        assert told.until is not None and abs(told.until - told.time - 600) < 5
        await script.orders.obey(words.Deny(8, RULE, ROOT))
        assert not script.opens()
        told = script.last()
        assert isinstance(told, words.PolicyChanged)
        assert (told.number, told.change, told.until, told.who) == (8, "deny", None, ROOT)

    played(play)


def test_its_end_is_told_once_and_closes() -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(words.Allow(1, RULE, ALICE, 600.0))
        await script.orders.obey(words.Allow(2, "203.0.113.8:1", ROOT))
        script.now += 599.9
        await lulled(1.2)  # two looks at the clock
        assert script.opens() and len(script.told) == 2
        script.now += 0.1
        await soon(lambda: len(script.told) == 3)
        assert not script.opens()
        told = script.last()
        assert isinstance(told, words.PolicyChanged)
        assert (told.change, told.rule, told.who) == ("expired", f"allow {RULE}", ALICE)
        assert (told.number, told.until, told.cut) == (None, None, 3)
        await script.orders.obey(words.Allow(3, RULE, ALICE, 1.0))  # and once more
        script.now += 1
        await soon(lambda: len(script.told) == 5)
        assert not script.opens()

    played(play)


def test_a_machine_that_sleeps_over_an_end_closes_when_it_wakes() -> None:
    """The clock jumps; no timer of the loop has."""

    async def play(script: Script) -> None:
        await script.orders.obey(words.Allow(1, RULE, ALICE, 8 * 3600.0))
        await asyncio.sleep(0)
        script.now += 9 * 3600
        await soon(lambda: not script.opens(), within=5)

    played(play)


def test_the_clock_is_one_that_goes_on_in_sleep() -> None:
    import time

    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 <= orders._since_boot() - before < 60


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (words.Allow(9, "example.com", ALICE), "rule 'example.com' has no port"),
        (words.Deny(9, "", ALICE), "rule '' has no port"),
    ],
)
def test_what_is_no_rule_is_refused(order: words.Order, reason: str) -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(order)

    script = played(play)
    told = script.last()
    assert isinstance(told, words.OrderRefused) and told.number == 9
    assert told.reason.startswith(reason) and not script.applied


@pytest.mark.parametrize("error", [HostError("nft: no", hint="look"), OSError(28, "No space left")])
def test_what_can_not_be_applied_is_refused_and_changes_nothing(error: Exception) -> None:
    async def play(script: Script) -> None:
        script.fails = error
        await script.orders.obey(words.Allow(1, RULE, ALICE, 60.0))
        told = script.last()
        assert isinstance(told, words.OrderRefused) and told.number == 1
        assert told.reason in ("nft: no", "[Errno 28] No space left")
        script.fails = None
        await script.orders.obey(words.Allow(2, "203.0.113.8:1", ALICE))
        assert not script.opens()

    played(play)


def test_an_end_that_can_not_be_taken_back_ends_the_gateway() -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(words.Allow(1, RULE, ALICE, 60.0))
        script.fails, script.now = HostError("nft: no"), script.now + 60
        await soon(lambda: script.given_up)
        told = script.last()
        assert isinstance(told, words.Fault)
        assert told.detail == f"allow {RULE}: over, and can't be taken back: nft: no"

    played(play)


def test_another_configuration_keeps_the_changes() -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(words.Allow(1, RULE, ALICE))
        key = script.config.private_key
        peer = script.config.peers[0]
        other = words.Configure(key, peers={"cell": words.Peer(peer.public_key, "10.99.0.2")})
        await script.orders.obey(other)
        assert script.opens() and isinstance(script.last(), words.Applied)

    played(play)


def listed(script: Script) -> list[words.RuleInForce]:
    found: list[words.RuleInForce] = []
    events = [one for one in script.told if isinstance(one, words.RulesListed)]
    assert [one.more for one in events] == [True] * (len(events) - 1) + [False]
    for event in events:
        assert event.number == 4
        found += event.rules
    return found


def test_the_rules_are_listed_as_they_are_read() -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(words.Allow(1, "b.example.com:443", ALICE, 600.0))
        await script.orders.obey(words.Deny(2, "10.99.0.5:80", ROOT))
        await script.orders.obey(words.ListRules(4))

    peer = {**config_of()["peers"]["cell"], "publish": ["8080:80"]}
    found = listed(
        played(
            play,
            rules=["allow api.example.com:443"],
            services={"10.99.0.5:80": "127.0.0.1:8000", "db": "127.0.0.1:5432"},
            learn=True,
            peers={"cell": peer},
        )
    )
    assert [(one.rule, one.origin, one.who) for one in found] == [
        ("deny 10.99.0.5:80", "order", ROOT),
        ("allow b.example.com:443", "order", ALICE),
        # The other service is closed by the first line.
        ("service db.internal:5432 = 127.0.0.1:5432", "service", None),
        ("allow api.example.com:443", "start", None),
        ("learn", "start", None),
        ("publish 127.0.0.1:8080:80", "published", None),
    ]
    assert [bool(one.until) for one in found] == [False, True, False, False, False, False]


@pytest.mark.parametrize("count", [0, 1, 32, 33, 1024])
def test_many_rules_come_in_many_lines(count: int) -> None:
    async def play(script: Script) -> None:
        await script.orders.obey(words.ListRules(4))

    long = ".".join(["a" * 60] * 4)
    rules = [f"allow {number}.{long}:1-65535" for number in range(count)]
    script = played(play, rules=rules)
    assert [one.rule for one in listed(script)] == rules
    for event in script.told:
        words.EVENTS.line(event)  # none is too long
