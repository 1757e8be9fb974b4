"""The resolver inside the tunnel, of one peer: the bytes of a query in, the bytes of an answer out.

It is the peer's only resolver. With each answer an address becomes reachable, for as long as the
answer lives (see `dns.cache`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import dns.message
import dns.rcode

from wgcell.gateway.dns import answers
from wgcell.gateway.dns.upstream import Upstream
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.rules import is_name
from wgcell.net.addresses import Address
from wgcell.net.bucket import TokenBucket
from wgcell.net.routes import has_route

__all__ = ["NO_RULE", "NameEvents", "Nameserver"]

MOST_ASKED = 64
"""Queries of one peer that wait at a time: for an upstream, and until the kernel knows the answer.
"""
_BURST_SECONDS = 4
NO_RULE = "no rule names it"
_NOT_ALLOWED = "no rule allows this name"


class NameEvents(Protocol):
    """Hears what becomes of each query: the peer's admission."""

    def name_refused(self, name: str, reason: str) -> None:
        """A query was refused; ``name`` is empty if it was no query."""

    def name_failed(self, name: str, reason: str) -> None:
        """An allowed name has no answer."""

    async def name_resolved(self, name: str, addresses: tuple[Address, ...], ttl: float) -> None:
        """An answer leads from ``name`` to ``addresses`` for ``ttl`` seconds. It leaves when this
        returns."""


def _bucket(policy: Policy) -> TokenBucket:
    rate = policy.limits.queries_per_second
    return TokenBucket(rate, rate * _BURST_SECONDS)


class Nameserver:
    """Answers the queries of one peer by its policy."""

    def __init__(
        self,
        policy: Policy,
        upstream: Upstream,
        events: NameEvents,
        has_route: Callable[[Address], bool] = has_route,
    ) -> None:
        self.policy = policy
        self._upstream = upstream
        self._events = events
        self._has_route = has_route
        self._bucket = _bucket(policy)
        self._waiting = 0

    def change(self, policy: Policy) -> None:
        """Answer by another policy from now on, also queries that wait for an upstream."""
        if policy.limits.queries_per_second != self.policy.limits.queries_per_second:
            self._bucket = _bucket(policy)
        self.policy = policy

    async def reply(self, raw: bytes, *, tcp: bool = False) -> bytes:
        """The answer to one query; no bytes if ``raw`` is no query. No hostile bytes raise."""
        question = answers.parse_question(raw)
        if question is None:
            self._events.name_refused("", "not a DNS query")
            return b""
        return (await self._answer(question)).to_wire(question, tcp=tcp)

    async def _answer(self, question: answers.Question) -> answers.Answer:
        if not self._bucket.take(time.monotonic()) or self._waiting >= MOST_ASKED:
            self._events.name_refused(question.name, "too many queries")
            return answers.error(question, dns.rcode.REFUSED)
        if own := self.policy.services_named(question.name):
            return await self._answer_own(question, own)
        # A rule would read a dot within a label as the end of the label.
        if not is_name(question.name) or not self.policy.rule_for_name(question.name):
            self._events.name_refused(question.name, NO_RULE)
            above = self.policy.is_above(question.name)
            return answers.blocked(question, _NOT_ALLOWED, exists=above)
        if not question.addresses:
            # Other records could carry addresses past us (HTTPS, SVCB), or anything at all (TXT).
            return answers.error(question, dns.rcode.NOERROR)
        self._waiting += 1
        try:
            return await self._resolve(question)
        finally:
            self._waiting -= 1

    async def _answer_own(
        self, question: answers.Question, services: tuple[Address, ...]
    ) -> answers.Answer:
        """The answer for the name of a service; no other resolver is asked."""
        answer = answers.own(question, services)
        if answer.addresses:
            await self._events.name_resolved(question.name, answer.addresses, answer.ttl)
        return answer

    async def _resolve(self, question: answers.Question) -> answers.Answer:
        found = await self._upstream.ask(question.message.question[0].name, question.kind)
        if not self.policy.rule_for_name(question.name):
            # Denied since it was asked.
            self._events.name_refused(question.name, NO_RULE)
            return answers.blocked(question, _NOT_ALLOWED, exists=False)
        answer = answers.filtered(question, found, self.policy.protection, self._has_route)
        if why := self._failure(found, answer):
            self._events.name_failed(question.name, why)
        if answer.protected:
            what = f"{answer.protected[0]} is {self.policy.protection(answer.protected[0])}"
            why = f"it leads to this side of the tunnel: {what}"
            self._events.name_refused(question.name, why)
        if answer.addresses:
            await self._events.name_resolved(question.name, answer.addresses, answer.ttl)
        return answer

    def _failure(self, found: dns.message.Message | None, answer: answers.Answer) -> str:
        """Why an allowed name has no answer; empty if it has one, even one without addresses."""
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
