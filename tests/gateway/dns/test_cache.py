"""Which names lead to an address, and for how long."""

from __future__ import annotations

import ipaddress

from wgcell.gateway.dns.cache import GRACE, LEAST_LIFETIME, MOST_ENTRIES, DnsCache, lifetime

FIRST, SECOND = ipaddress.ip_address("203.0.113.7"), ipaddress.ip_address("203.0.113.8")


def test_a_name_leads_for_its_answers_lifetime_and_never_less_than_a_minute() -> None:
    table = DnsCache()
    table.add("a.example.com", (FIRST,), 100, now=1000)
    table.add("b.example.com", (FIRST, SECOND), 5, now=1000)
    assert (lifetime(5), lifetime(100)) == (LEAST_LIFETIME, 100 + GRACE) == (60, 110)
    assert table.names(FIRST, 1000) == ("a.example.com", "b.example.com")
    assert table.names(FIRST, 1059) == ("a.example.com", "b.example.com")
    assert table.names(FIRST, 1060) == ("a.example.com",)
    assert table.names(SECOND, 1059) == ("b.example.com",)
    assert table.names(SECOND, 1060) == ()
    assert table.names(FIRST, 1110) == ()
    # What ended is known, and since when.
    assert table.expired(FIRST, 1059) == {}
    assert table.expired(FIRST, 1070) == {"b.example.com": 10}
    assert table.expired(FIRST, 1120) == {"a.example.com": 10, "b.example.com": 60}
    # A shorter answer does not take away what a longer one gave.
    table.add("a.example.com", (FIRST,), 1, now=1001)
    assert table.names(FIRST, 1109) == ("a.example.com",)


def test_the_name_that_was_asked_last_is_the_last() -> None:
    table, address = DnsCache(), ipaddress.ip_address("203.0.113.7")
    for name in ("a.example.com", "b.example.com", "a.example.com"):
        table.add(name, (address,), 60, now=0)
    assert table.names(address, 1) == ("b.example.com", "a.example.com")


def test_a_table_has_its_bound_and_keeps_what_lives_longest() -> None:
    table = DnsCache()
    for number in range(MOST_ENTRIES * 2):
        address = ipaddress.IPv4Address(number + (203 << 24))
        table.add(f"n{number}.example.com", (address,), number, now=0)
        assert len(table) <= MOST_ENTRIES
    assert table.names(address, 1)
    assert table.names(ipaddress.IPv4Address(203 << 24), 1) == ()
