"""Which addresses a stranger may name as an endpoint: a table, in every IPv6 dress."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from wgcell.cell.endpoint import (
    connect,
    host_networks,
    networks_of,
    parse_networks,
    path_mtu,
    resolve,
    shown,
    tunnel_mtu,
    vet,
    vetted,
)
from wgcell.errors import EndpointError

# Plain addresses of the Internet that nobody is sent anything at here: vet is pure.
PLAIN_4, PLAIN_6 = "9.9.9.9", "2620:fe::fe"
HOST = tuple(ipaddress.ip_network(text) for text in ("45.0.0.7/32", "45.0.0.0/24"))


@pytest.mark.parametrize(
    "address", [PLAIN_4, PLAIN_6, f"::ffff:{PLAIN_4}", "2002:909:909::1", "64:ff9b::909:909"]
)
def test_out_on_the_internet(address: str) -> None:
    vet(ipaddress.ip_address(address), 51820, (), HOST)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.1.2.3", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("127.0.0.1", "loopback"),
        ("127.255.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("100.64.0.1", "CGNAT"),
        ("100.127.255.255", "CGNAT"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "reserved"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("192.0.2.1", "documentation"),
        ("198.18.0.1", "benchmarking"),
        ("45.0.0.7", "this host's own"),
        ("45.0.0.8", "this host's LAN"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "documentation"),
        ("2001:0:1::1", "Teredo"),
        ("100::1", "discard"),
        ("64:ff9b:1::1", "private"),
        ("::10.0.0.1", "reserved"),
        ("::ffff:10.0.0.1", "carries 10.0.0.1) is private"),
        ("::ffff:127.0.0.1", "carries 127.0.0.1) is loopback"),
        ("::ffff:45.0.0.7", "this host's own"),
        ("2002:c0a8:101::1", "carries 192.168.1.1) is private"),
        ("64:ff9b::7f00:1", "carries 127.0.0.1) is loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
    ],
)
def test_refused_with_its_reason_and_a_hint(address: str, reason: str) -> None:
    with pytest.raises(EndpointError) as caught:
        vet(ipaddress.ip_address(address), 51820, (), HOST)
    assert reason in caught.value.message
    assert "--allow-endpoint" in caught.value.hint


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports(port: int) -> None:
    everything = parse_networks(["0.0.0.0/0"], "test")
    with pytest.raises(EndpointError, match="port"):
        vet(ipaddress.ip_address(PLAIN_4), port, everything)


def test_the_providers_list_widens_by_exactly_what_it_names() -> None:
    allow = parse_networks(["192.168.1.0/24"], "test")
    vet(ipaddress.ip_address("192.168.1.9"), 1, allow)
    for address in ("192.168.2.9", "::ffff:192.168.1.9"):
        with pytest.raises(EndpointError):
            vet(ipaddress.ip_address(address), 1, allow)


@pytest.mark.parametrize("text", ["lan", "10.0.0.1/8", ""])
def test_a_bad_list_is_named(text: str) -> None:
    with pytest.raises(EndpointError, match="--allow-endpoint: "):
        parse_networks([text], "--allow-endpoint")


def test_networks_of_what_ip_prints() -> None:
    links = [
        {"addr_info": [{"local": "198.51.100.7", "prefixlen": 24}, {}]},
        {"addr_info": [{"local": "10.8.0.2", "address": "10.8.0.1", "prefixlen": 32}]},
        {"ifname": "bare"},
    ]
    assert [str(network) for network in networks_of(links)] == [
        "198.51.100.7/32",
        "10.8.0.2/32",
        "198.51.100.0/24",
        "10.8.0.1/32",
    ]


@pytest.mark.process
def test_this_host_is_in_its_own_list() -> None:
    assert any(ipaddress.ip_address("127.0.0.1") in network for network in host_networks())


def test_addresses_resolve_to_themselves_and_nonsense_does_not() -> None:
    assert resolve("192.0.2.1", 1) == (ipaddress.ip_address("192.0.2.1"),)
    for name in ("no such name", "a" * 70 + ".invalid", "\udc80"):
        with pytest.raises(EndpointError, match="does not resolve"):
            resolve(name, 1)


def test_connect_is_udp_connected_and_does_not_block() -> None:
    with connect(ipaddress.ip_address("127.0.0.1"), 9) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)
        assert sock.type & socket.SOCK_DGRAM
        assert not sock.getblocking()


@pytest.mark.parametrize(
    ("path", "version", "most", "carries_ipv6", "tunnel"),
    [
        (1500, 4, 1420, False, 1420),
        (1500, 6, 1420, False, 1420),
        (1400, 4, 1420, False, 1340),
        (1400, 6, 1420, True, 1320),
        (1280, 4, 1420, False, 1220),
        (1280, 4, 1420, True, 1280),  # Linux takes IPv6 off an interface with less
        (576, 4, 1420, False, 576),
        (65536, 4, 1300, False, 1300),
    ],
)
def test_the_tunnels_mtu_is_what_the_path_leaves_of_it(
    path: int, version: int, most: int, carries_ipv6: bool, tunnel: int
) -> None:
    assert tunnel_mtu(path, version, most, carries_ipv6=carries_ipv6) == tunnel


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_paths_mtu_is_the_kernels_word(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        try:
            udp.connect((address, 9))
        except OSError:
            return  # a machine without IPv6
        assert path_mtu(udp) >= 16384


def test_the_resolvers_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 6724's: a machine with IPv6 alone has the AAAA first."""
    found = ["2001:db8::1", "203.0.113.7", "2001:db8::1", "203.0.113.8"]
    entries = [(0, 0, 0, "", (address, 51820)) for address in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: entries)
    assert [str(address) for address in resolve("vpn.example.com", 51820)] == [
        "2001:db8::1",
        "203.0.113.7",
        "203.0.113.8",
    ]


def test_of_several_addresses_those_that_may_be_an_endpoint_are_used() -> None:
    private, public = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("8.8.8.8")
    assert vetted([private, public], 51820) == (public,)
    with pytest.raises(EndpointError, match=r"10\.0\.0\.1"):
        vetted([private], 51820)
    with pytest.raises(EndpointError):
        vetted([], 51820)


def test_an_endpoint_is_shown_as_it_is_typed() -> None:
    assert shown(ipaddress.ip_address("8.8.8.8"), 5) == "8.8.8.8:5"
    assert shown(ipaddress.ip_address("2001:db8::1"), 5) == "[2001:db8::1]:5"
