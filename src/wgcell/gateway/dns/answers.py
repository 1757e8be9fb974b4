"""Queries and answers of DNS: what may go back to a peer. Without a socket.

The resolver inside the tunnel answers only addresses of allowed names. `filtered` decides what an
answer may hold: an allowed name that leads to a protected address (DNS rebinding) leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from wgcell.net.addresses import Address
from wgcell.net.addresses import address as address_of

__all__ = ["Answer", "Question", "blocked", "error", "filtered", "own", "parse_question"]

LONGEST_TTL = 86400
"""Seconds; a day, as resolvers have it."""
UDP_ANSWER = 1232
"""Bytes; a larger answer is truncated, and the peer asks again over TCP (DNS flag day 2020)."""
_TCP_ANSWER = 65535
_OWN_TTL = 60
"""Seconds for the gateway's own names: a service may be closed at any moment."""
_VERSIONS = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}


@dataclass(frozen=True, slots=True)
class Question:
    """One query that can be answered."""

    message: dns.message.QueryMessage
    name: str
    """Lower case, without the final dot."""
    kind: dns.rdatatype.RdataType

    @property
    def addresses(self) -> bool:
        """Whether it asks for addresses: nothing else is ever answered."""
        return self.kind in (dns.rdatatype.A, dns.rdatatype.AAAA)


@dataclass(frozen=True, slots=True)
class Answer:
    """The message for the peer, and the addresses that become reachable by it."""

    message: dns.message.Message
    addresses: tuple[Address, ...] = ()
    ttl: int = 0
    protected: tuple[Address, ...] = ()
    """The protected addresses that were taken out."""

    def to_wire(self, question: Question, *, tcp: bool = False) -> bytes:
        """Its bytes; over UDP no longer than the peer and `UDP_ANSWER` allow, or truncated."""
        room = _TCP_ANSWER
        if not tcp:
            asked = question.message.payload if question.message.edns >= 0 else 512
            room = max(512, min(asked, UDP_ANSWER))
        try:
            return self.message.to_wire(max_size=room)
        except dns.exception.TooBig:
            empty = dns.message.make_response(question.message, recursion_available=True)
            empty.flags |= dns.flags.TC
            return empty.to_wire()


def parse_question(raw: bytes) -> Question | None:
    """The one question of a query; None if ``raw`` is no query. Never raises."""
    try:
        message = dns.message.from_wire(raw)
        if message.flags & dns.flags.QR or len(message.question) != 1:
            return None
        question = message.question[0]
        # Only standard queries (RFC 1035, 4.1.1) of the Internet's class are answered.
        if question.rdclass != dns.rdataclass.IN or message.opcode() != 0:
            return None
        if not isinstance(message, dns.message.QueryMessage):
            return None
        name = question.name.to_text(omit_final_dot=True).lower()
        return Question(message, name, question.rdtype)
    except Exception:  # dnspython documents no closed list of what from_wire may raise
        return None


def error(question: Question, code: dns.rcode.Rcode) -> Answer:
    """An answer that is only a code."""
    message = dns.message.make_response(question.message, recursion_available=True)
    message.set_rcode(code)
    return Answer(message)


def blocked(question: Question, why: str, *, exists: bool) -> Answer:
    """The answer for a name that the policy does not allow.

    Every resolver fails at once on NXDOMAIN. glibc takes REFUSED for a fault of the server's and
    reports a temporary failure; musl waits for a better answer until its timeout. NXDOMAIN also
    says that no name below exists (RFC 8020), so for a name that ``exists`` the answer has no
    records instead. A query with EDNS gets the reason: Extended DNS Error 15, "Blocked" (RFC 8914),
    with ``why``.
    """
    code = dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN
    message = error(question, code).message
    if message.edns >= 0:
        message.use_edns(
            edns=message.edns,
            ednsflags=message.ednsflags,
            payload=message.payload,
            request_payload=message.request_payload,
            options=[dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, why)],
            pad=message.pad,
        )
    return Answer(message)


def own(question: Question, every: tuple[Address, ...]) -> Answer:
    """The answer for a name of the gateway's own, whose addresses are ``every``."""
    message = error(question, dns.rcode.NOERROR).message
    version = _VERSIONS.get(question.kind)
    addresses = tuple(one for one in every if one.version == version)
    if addresses:
        asked, texts = question.message.question[0].name, [str(one) for one in addresses]
        records = dns.rrset.from_text(asked, _OWN_TTL, "IN", question.kind.name, *texts)
        message.answer.append(records)
    return Answer(message, addresses, _OWN_TTL)


def filtered(
    question: Question,
    found: dns.message.Message | None,
    protected: Callable[[Address], str],
    has_route: Callable[[Address], bool] = lambda _: True,
) -> Answer:
    """The answer for the peer that the upstream's answer ``found`` becomes.

    Addresses for which ``protected`` returns a reason are taken out. So are addresses to which this
    machine ``has_route`` none, often those of a whole family: a client that gets both families may
    try the wrong one first. If no address is left, the name has none. Without an answer, or with a
    malformed one, the result is SERVFAIL.
    """
    if found is None or not isinstance(found, dns.message.QueryMessage):
        return error(question, dns.rcode.SERVFAIL)
    code = found.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return error(question, dns.rcode.SERVFAIL)
    try:
        # Follows CNAMEs within the answer, and bounds them.
        chain = found.resolve_chaining()
    except (dns.exception.DNSException, dns.message.NotQueryResponse):
        return error(question, dns.rcode.SERVFAIL)
    message = dns.message.make_response(question.message, recursion_available=True)
    message.set_rcode(code)
    asked = question.message.question[0].name
    message.answer.extend(_spelled(cname, asked) for cname in chain.cnames)
    # A negative answer's lifetime is in its SOA (RFC 2308).
    message.authority.extend(s for s in found.authority if s.rdtype == dns.rdatatype.SOA)
    if chain.answer is None:
        return Answer(message)
    if chain.answer.rdtype != question.kind or not question.addresses:
        return error(question, dns.rcode.SERVFAIL)
    every = [address_of(item.address) for item in chain.answer]
    refused = tuple(address for address in every if protected(address))
    addresses = tuple(address for address in every if address not in refused and has_route(address))
    if not addresses and not refused:
        family = "IPv4" if every[0].version == 4 else "IPv6"
        why = f"this machine has no way to its addresses of {family}"
        return blocked(question, why, exists=True)
    if not addresses:
        why = "its addresses are on this side of the tunnel"
        return Answer(blocked(question, why, exists=True).message, protected=refused)
    ttl = min(chain.minimum_ttl, LONGEST_TTL)
    texts = [str(address) for address in addresses]
    found_at = dns.rrset.from_text(chain.canonical_name, ttl, "IN", question.kind.name, *texts)
    message.answer.append(_spelled(found_at, asked))
    return Answer(message, addresses, ttl, refused)


def _spelled(records: dns.rrset.RRset, asked: dns.name.Name) -> dns.rrset.RRset:
    """``records`` in the spelling of the query, if they are of the name that was ``asked``.

    The upstream was asked in lower case. A client that mixes the case of a query to recognise its
    answer (draft-vixie-dnsext-dns0x20) gets its own spelling back.
    """
    if records.name != asked:
        return records
    return dns.rrset.from_rdata_list(asked, records.ttl, list(records))
