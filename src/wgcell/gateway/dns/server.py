"""The resolver inside the tunnel, of one peer: a query's bytes in, an answer's bytes out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import dns.message
import dns.rcode

from wgcell.gateway.dns import answers
from wgcell.gateway.dns.upstream import Upstream
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.ratelimit import Bucket
from wgcell.gateway.model.rules import is_name
from wgcell.net.addresses import Address
from wgcell.net.routes import has_way

__all__ = ["NO_RULE", "Nameserver", "Refused"]

MOST_ASKED = 64
"""Queries of one peer that wait at a time: for an upstream, and until what they open is open."""
_BURST_SECONDS = 4
NO_RULE = "no rule names it"

Refused = Callable[[str, str], None]
"""Called with a name that was refused, and why."""
Learned = Callable[[str, tuple[Address, ...], float], Awaitable[None]]
"""Called with a name, the addresses it leads to, and for how many seconds; the answer waits."""


class Nameserver:
    """Answers one peer's queries by its policy. Each answer opens what it says, for as long."""

    def __init__(
        self,
        policy: Policy,
        upstream: Upstream,
        refused: Refused,
        learned: Learned,
        failed: Refused,
        way: Callable[[Address], bool] = has_way,
    ) -> None:
        self.policy = policy
        self._upstream = upstream
        self._refused = refused
        self._learned = learned
        self._failed = failed
        self._way = way
        rate = policy.limits.queries_per_second
        self._bucket = Bucket(rate, rate * _BURST_SECONDS)
        self._waiting = 0

    async def reply(self, raw: bytes, *, tcp: bool = False) -> bytes:
        """The answer to one query; no bytes for what is no query. Never raises on hostile bytes."""
        question = answers.parse_question(raw)
        if question is None:
            self._refused("", "not a DNS query")
            return b""
        return (await self._answer(question)).to_wire(question, tcp=tcp)

    async def _answer(self, question: answers.Question) -> answers.Answer:
        if not self._bucket.take(time.monotonic()) or self._waiting >= MOST_ASKED:
            self._refused(question.name, "too many queries")
            return answers.error(question, dns.rcode.REFUSED)
        # A dot within a label would be read as two labels by a rule.
        if not is_name(question.name) or not self.policy.rule_for_name(question.name):
            self._refused(question.name, NO_RULE)
            above = self.policy.is_above(question.name)
            return answers.blocked(question, "no rule allows this name", exists=above)
        if not question.addresses:
            # Other records could carry addresses past us (HTTPS, SVCB), or anything at all (TXT).
            return answers.error(question, dns.rcode.NOERROR)
        self._waiting += 1
        try:
            return await self._found(question)
        finally:
            self._waiting -= 1

    async def _found(self, question: answers.Question) -> answers.Answer:
        found = await self._upstream.ask(question.message.question[0].name, question.kind)
        answer = answers.digest(question, found, self.policy.kept, self._way)
        if why := self._why_not(found, answer):
            self._failed(question.name, why)
        if answer.kept:
            what = f"{answer.kept[0]} is {self.policy.kept(answer.kept[0])}"
            self._refused(question.name, f"it leads to this side of the tunnel: {what}")
        if answer.addresses:
            await self._learned(question.name, answer.addresses, answer.ttl)
        return answer

    def _why_not(self, found: dns.message.Message | None, answer: answers.Answer) -> str:
        """Why an allowed name has no answer; empty if it has one, be it that it has no address."""
        if found is None:
            servers = ", ".join(host for host, _ in self._upstream.servers)
            return f"no answer from {servers}" if servers else "this machine has no resolver"
        code = found.rcode()
        if code == dns.rcode.NXDOMAIN:
            return "there is no such name (NXDOMAIN)"
        if code != dns.rcode.NOERROR:
            return f"the resolver says {dns.rcode.to_text(code)}"
        failed = answer.message.rcode() == dns.rcode.SERVFAIL
        return "the resolver's answer makes no sense" if failed else ""
