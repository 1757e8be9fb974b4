"""Text to addresses, in one place: what is refused, and that nobody else does it."""

from __future__ import annotations

import ast
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.shown import is_text
from tests.support.vpnfiles import PRIVATE, vpn_file

from wgcell.cell.endpoint import parse_networks
from wgcell.cell.wgquick import parse_vpn_config
from wgcell.errors import WgcellError
from wgcell.gateway.model.parsing import parse_config, split_endpoint
from wgcell.gateway.model.published import parse_published
from wgcell.gateway.model.rules import parse_rule
from wgcell.gateway.model.services import parse_service
from wgcell.net import addresses

SOURCE = Path(addresses.__file__).parents[1]
PARSERS = {
    *("ip_address", "ip_network", "ip_interface", "IPv4Address", "IPv6Address"),
    *("IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface"),
}
ELSEWHERE = {
    "net": "the one place",
    "prove/runners/cell.py": "constants of the battery's own tunnel",
    "cell/own_gateway.py": "constants",
    "cell/roaming.py": "the endpoint that vetting has returned",
}


def calls(tree: ast.AST) -> set[str]:
    """Names of `ipaddress`'s parsers that are called, or handed on to be called."""
    annotations = {
        id(part)
        for node in ast.walk(tree)
        for field in ("annotation", "returns")
        if getattr(node, field, None) is not None
        for part in ast.walk(getattr(node, field))
    }
    compared = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        for part in ast.walk(node.args[1])
    }
    return {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in annotations | compared
        for name in [node.attr if isinstance(node, ast.Attribute) else node.id]
        if name in PARSERS
    }


def test_nobody_else_parses_an_address() -> None:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        if names := calls(ast.parse(path.read_text())):
            found[place.parts[0] if place.parts[0] == "net" else str(place)] = names
    assert set(found) == set(ELSEWHERE), found


def test_the_search_for_other_parsers_finds_them() -> None:
    for text in ("ipaddress.ip_address(x)", "map(ip_network, x)", "f = ipaddress.IPv6Address"):
        assert calls(ast.parse(text))
    assert not calls(ast.parse("def f(x: ipaddress.IPv4Address) -> IPv6Network: ..."))
    assert not calls(ast.parse("isinstance(x, ipaddress.IPv4Address)"))


SCOPED = [
    *("fe80::1%eth0", "fe80::1%\x1b[2K", "::1%", "2001:db8::1%1", "fe80::1%; drop", "1.2.3.4%x"),
    "2001:db8::1%\n",
]


def resolver_of(text: str) -> object:
    """wg-quick hands on what is no address, as a search domain; we leave it out, and say so."""
    read = parse_vpn_config(text)
    if not read.dns:
        raise ValueError("; ".join(read.remarks))
    return read.dns


def vpn(
    address: str = "10.9.0.2, 2001:db8:1::2",
    allowed: str = "0.0.0.0/0, ::/0",
    dns: str = "",
    host: str = "",
) -> str:
    endpoint, names = f"{host or '203.0.113.9'}:51820", f"DNS = {dns or '10.9.0.1'}"
    return vpn_file(address=address, allowed=allowed, endpoint=endpoint, interface=names)


def gateway(**changed: object) -> object:
    peer = {"public_key": PRIVATE, "address": "10.99.0.2", **changed.pop("peer", {})}  # type: ignore[dict-item]
    return {"private_key": PRIVATE, "peers": {"alice": peer}, **changed}


READERS = {
    # Every place that takes an address from a person or a stranger.
    "address": addresses.address,
    "network": addresses.network,
    "interface": addresses.interface,
    "a host's port": lambda text: addresses.host_and_port(f"[{text}]:80"),
    "rule": lambda text: parse_rule(f"[{text}]:80"),
    "service inside": lambda text: parse_service(f"[{text}]:80", "192.0.2.1:80"),
    "service outside": lambda text: parse_service("10.99.0.5:80", f"[{text}]:80"),
    "allowed endpoint": lambda text: parse_networks([text], "--allow-endpoint"),
    "a peers' endpoint": lambda text: split_endpoint(f"[{text}]:80"),
    "published port": lambda text: parse_published(f"[{text}]:80:80"),
    "gateway listen": lambda text: parse_config(gateway(listen=f"[{text}]:80")),
    "gateway address": lambda text: parse_config(gateway(address=text)),
    "gateway resolver": lambda text: parse_config(gateway(resolver=[text])),
    "gateway protected": lambda text: parse_config(gateway(protected=[text])),
    "peer address": lambda text: parse_config(gateway(peer={"address": text})),
    "Address": lambda text: parse_vpn_config(vpn(address=text)),
    "AllowedIPs": lambda text: parse_vpn_config(vpn(allowed=text)),
    "DNS": lambda text: resolver_of(vpn(dns=text)),
    "Endpoint": lambda text: parse_vpn_config(vpn(host=f"[{text}]")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", SCOPED)
def test_a_scope_is_refused_wherever_an_address_is_read(reader: str, text: str) -> None:
    with pytest.raises((ValueError, WgcellError)) as caught:
        READERS[reader](text)
    assert is_text(str(caught.value), but="\n")


@pytest.mark.parametrize("reader", READERS)
def test_and_plain_addresses_are_taken(reader: str) -> None:
    READERS[reader]("2001:db8::7")


@given(st.text(max_size=120) | st.from_regex(r"[0-9a-f:.%/]{1,50}"))
def test_what_is_taken_is_what_the_standard_library_takes_and_has_no_scope(text: str) -> None:
    for ours, theirs in (
        (addresses.address, ipaddress.ip_address),
        (addresses.network, ipaddress.ip_network),
        (addresses.interface, ipaddress.ip_interface),
    ):
        try:
            found = ours(text)
        except ValueError as error:
            assert is_text(str(error)) and len(str(error)) < 400
            continue
        assert found == theirs(text) and "%" not in str(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("example.com:443", ("example.com", 443)),
        ("192.0.2.1:0", ("192.0.2.1", 0)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("2001:db8::1:80", ("2001:db8::1", 80)),
        *((text, None) for text in ("", ":80", "x", "x:", "x:-1", "x:65536", "x:8 0", "x:\u0663")),
    ],
)
def test_a_host_and_its_port(text: str, found: tuple[str, int] | None) -> None:
    if found is None:
        with pytest.raises(ValueError, match="is not HOST:PORT"):
            addresses.host_and_port(text)
    else:
        assert addresses.host_and_port(text) == found


def test_an_address_from_a_packet_or_a_socket() -> None:
    assert str(addresses.unpacked(bytes([192, 0, 2, 1]))) == "192.0.2.1"
    assert str(addresses.of_socket("fe80::1%eth0")) == "fe80::1"
    assert str(addresses.only(addresses.address("2001:db8::1"))) == "2001:db8::1/128"


def test_a_network_with_bits_behind_its_length_names_the_one_that_is_meant() -> None:
    with pytest.raises(ValueError, match=r"has host bits set; the network is 10\.0\.0\.0/8"):
        addresses.network("10.0.0.1/8")
    assert str(addresses.network("10.0.0.1/8", strict=False)) == "10.0.0.0/8"
