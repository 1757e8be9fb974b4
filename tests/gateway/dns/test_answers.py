"""What answers mean, and for how long; without a socket."""

from __future__ import annotations

import ipaddress

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.gateway.dns.answers import blocked, filtered, parse_question

FIRST, SECOND = ipaddress.ip_address("203.0.113.7"), ipaddress.ip_address("203.0.113.8")
QUERY = dns.message.make_query("api.example.com", "A", use_edns=True)


def upstream(*records: str, rcode: int = dns.rcode.NOERROR) -> dns.message.Message:
    found = dns.message.make_response(QUERY)
    found.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        name, ttl, kind, *values = record.split()
        found.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, *values))
    return dns.message.from_wire(found.to_wire())


def private(address: object) -> str:
    return (
        "private"
        if ipaddress.ip_address(str(address)).is_private and "192.168" in str(address)
        else ""
    )


@pytest.mark.parametrize(
    ("found", "code", "addresses", "ttl"),
    [
        (upstream("api.example.com. 60 A 203.0.113.7"), "NOERROR", (FIRST,), 60),
        (upstream("api.example.com. 60 A 203.0.113.7 203.0.113.8"), "NOERROR", (FIRST, SECOND), 60),
        (
            upstream("api.example.com. 5 CNAME a.example.", "a.example. 60 A 203.0.113.7"),
            *("NOERROR", (FIRST,), 5),
        ),
        # An address of another name than the chain's leads nowhere.
        (upstream("evil.example. 60 A 203.0.113.7"), "NOERROR", (), 0),
        (upstream("api.example.com. 60 CNAME api.example.com."), "SERVFAIL", (), 0),
        (upstream("api.example.com. 60 A 192.168.1.1"), "NOERROR", (), 0),
        (upstream("api.example.com. 60 A 192.168.1.1 203.0.113.7"), "NOERROR", (FIRST,), 60),
        (upstream("api.example.com. 9999999 A 203.0.113.7"), "NOERROR", (FIRST,), 86400),
        (upstream(rcode=dns.rcode.NXDOMAIN), "NXDOMAIN", (), 0),
        (upstream(rcode=dns.rcode.SERVFAIL), "SERVFAIL", (), 0),
        (upstream(rcode=dns.rcode.REFUSED), "SERVFAIL", (), 0),
        (upstream(), "NOERROR", (), 0),
        (None, "SERVFAIL", (), 0),
    ],
)
def test_table(found: dns.message.Message | None, code: str, addresses: object, ttl: int) -> None:
    question = parse_question(QUERY.to_wire())
    assert question is not None
    answer = filtered(question, found, private)
    found_addresses = tuple(sorted(answer.addresses))
    assert (answer.message.rcode().name, found_addresses, answer.ttl) == (code, addresses, ttl)
    assert answer.message.id == QUERY.id
    # What is told is what opens.
    told = {str(item) for rrset in answer.message.answer for item in rrset if rrset.rdtype == 1}
    assert told == {str(address) for address in answer.addresses}
    assert dns.message.from_wire(answer.to_wire(question)).edns == 0


@pytest.mark.parametrize(
    ("kind", "has", "no"),
    [("A", "203.0.113.7", "203.0.113.8"), ("AAAA", "2001:db8::7", "2001:db8::8")],
)
def test_an_address_without_a_way_is_not_told(kind: str, has: str, no: str) -> None:
    """Of either family: a machine may have no IPv4, and whoever is told both may try that first."""
    question = parse_question(dns.message.make_query("api.example.com", kind, use_edns=0).to_wire())
    assert question is not None

    def told(*addresses: str) -> tuple[set[str], str]:
        made = dns.message.make_response(question.message)
        records = dns.rrset.from_text("api.example.com.", 60, "IN", kind, *addresses)
        made.answer.append(records)
        found = dns.message.from_wire(made.to_wire())
        answer = filtered(question, found, private, lambda address: str(address) != no)
        assert answer.message.rcode() == dns.rcode.NOERROR
        return set(map(str, answer.addresses)), " ".join(map(str, answer.message.options))

    assert told(has, no) == ({has}, "")
    addresses, why = told(no)
    assert not addresses
    assert f"no way to its addresses of {'IPv4' if kind == 'A' else 'IPv6'}" in why


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_a_blocked_name_is_no_fault_of_the_server_and_the_reason_is_told(
    edns: bool, exists: bool
) -> None:
    asked = dns.message.make_query("attacker.example", "A", use_edns=edns)
    question = parse_question(asked.to_wire())
    assert question is not None
    raw = blocked(question, "no rule allows this name", exists=exists).to_wire(question)
    answer = dns.message.from_wire(raw)
    assert answer.rcode() == (dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN)
    # Without RA glibc takes an empty answer for a lame server's, and asks again.
    assert answer.flags & dns.flags.RA and answer.id == asked.id
    told = [(option.code, option.text) for option in answer.options]
    assert told == ([(dns.edns.EDECode.BLOCKED, "no rule allows this name")] if edns else [])
    # No SOA: nobody may remember it (RFC 2308, 5), and a changed rule holds at once.
    assert not answer.authority


RAW = QUERY.to_wire()


@settings(max_examples=examples(300), deadline=None)
@given(
    st.binary(max_size=80)
    | st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), max_size=6).map(
        lambda changes: bytes(dict(changes).get(i, byte) for i, byte in enumerate(RAW))
    )
)
def test_no_query_raises(raw: bytes) -> None:
    question = parse_question(raw)
    if question is not None:
        answer = filtered(question, upstream("api.example.com. 60 A 203.0.113.7"), private)
        assert len(answer.to_wire(question)) <= 1232


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=8),
    st.sampled_from(
        [
            upstream("api.example.com. 60 A 203.0.113.7").to_wire(),
            upstream(
                "api.example.com. 5 CNAME a.example.", "a.example. 60 A 203.0.113.7"
            ).to_wire(),
        ]
    ),
)
def test_no_upstream_raises(changes: list[tuple[int, int]], raw: bytes) -> None:
    question = parse_question(RAW)
    assert question is not None
    try:
        found = dns.message.from_wire(
            bytes(dict(changes).get(i, byte) for i, byte in enumerate(raw))
        )
    except Exception:
        return  # the resolver takes it as no answer
    answer = filtered(question, found, private)
    assert not any(map(private, answer.addresses))
    assert answer.to_wire(question)


MIXED = "aPi.ExAmPlE.cOm"


@pytest.mark.parametrize(
    "records",
    [
        ("api.example.com. 60 A 203.0.113.7",),
        ("api.example.com. 60 CNAME edge.example.", "edge.example. 60 A 203.0.113.7"),
        ("api.example.com. 60 A 192.168.1.1",),
        (),
    ],
)
def test_the_asker_gets_its_own_spelling_back(records: tuple[str, ...]) -> None:
    question = parse_question(dns.message.make_query(MIXED, "A").to_wire())
    assert question is not None and question.name == "api.example.com"
    made = filtered(question, upstream(*records), private).message
    assert made.question[0].name.to_text() == f"{MIXED}."
    for rrset in made.answer[:1]:
        assert rrset.name.to_text() == f"{MIXED}."
    assert all("api.example.com" not in rrset.name.to_text() for rrset in made.answer)
