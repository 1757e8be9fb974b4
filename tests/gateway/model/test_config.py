"""A gateway's file: what it becomes, and errors that say where."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.gateways import SERVER, config_of

from wgcell.errors import PolicyError
from wgcell.gateway.configfile import add_peer, load, load_config, new_gateway, remove_peer
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.parsing import configured, parse_config
from wgcell.gateway.words import ORDERS

ALICE, BOB = public_key(generate_private_key()), public_key(generate_private_key())
GOOD = f"""listen = "203.0.113.1:51820"
private_key = "{SERVER}"
rules = [
  "deny ads.example.com:*",
  "allow *.example.com:443",  # the usual
]
[services]
"10.99.0.5:80" = "127.0.0.1:8000"
[limits]
flows = 100
[peers.alice]
public_key = "{ALICE}"
address = "10.99.0.2"
rules = ["allow 203.0.113.7:22"]
[peers.alice.limits]
flows_per_second = 8
[peers.bob]
public_key = "{BOB}"
address = "10.99.0.3"
"""


def test_a_peers_rules_come_before_the_gateways_and_its_limits_over_them(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(GOOD)
    alice, bob = load_config(file).peers
    assert alice.policy.rules[0].text == "allow 203.0.113.7:22"
    assert len(bob.policy.rules) == 2
    assert (alice.policy.limits.flows, alice.policy.limits.flows_per_second) == (100, 8)
    assert (alice.port, bob.port) == (51820, 51821)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("*.example.com:443", "*.example.com:http", ":5: rules[1]: rule"),
        ('"allow *', '"permit *', ":5: rules[1]: rule"),
        ("203.0.113.7:22", "203.0.113.7", ":14: peers.alice.rules[0]: rule"),
        (
            "flows_per_second = 8",
            "flows_per_second = 0",
            ":16: peers.alice.limits.flows_per_second",
        ),
        ("flows_per_second = 8", "speed = 8", ":16: unknown key 'peers.alice.limits.speed'"),
        ("flows = 100", 'flows = "100"', ":10: limits.flows: found '100'"),
        ("flows = 100", "flows = true", ":10: limits.flows: found True"),
        ("rules = [\n", "colour = 1\nrules = [\n", ":3: unknown key 'colour'"),
        ("203.0.113.1:51820", "203.0.113.1:99999", ":1: listen: found"),
        ('"127.0.0.1:8000"', '"127.0.0.1"', ":8: services: service"),
        (BOB, ALICE, ":18: peers.bob.public_key: is also that of peers.alice"),
        (BOB, "short", ":18: peers.bob.public_key: a WireGuard key"),
        ("10.99.0.3", "10.99.0.2", ":19: peers.bob.address: is also that of peers.alice"),
        ("10.99.0.3", "10.99.0.1", ":19: peers.bob.address: is the gateway's own"),
        ('address = "10.99.0.3"', 'address = "fd99::3"\naddress6 = "fd99::4"', ":20: peers.bob.ad"),
        ('address = "10.99.0.3"', 'address = "10.99.0.3"\naddress6 = "fd99::4"', "itself has none"),
        ("rules = [\n", 'address6 = "10.98.0.1"\nrules = [\n', ":3: address6: found"),
        ("rules = [\n", "address6 = 6\nrules = [\n", ":3: address6: found 6"),
        ("[peers.bob]", "[peers.Bob]", ":17: peers.Bob: is no peer's name"),
        ("[peers.bob]", "[peers.bob", ":17: not TOML"),
        ('address = "10.99.0.3"', "port = 51820", ": peers.bob: address is missing"),
        ('address = "10.99.0.3"', 'address = "10.99.0.3"\nport = 51820', ":20: peers.bob.port"),
    ],
)
def test_an_error_names_the_line_and_the_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "gateway.toml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(PolicyError) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)


def test_no_two_have_one_address() -> None:
    """Of all that a gateway and its peers may have, each address once."""
    keys = [public_key(generate_private_key()) for _ in range(2)]

    def config(own: str, one: str, other: str) -> dict[str, Any]:
        peers = {
            name: {"public_key": key, "address": f"10.99.0.{5 + number}", "address6": six}
            for number, (name, key, six) in enumerate(
                zip(("one", "other"), keys, (one, other), strict=True)
            )
        }
        return config_of(address6=own, peers=peers)

    good = parse_config(config("fd99::1", "fd99::2", "fd99::3"))
    assert len(set(good.inside)) == len(good.inside) == 6
    assert {ipaddress.ip_network(address) for address in good.inside} <= set(good.protected)
    for six in (("fd99::1", "fd99::1", "fd99::3"), ("fd99::1", "fd99::3", "fd99::3")):
        with pytest.raises(PolicyError, match="address6"):
            parse_config(config(*six))
    taken = {**config("fd99::1", "fd99::2", "fd99::3"), "services": {"[fd99::2]:80": "127.0.0.1:1"}}
    with pytest.raises(PolicyError, match="one's own") as caught:
        parse_config(taken)
    assert "[fd99::6]:80" in caught.value.hint


def test_no_error_repeats_a_private_key() -> None:
    secret = "A" * 40
    with pytest.raises(PolicyError) as caught:
        parse_config(config_of(private_key=secret))
    assert secret not in str(caught.value)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.sampled_from(sorted({*config_of(), "rules", "services", "limits", "resolver", "address6"})),
    JSON,
)
def test_no_config_raises_anything_but_policy_errors(key: str, value: object) -> None:
    try:
        parse_config(config_of(**{key: value}))
    except PolicyError:
        return


def test_a_file_means_the_same_to_the_gateway_that_it_is_handed_to(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    many = "".join(
        f'[peers.p{number}]\npublic_key = "{public_key(generate_private_key())}"\n'
        f'preshared_key = "{SERVER}"\naddress = "10.98.0.{number}"\naddress6 = "fd98::{number}"\n'
        "limits = { bytes_per_second = 0, queries_per_second = 7 }\n"
        for number in range(1, 40)
    )
    head = 'address6 = "fd99::1"\nlearn = true\nengine = "kernel"\nendpoint = "vpn.example.com"\n'
    head += 'protected = ["198.51.100.0/24"]\nresolver = ["192.0.2.53", "[2001:db8::1]:5353"]\n'
    for text in (GOOD, new_gateway("namespace"), head + GOOD + many):
        file.write_text(text)
        order, meant = load(file)
        handed = ORDERS.word(ORDERS.line(order))
        assert handed == order and configured(handed) == meant


def test_peers_are_added_and_taken_out_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(new_gateway("embedded"))
    alice, _ = add_peer(file, "alice", endpoint="vpn.example.com", preshared=False)
    with_alice = file.read_text()
    with pytest.raises(PolicyError, match="preshared"):
        add_peer(file, "bob", endpoint="vpn.example.com", preshared=True)
    bob, conf = add_peer(file, "bob", endpoint="vpn.example.com", preshared=False)
    assert (str(alice.address), alice.port) == ("10.99.0.2", 51820)
    assert (str(bob.address), bob.port) == ("10.99.0.3", 51821)
    assert "Endpoint = vpn.example.com:51821\n" in conf
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PolicyError, match="already"):
        add_peer(file, "bob", endpoint="vpn.example.com", preshared=False)
    remove_peer(file, "bob")
    assert file.read_text().rstrip() == with_alice.rstrip()
    with pytest.raises(PolicyError, match="no peer"):
        remove_peer(file, "bob")


@pytest.mark.parametrize("engine", ["namespace", "kernel"])
def test_peers_of_the_other_engines_share_a_port_and_may_have_a_preshared_key(
    tmp_path: Path, engine: str
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(new_gateway(engine))
    add_peer(file, "alice", endpoint="vpn.example.com", preshared=False)
    bob, conf = add_peer(file, "bob", endpoint="vpn.example.com", preshared=True)
    assert f"PresharedKey = {bob.preshared_key}\n" in conf
    assert "Endpoint = vpn.example.com:51820\n" in conf


def test_a_peers_subtables_go_with_it_and_no_one_elses(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(GOOD)
    remove_peer(file, "alice")
    (bob,) = load_config(file).peers
    assert bob.name == "bob"
    assert "# the usual" in file.read_text()
    file.write_text(f'private_key = "{SERVER}"\npeers = {{ bob = {{ address = "10.99.0.3" }} }}\n')
    with pytest.raises(PolicyError, match="of its own"):
        remove_peer(file, "bob")


def test_a_peers_file_is_one_that_a_cell_takes(tmp_path: Path) -> None:
    from wgcell.cell.wgquick import parse_vpn_config

    file = tmp_path / "gateway.toml"
    file.write_text(new_gateway("embedded"))
    peer, text = add_peer(file, "alice", endpoint="192.0.2.9", preshared=False)
    vpn = parse_vpn_config(text)
    assert (vpn.endpoint_host, vpn.endpoint_port) == ("192.0.2.9", peer.port)
    assert str(vpn.addresses[0]) == "10.99.0.2/32"
