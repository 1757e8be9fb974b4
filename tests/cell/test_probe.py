"""The address that the guest's echo goes to lies in the tunnel, whatever AllowedIPs is."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.cell import probe


@pytest.mark.parametrize(
    ("own", "allowed", "dns", "chosen"),
    [
        ("10.0.0.2/32", "0.0.0.0/0", "", "10.0.0.1"),
        ("10.0.0.1/32", "0.0.0.0/0", "", "10.0.0.2"),
        ("10.0.0.2/24", "0.0.0.0/0", "192.0.2.53", "192.0.2.53"),
        ("10.0.0.2/24", "10.0.0.0/24", "192.0.2.53", "10.0.0.1"),
        ("10.0.0.2/32", "192.0.2.0/24", "", "192.0.2.1"),
        ("10.0.0.2/32", "192.0.2.7/32", "", "192.0.2.7"),
        ("10.0.0.2/24", "10.0.0.0/31", "", "10.0.0.1"),
        ("10.0.0.2/32", "10.0.0.2/32", "", None),
        ("10.0.0.2/24", "10.0.0.255/32,10.0.0.0/32", "", None),
        ("10.0.0.2/32", "2001:db8::/32", "2001:db8::53", None),
        ("fd00::2/128", "2001:db8::/32", "192.0.2.53", "2001:db8::1"),
        ("fd00::2/128", "0.0.0.0/0", "", None),
        ("fd00::2/64,10.0.0.2/32", "10.0.0.0/8", "", "10.0.0.1"),
        ("fd00::2/64", "fe80::/10,::ffff:0:0/96,ff00::/8,::1/128", "", None),
        ("10.0.0.2/32", "127.0.0.0/8,224.0.0.0/4,240.0.0.0/4,0.0.0.0/8", "", None),
    ],
)
def test_the_address(own: str, allowed: str, dns: str, chosen: str | None) -> None:
    found = probe.choose(
        [ipaddress.ip_interface(one) for one in own.split(",")],
        [ipaddress.ip_network(one) for one in allowed.split(",")],
        [ipaddress.ip_address(one) for one in dns.split(",") if one],
    )
    assert str(found) == str(chosen)


_FOUR = st.builds(
    ipaddress.IPv4Network,
    st.tuples(st.integers(1 << 24, (224 << 24) - 1), st.integers(1, 32)),
    st.just(False),
)


@given(
    st.lists(_FOUR, min_size=1, max_size=4),
    st.integers(1 << 24, (127 << 24) - 1),
    st.integers(1, 32),
)
def test_it_is_within_and_not_our_own(
    allowed: list[ipaddress.IPv4Network], own: int, length: int
) -> None:
    mine = ipaddress.IPv4Interface((own, length))
    found = probe.choose([mine], allowed)
    if found is not None:
        assert any(found in network for network in allowed)
        assert found != mine.ip
    elif not any(network.overlaps(ipaddress.ip_network("127.0.0.0/8")) for network in allowed):
        assert all(network.num_addresses <= 4 for network in allowed)
