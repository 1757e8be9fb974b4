"""Asks upstream resolvers over UDP, and over TCP if an answer is truncated (RFC 1035, 4.2)."""

from __future__ import annotations

import asyncio
import time

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

__all__ = ["Upstream", "host_resolvers"]

TRY_TIMEOUT = 1.5
"""Seconds for one server's answer."""
LIFETIME = 4.5
"""Seconds for an answer at all: less than the 5 s after which a libc asks again."""
_TRIES = 2
_LONGEST_CHAIN = 8
_PAYLOAD = 1232


def host_resolvers() -> tuple[tuple[str, int], ...]:
    """The resolvers of this machine, from /etc/resolv.conf; none if it has none."""
    try:
        found = dns.resolver.Resolver()
    except dns.exception.DNSException:
        return ()
    return tuple((str(server), 53) for server in found.nameservers)


class Upstream:
    """Resolvers, asked in their order, each twice. Times are in seconds."""

    def __init__(
        self,
        servers: tuple[tuple[str, int], ...],
        *,
        try_timeout: float = TRY_TIMEOUT,
        lifetime: float = LIFETIME,
    ) -> None:
        self.servers = servers
        self._try_timeout = try_timeout
        self._lifetime = lifetime

    async def ask(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> dns.message.Message | None:
        """The first sound answer, CNAMEs followed; None if none comes in time."""
        try:
            async with asyncio.timeout(self._lifetime):
                return await self._follow(name, kind)
        except TimeoutError:
            return None

    async def _follow(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> dns.message.Message | None:
        """If a resolver leaves a chain of CNAMEs unfinished, ask for the rest."""
        whole = found = await self._once(name, kind)
        for _ in range(_LONGEST_CHAIN):
            if found is None or not isinstance(whole, dns.message.QueryMessage):
                return None
            try:
                chain = whole.resolve_chaining()
            except dns.exception.DNSException:
                return None
            ended = any(item.rdtype == dns.rdatatype.SOA for item in found.authority)
            if chain.answer or not chain.cnames or found.rcode() != dns.rcode.NOERROR or ended:
                return whole
            found = await self._once(chain.canonical_name, kind)
            if found is not None:
                whole.answer.extend(found.answer)
                whole.authority.extend(found.authority)
                whole.set_rcode(found.rcode())
                # An appended set is not in the message's index; a message read again has it.
                whole = dns.message.from_wire(whole.to_wire())
        return None

    async def _once(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> dns.message.Message | None:
        # In lower case: a guest could send a bit by the case of each letter.
        asked = name.canonicalize()
        query = dns.message.make_query(asked, kind, use_edns=0, payload=_PAYLOAD)
        last: dns.message.Message | None = None
        for host, port in self.servers * _TRIES:
            begun = time.monotonic()
            try:
                found, _ = await dns.asyncquery.udp_with_fallback(
                    query, host, self._try_timeout, port, ignore_unexpected=True, ignore_errors=True
                )
            except (dns.exception.DNSException, OSError, EOFError):
                # A dead server may refuse at once; two tries without a pause would be one.
                await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - begun)))
                continue
            if found.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return found
            last = found
        return last
