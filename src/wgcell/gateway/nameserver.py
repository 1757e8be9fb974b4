"""The resolver inside the tunnel, of one peer: a query's bytes in, an answer's bytes out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import dns.rcode

from wgcell.gateway import names
from wgcell.gateway.limits import Bucket
from wgcell.gateway.policy import Address, Policy
from wgcell.gateway.resolver import Upstream

__all__ = ["Nameserver", "Refused"]

MOST_ASKED = 64
"""Queries of one peer that wait at a time: for an upstream, and until what they open is open."""
_BURST_SECONDS = 4

Refused = Callable[[str, str], None]
"""Called with a name that was refused, and why."""
Learned = Callable[[str, tuple[Address, ...], float], Awaitable[None]]
"""Called with a name, the addresses it leads to, and for how many seconds; the answer waits."""


class Nameserver:
    """Answers one peer's queries by its policy. Each answer opens what it says, for as long."""

    def __init__(
        self, policy: Policy, upstream: Upstream, refused: Refused, learned: Learned
    ) -> None:
        self.policy = policy
        self._upstream = upstream
        self._refused = refused
        self._learned = learned
        rate = policy.limits.queries_per_second
        self._bucket = Bucket(rate, rate * _BURST_SECONDS)
        self._waiting = 0

    async def reply(self, raw: bytes, *, tcp: bool = False) -> bytes:
        """The answer to one query; no bytes for what is no query. Never raises on hostile bytes."""
        question = names.parse_question(raw)
        if question is None:
            self._refused("", "not a DNS query")
            return b""
        return (await self._answer(question)).to_wire(question, tcp=tcp)

    async def _answer(self, question: names.Question) -> names.Answer:
        if not self._bucket.take(time.monotonic()) or self._waiting >= MOST_ASKED:
            self._refused(question.name, "too many queries")
            return names.error(question, dns.rcode.REFUSED)
        if not self.policy.rule_for_name(question.name):
            self._refused(question.name, "no rule names it")
            above = self.policy.is_above(question.name)
            return names.blocked(question, "no rule allows this name", exists=above)
        if not question.addresses:
            # Other records could carry addresses past us (HTTPS, SVCB), or anything at all (TXT).
            return names.error(question, dns.rcode.NOERROR)
        self._waiting += 1
        try:
            return await self._found(question)
        finally:
            self._waiting -= 1

    async def _found(self, question: names.Question) -> names.Answer:
        found = await self._upstream.ask(question.message.question[0].name, question.kind)
        answer = names.digest(question, found, self.policy.kept)
        if answer.kept:
            what = f"{answer.kept[0]} is {self.policy.kept(answer.kept[0])}"
            self._refused(question.name, f"it leads to this side of the tunnel: {what}")
        if answer.addresses:
            await self._learned(question.name, answer.addresses, answer.ttl)
        return answer
