"""One peer's resolver, without a socket: its own names, and a policy that changes meanwhile."""

from __future__ import annotations

import asyncio

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from tests.support.gateways import config_of
from tests.support.waiting import soon

from wgcell.gateway.dns.server import NO_RULE, Nameserver
from wgcell.gateway.dns.upstream import Upstream
from wgcell.gateway.model.parsing import parse_config
from wgcell.gateway.model.policy import Policy
from wgcell.net.addresses import Address

ASKED = dns.rdatatype.RdataType


class Slow(Upstream):
    """Answers with one address, once it is let."""

    def __init__(self) -> None:
        super().__init__(())
        self.asked: list[str] = []
        self.go = asyncio.Event()

    async def ask(self, name: dns.name.Name, kind: ASKED) -> dns.message.Message | None:
        self.asked.append(name.to_text(omit_final_dot=True))
        await self.go.wait()
        answer = dns.message.make_response(dns.message.make_query(name, kind))
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "203.0.113.7"))
        return dns.message.from_wire(answer.to_wire())


class Heard:
    """What became of each query."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        self.resolved: list[tuple[str, str]] = []

    def name_refused(self, name: str, reason: str) -> None:
        self.refused.append((name, reason))

    def name_failed(self, name: str, reason: str) -> None:
        raise AssertionError("none fails")

    async def name_resolved(self, name: str, addresses: tuple[Address, ...], ttl: float) -> None:
        self.resolved += [(name, str(one)) for one in addresses]


def policy_of(*rules: str, **services: str) -> Policy:
    return parse_config(config_of(rules=list(rules), services=services)).peers[0].policy


def query(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(name, kind).to_wire()


def test_a_name_that_is_denied_while_it_is_asked_is_refused() -> None:
    async def body() -> None:
        upstream, heard = Slow(), Heard()
        allowed = policy_of("allow api.example.com:443")
        server = Nameserver(allowed, upstream, heard, lambda address: True)
        waiting = asyncio.create_task(server.reply(query("api.example.com")))
        await soon(lambda: upstream.asked)
        server.change(policy_of("deny api.example.com:443", "allow api.example.com:443"))
        upstream.go.set()
        answer = dns.message.from_wire(await waiting)
        assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])
        assert heard.refused == [("api.example.com", NO_RULE)] and not heard.resolved
        # The control: the same, allowed.
        server.change(allowed)
        assert dns.message.from_wire(await server.reply(query("api.example.com"))).answer
        assert heard.resolved == [("api.example.com", "203.0.113.7")]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("db.internal", "A", "10.99.0.6"),
        ("DB.Internal", "A", "10.99.0.6"),
        ("db.internal", "AAAA", ""),
        ("db.internal", "TXT", ""),
        ("internal", "A", ""),
    ],
)
def test_a_service_has_its_name_and_no_other_resolver_is_asked(
    name: str, kind: str, found: str
) -> None:
    async def body() -> None:
        upstream, heard = Slow(), Heard()
        server = Nameserver(policy_of(db="127.0.0.1:5432"), upstream, heard)
        answer = dns.message.from_wire(await server.reply(query(name, kind)))
        texts = [item.to_text() for records in answer.answer for item in records]
        assert (answer.rcode(), texts) == (dns.rcode.NOERROR, [found] if found else [])
        assert not upstream.asked
        assert heard.resolved == ([(name.lower(), found)] if found else [])

    asyncio.run(body())


@pytest.mark.parametrize("name", ["other.internal", "a.db.internal", "db.example.com", "db"])
def test_another_name_is_none(name: str) -> None:
    async def body() -> None:
        heard = Heard()
        server = Nameserver(policy_of(db="127.0.0.1:5432"), Slow(), heard)
        answer = dns.message.from_wire(await server.reply(query(name)))
        assert answer.rcode() == dns.rcode.NXDOMAIN and heard.refused == [(name, NO_RULE)]

    asyncio.run(body())


def test_another_rate_begins_anew_and_the_same_does_not() -> None:
    async def body() -> None:
        slow = parse_config(config_of(limits={"queries_per_second": 1})).peers[0].policy
        server = Nameserver(slow, Slow(), Heard())

        async def refused() -> int:
            codes = [dns.message.from_wire(await server.reply(query("x"))) for _ in range(6)]
            return sum(answer.rcode() == dns.rcode.REFUSED for answer in codes)

        assert await refused() == 2
        server.change(slow)
        assert await refused() == 6
        server.change(policy_of())
        assert await refused() == 0

    asyncio.run(body())
