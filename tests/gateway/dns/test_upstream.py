"""Upstreams that misbehave: each is a real socket that answers as a line of the table says."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from wgcell.gateway.dns.upstream import Upstream

NAME = dns.name.from_text("api.example.com")
Answer = Callable[[dns.message.Message, bool], list[bytes]]


def good(query: dns.message.Message, tcp: bool = False) -> dns.message.Message:
    answer = dns.message.make_response(query)
    name = query.question[0].name
    answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "203.0.113.7"))
    return answer


def coded(code: dns.rcode.Rcode) -> Answer:
    def answer(query: dns.message.Message, tcp: bool) -> list[bytes]:
        made = dns.message.make_response(query)
        made.set_rcode(code)
        return [made.to_wire()]

    return answer


def truncated(query: dns.message.Message, tcp: bool) -> list[bytes]:
    made = good(query)
    if not tcp:
        made.answer.clear()
        made.flags |= dns.flags.TC
    return [made.to_wire()]


def forged_first(query: dns.message.Message, tcp: bool) -> list[bytes]:
    """An answer with another id, junk, an answer to another question; then the right one."""
    forged = good(query)
    forged.id = query.id ^ 1
    other = good(dns.message.make_query("evil.example", "A", id=query.id))
    return [forged.to_wire(), b"junk", other.to_wire(), good(query).to_wire()]


def unfinished(query: dns.message.Message, tcp: bool) -> list[bytes]:
    """A resolver that gives one link of the chain at a time: a CNAME for the first name only."""
    if query.question[0].name != NAME:
        return [good(query).to_wire()]
    made = dns.message.make_response(query)
    made.answer.append(dns.rrset.from_text(NAME, 60, "IN", "CNAME", "edge.example."))
    return [made.to_wire()]


def endless(query: dns.message.Message, tcp: bool) -> list[bytes]:
    made = dns.message.make_response(query)
    name = query.question[0].name
    made.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", f"a{name}"))
    return [made.to_wire()]


def silent(query: dns.message.Message, tcp: bool) -> list[bytes]:
    return []


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, int]]:
    with ExitStack() as opened:
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = opened.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        udp.bind(tcp.getsockname())
        ended = threading.Event()
        for sock in (tcp, udp):
            sock.settimeout(0.05)

        def over_udp() -> None:
            while not ended.is_set():
                try:
                    raw, source = udp.recvfrom(4096)
                except TimeoutError:
                    continue
                for reply in answer(dns.message.from_wire(raw), False):
                    udp.sendto(reply, source)

        def over_tcp() -> None:
            while not ended.is_set():
                try:
                    client, _ = tcp.accept()
                except TimeoutError:
                    continue
                with client:
                    raw = client.recv(4096)
                    for reply in answer(dns.message.from_wire(raw[2:]), True):
                        client.sendall(len(reply).to_bytes(2, "big") + reply)

        threads = [threading.Thread(target=work, daemon=True) for work in (over_udp, over_tcp)]
        for thread in threads:
            thread.start()
        yield tcp.getsockname()[:2]
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("answers", "code", "records"),
    [
        ([lambda query, tcp: [good(query).to_wire()]], "NOERROR", 1),
        ([truncated], "NOERROR", 1),
        ([forged_first], "NOERROR", 1),
        ([unfinished], "NOERROR", 2),
        ([coded(dns.rcode.NXDOMAIN), unfinished], "NXDOMAIN", 0),
        ([coded(dns.rcode.SERVFAIL), unfinished], "NOERROR", 2),
        ([silent, unfinished], "NOERROR", 2),
        ([coded(dns.rcode.SERVFAIL)], "SERVFAIL", 0),
        ([endless], None, 0),
        ([silent], None, 0),
        ([], None, 0),
    ],
)
@pytest.mark.alone
def test_table(answers: list[Answer], code: str | None, records: int) -> None:
    with ExitStack() as opened:
        places = tuple(opened.enter_context(serving(answer)) for answer in answers)
        begun = time.monotonic()
        found = asyncio.run(Upstream(places, try_timeout=0.3).ask(NAME, dns.rdatatype.A))
    assert time.monotonic() - begun < 2
    assert (found and found.rcode().name) == code
    if found is not None:
        assert len(found.answer) == records


@pytest.mark.alone
def test_an_answer_takes_no_longer_than_its_lifetime() -> None:
    with serving(silent) as place:
        begun = time.monotonic()
        assert asyncio.run(Upstream((place,), lifetime=0.4).ask(NAME, dns.rdatatype.A)) is None
        assert 0.3 < time.monotonic() - begun < 1


@pytest.mark.parametrize("name", ["aPi.ExAmPlE.cOm", "API.EXAMPLE.COM", "x.eXample.com"])
def test_no_letters_case_of_a_guests_goes_upstream(name: str) -> None:
    asked: list[str] = []

    def kept(query: dns.message.Message, tcp: bool) -> list[bytes]:
        asked.append(query.question[0].name.to_text())
        made = dns.message.make_response(query)
        if len(asked) == 1:  # a chain that is to be asked on
            first = query.question[0].name
            made.answer.append(dns.rrset.from_text(first, 60, "IN", "CNAME", "eDgE.example."))
            return [made.to_wire()]
        return [good(query).to_wire()]

    with serving(kept) as place:
        found = asyncio.run(Upstream((place,)).ask(dns.name.from_text(name), dns.rdatatype.A))
    assert found is not None
    assert asked[0] == f"{name.lower()}."
    assert all(one == one.lower() for one in asked), asked
