"""The table of special addresses, against the registries, and that all who vet use it."""

from __future__ import annotations

import ipaddress
import random
import re

import dns.message
import dns.rrset
import pytest

from wgcell.cell.endpoint import vet
from wgcell.errors import EndpointError
from wgcell.gateway.dns import answers
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.rules import Action, parse_line
from wgcell.net.addresses import Address
from wgcell.net.special import SPECIAL, plain_forms, special

IANA_IPV4 = {
    "0.0.0.0/8": "RFC 791",
    "0.0.0.0/32": "RFC 1122",
    "10.0.0.0/8": "RFC 1918",
    "100.64.0.0/10": "RFC 6598",
    "127.0.0.0/8": "RFC 1122",
    "169.254.0.0/16": "RFC 3927",
    "172.16.0.0/12": "RFC 1918",
    "192.0.0.0/24": "RFC 6890",
    "192.0.0.0/29": "RFC 7335",
    "192.0.0.8/32": "RFC 7600",
    "192.0.0.9/32": "RFC 7723",
    "192.0.0.10/32": "RFC 8155",
    "192.0.0.170/32": "RFC 8880",
    "192.0.0.171/32": "RFC 8880",
    "192.0.2.0/24": "RFC 5737",
    "192.31.196.0/24": "RFC 7535",
    "192.52.193.0/24": "RFC 7450",
    "192.88.99.0/24": "RFC 7526",
    "192.88.99.2/32": "RFC 6751",
    "192.168.0.0/16": "RFC 1918",
    "192.175.48.0/24": "RFC 7534",
    "198.18.0.0/15": "RFC 2544",
    "198.51.100.0/24": "RFC 5737",
    "203.0.113.0/24": "RFC 5737",
    "240.0.0.0/4": "RFC 1112",
    "255.255.255.255/32": "RFC 919",
}
IANA_IPV6 = {
    "::1/128": "RFC 4291",
    "::/128": "RFC 4291",
    "::ffff:0:0/96": "RFC 4291",
    "64:ff9b::/96": "RFC 6052",
    "64:ff9b:1::/48": "RFC 8215",
    "100::/64": "RFC 6666",
    "100:0:0:1::/64": "RFC 9780",
    "2001::/23": "RFC 2928",
    "2001::/32": "RFC 4380",
    "2001:1::1/128": "RFC 7723",
    "2001:1::2/128": "RFC 8155",
    "2001:1::3/128": "RFC 9665",
    "2001:2::/48": "RFC 5180",
    "2001:3::/32": "RFC 7450",
    "2001:4:112::/48": "RFC 7535",
    "2001:10::/28": "RFC 4843",
    "2001:20::/28": "RFC 7343",
    "2001:30::/28": "RFC 9374",
    "2001:db8::/32": "RFC 3849",
    "2002::/16": "RFC 3056",
    "2620:4f:8000::/48": "RFC 7534",
    "3fff::/20": "RFC 9637",
    "5f00::/16": "RFC 9602",
    "fc00::/7": "RFC 4193",
    "fe80::/10": "RFC 4291",
}
"""Both registries of special-purpose addresses, each row with its document, as of October 2026;
written down apart from the table."""
NO_UNICAST = ["224.0.0.0/4", "ff00::/8", "fec0::/10", "::/96", "4000::/3", "8000::/1", "200::/7"]
METADATA = [
    "169.254.169.254",
    "169.254.169.252",
    "169.254.169.253",
    "169.254.169.123",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.42.42",
    "169.254.0.23",
    "100.88.222.5",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::253",
    "fd00:ec2::123",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "fd00:c1::a9fe:a9fe",
    "fe80::a9fe:a9fe",
]
DOCUMENTATION = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.9.9.9",
    "45.0.0.7",
    "100.63.255.255",
    "100.128.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "172.15.9.9",
    "172.32.0.1",
    "191.255.255.255",
    "192.0.1.1",
    "192.167.1.1",
    "198.17.9.9",
    "198.20.0.1",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2a00:1450::1",
    "2003::1",
    "2620:4f:8001::1",
    "3ffe::1",
]


def sample(text: str) -> list[Address]:
    """The ends of a range, and some within."""
    network = ipaddress.ip_network(text)
    most, chance = network.num_addresses - 1, random.Random(text)
    offsets = {0, most, *(chance.randint(0, most) for _ in range(20))}
    return [network.network_address + offset for offset in offsets]


def endpoint_takes(address: Address) -> bool:
    try:
        vet(address, 51820)
    except EndpointError:
        return False
    return True


EVERYTHING = Policy(rules=(parse_line("allow 0.0.0.0/0:*"), parse_line("allow [::/0]:*")))
BY_NAME = Policy(rules=(parse_line("allow host.example.com:*"), parse_line("allow *:*")))


def rule_takes(address: Address) -> bool:
    found = {policy.evaluate(address, 443, "tcp").action for policy in (EVERYTHING, BY_NAME)}
    assert len(found) == 1
    return found == {Action.ALLOW}


def name_takes(address: Address) -> bool:
    """Whether a name that leads there is answered, and a flow to it let through."""
    kind = "A" if address.version == 4 else "AAAA"
    asked = answers.parse_question(dns.message.make_query("host.example.com", kind).to_wire())
    assert asked is not None
    found = dns.message.make_response(asked.message)
    found.answer.append(dns.rrset.from_text("host.example.com.", 60, "IN", kind, str(address)))
    found = dns.message.from_wire(found.to_wire())
    answer = answers.filtered(asked, found, BY_NAME.protection)
    flow = BY_NAME.evaluate(address, 443, "tcp", ("host.example.com",))
    assert bool(answer.addresses) == (flow.action is Action.ALLOW)
    return bool(answer.addresses)


def test_the_table_has_no_row_that_another_hides() -> None:
    for number, row in enumerate(SPECIAL):
        for before in SPECIAL[:number]:
            if before.network.version == row.network.version:
                assert not row.network.subnet_of(before.network), (before, row)  # type: ignore[arg-type]
        assert row.kind and row.reason


@pytest.mark.parametrize("text", [*IANA_IPV4, *IANA_IPV6, *NO_UNICAST])
def test_every_row_of_the_registries_is_refused_by_all(text: str) -> None:
    nobodys = text in DOCUMENTATION
    for address in sample(text):
        row = special(address)
        assert row is not None, address
        if plain_forms(address) == (address,):
            assert not endpoint_takes(address), address
        if not nobodys:
            assert not rule_takes(address) and not name_takes(address), address


def test_every_row_of_the_registries_is_one_of_the_tables_by_its_document() -> None:
    """And the table has none of IANA's name that a registry does not have."""
    assert (len(IANA_IPV4), len(IANA_IPV6)) == (26, 25)
    # Networks, not texts: Python writes ::ffff:0:0/96 in another way since 3.13.
    table = {row.network: row for row in SPECIAL}
    for text, document in (IANA_IPV4 | IANA_IPV6).items():
        row = table[ipaddress.ip_network(text)]
        assert re.search(rf"\b{document}\b", row.source), text
        assert row.nobodys is (text in DOCUMENTATION), text
    ours = {network for network, row in table.items() if row.kind != "cloud metadata"}
    beside = {"224.0.0.0/4", "ff00::/8", "fec0::/10", "::/96", "::/3", "4000::/2", "8000::/1"}
    assert ours == set(map(ipaddress.ip_network, {*IANA_IPV4, *IANA_IPV6, *beside}))


@pytest.mark.parametrize("text", METADATA)
def test_the_clouds_metadata_is_refused_by_all(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not (endpoint_takes(address) or rule_takes(address) or name_takes(address))
    row = special(address)
    assert row is not None and row.kind == "cloud metadata"


@pytest.mark.parametrize("text", METADATA)
def test_in_whatever_form_of_ipv6_they_come(text: str) -> None:
    inner = int(ipaddress.ip_address(text))
    if ":" in text:
        return
    for form in (0xFFFF << 32 | inner, 0x64FF9B << 96 | inner, 0x2002 << 112 | inner << 80, inner):
        address = ipaddress.IPv6Address(form)
        assert not (endpoint_takes(address) or rule_takes(address) or name_takes(address)), address


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_out_on_the_internet_is_taken_by_all(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert special(address) is None
    assert endpoint_takes(address) and rule_takes(address) and name_takes(address)


@pytest.mark.parametrize("text", ["64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"])
def test_an_endpoint_that_carries_a_public_address_is_taken(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert endpoint_takes(address)
    assert str(plain_forms(address)[1]) == "8.8.8.8"
    assert not rule_takes(address) and not name_takes(address)


@pytest.mark.parametrize("version", [4, 6])
def test_no_address_that_python_calls_private_is_taken(version: int) -> None:
    """Python's own table, as old as it is, is another's reading of the registries."""
    chance = random.Random(7)
    for _ in range(5000):
        if version == 4:
            address: Address = ipaddress.IPv4Address(chance.getrandbits(32))
        else:
            address = ipaddress.IPv6Address(chance.getrandbits(128) >> chance.choice((0, 2, 64)))
        if not address.is_global or address.is_multicast or address.is_reserved:
            assert special(address) is not None, address
